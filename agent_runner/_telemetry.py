"""Where finished spans go: to the host as events, to an OTLP endpoint, or nowhere.

No OpenTelemetry module is imported but for an endpoint of the runner's own, and then in `prepare`. A failure
here never reaches the agent: it is counted, and told in a ``log`` event.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ._resource import resource
from .contract.otlp import encode
from .contract.protocol import LogData, TelemetryData
from .contract.spans import Span, Spans

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

SERVICE_NAME = "agent_runner"
FLUSH_SECONDS = 1.5
"""How long the end of a run may wait for an endpoint."""

FLUSH_AFTER_SECONDS = 2.0
"""How long ended spans wait for others."""

FLUSH_AT_SPANS = 64
"""Number of ended spans that wait for no others."""

Emit = Callable[[TelemetryData | LogData], None]


class SpanSink:
    """Discards finished spans, as telemetry is off; the sinks that send them derive from it."""

    def prepare(self) -> None:
        """Import the modules that the sink needs. Called in a thread."""

    def export(self, spans: Sequence[Span]) -> None:
        """Take finished spans without blocking."""

    def close(self) -> str | None:
        """Send what waits within `FLUSH_SECONDS`; return a message if spans were lost. Called in a thread."""
        return None


class Relay(SpanSink):
    """Spans go to the host inside ``telemetry`` events; the sandbox needs no route and no credential."""

    def __init__(self, environ: Mapping[str, str], emit: Emit) -> None:
        self._emit = emit
        self._resource = resource(SERVICE_NAME, environ)

    def export(self, spans: Sequence[Span]) -> None:
        """Emit one event for all of them."""
        try:
            payload = encode(spans, self._resource)
        except Exception as error:  # whatever breaks telemetry must not break the agent
            self._emit(LogData(stream="telemetry", text=f"{len(spans)} spans lost: {error!r}"[:500]))
        else:
            self._emit(TelemetryData(otlp=msgspec.to_builtins(payload)))  # base64


class Direct(SpanSink):
    """Spans go to an OTLP endpoint over HTTP, in a thread; what got lost is told at the end."""

    def __init__(self, environ: Mapping[str, str], emit: Emit) -> None:
        self._environ = environ
        self._emit = emit
        self._ready = threading.Lock()
        self._processor: Any = None
        self._counting: _Counting | None = None
        self._resource: Any = None
        self._given = 0
        self._failed: str | None = None
        self._warning: str | None = None

    def prepare(self) -> None:
        """Import the exporter and start its thread."""
        with self._ready:
            if self._processor is not None or self._failed is not None:
                return
            try:
                self._start()
            except Exception as error:  # a bad OTEL_* value must not break the agent
                self._failed = repr(error)

    def _start(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from .contract import readable

        protocol = self._environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or self._environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        if protocol != "http/protobuf":
            self._warning = f"OTLP protocol {protocol!r} is not installed here: using http/protobuf"
        self._resource = readable.resource(SERVICE_NAME)
        self._counting = _Counting(OTLPSpanExporter())
        self._processor = BatchSpanProcessor(cast("SpanExporter", self._counting))

    def export(self, spans: Sequence[Span]) -> None:
        """Queue the spans for the exporter's thread."""
        self.prepare()
        if self._warning is not None:
            self._emit(LogData(stream="telemetry", text=self._warning))
            self._warning = None
        self._given += len(spans)
        if self._processor is None:
            return
        from .contract import readable

        for span in spans:
            self._processor.on_end(readable.readable(span, self._resource))

    def close(self) -> str | None:
        """Flush within the limit and say how many spans did not arrive."""
        if self._processor is not None:
            # The processor's own flush does not honour a limit while a request hangs.
            flush = threading.Thread(target=self._processor.force_flush, daemon=True)
            flush.start()
            flush.join(FLUSH_SECONDS)
        lost = self._given - (self._counting.delivered if self._counting else 0)
        if not lost:
            return None
        why = self._failed or (self._counting and self._counting.last_error) or "the endpoint did not answer"
        return f"{lost} of {self._given} spans were not exported: {why}"


class _Counting:
    """A `SpanExporter` that counts what arrived: the batch processor throws the outcome away."""

    def __init__(self, inner: SpanExporter) -> None:
        self._inner = inner
        self.delivered = 0
        self.last_error: str | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            outcome = self._inner.export(spans)
        except Exception as error:  # the processor would only log it
            self.last_error = repr(error)
            return SpanExportResult.FAILURE
        if outcome is SpanExportResult.SUCCESS:
            self.delivered += len(spans)
        else:
            self.last_error = "the endpoint refused or could not be reached"
        return outcome

    def shutdown(self) -> None:
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._inner.force_flush(timeout_millis)


class SpanOutbox:
    """Hands a run's ended spans to its sink, many at a time: a hand-over costs as much as many spans."""

    def __init__(self, spans: Spans, sink: SpanSink) -> None:
        self._spans = spans
        self._sink = sink
        self._timer: asyncio.TimerHandle | None = None

    def flush_soon(self, *, in_turn: bool) -> None:
        """Hand over what has ended: at the end of a turn at once, within one when `FLUSH_AT_SPANS` wait or in time."""
        ended = self._spans.ended
        if ended and (not in_turn or ended >= FLUSH_AT_SPANS):
            self.flush()
        elif ended and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_AFTER_SECONDS, self.flush)

    def flush(self) -> None:
        """Hand over all spans that have ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if spans := self._spans.take_ended():
            self._sink.export(spans)


def choose_sink(environ: Mapping[str, str], emit: Emit) -> SpanSink:
    """Return the sink that the environment asks for: off, direct to an endpoint, else the relay."""
    if environ.get("OTEL_ENABLED", "").lower() == "false" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return SpanSink()
    if environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return Direct(environ, emit)
    return Relay(environ, emit)

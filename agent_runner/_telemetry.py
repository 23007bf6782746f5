"""Send finished spans to the host as events, or to an OTLP endpoint, or discard them.

OpenTelemetry is imported only to send to an endpoint, and then in `prepare`. A failure does not affect the agent: it is
reported in a ``log`` event.
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
"""Maximum seconds that the end of a run waits for an endpoint."""

FLUSH_AFTER_SECONDS = 2.0
"""Maximum seconds that ended spans wait to be handed over together with others."""

FLUSH_AT_SPANS = 64
"""Number of ended spans that are handed over without a wait."""

Emit = Callable[[TelemetryData | LogData], None]


class SpanSink:
    """Discards finished spans, for telemetry that is off; base of the sinks that send them."""

    sends = False
    """Whether spans are sent anywhere."""

    def prepare(self) -> None:
        """Import the modules that the sink needs. Called in a thread."""

    def export(self, spans: Sequence[Span]) -> None:
        """Take finished spans without blocking."""

    def pass_on(self, otlp: bytes, spans: int) -> None:
        """Take a serialized ``ExportTraceServiceRequest`` with a number of spans without blocking."""

    def close(self) -> str | None:
        """Send what waits within `FLUSH_SECONDS`; return a message if spans were lost. Called in a thread."""
        return None


class Relay(SpanSink):
    """Sends spans to the host in ``telemetry`` events; the sandbox needs no route to a backend and no credential."""

    sends = True

    def __init__(self, environ: Mapping[str, str], emit: Emit) -> None:
        self._emit = emit
        self._resource = resource(SERVICE_NAME, environ)

    def export(self, spans: Sequence[Span]) -> None:
        """Emit one event with all spans."""
        try:
            payload = encode(spans, self._resource)
        except Exception as error:  # a failure of telemetry must not fail the run
            self._emit(LogData(stream="telemetry", text=f"{len(spans)} spans lost: {error!r}"[:500]))
        else:
            self.pass_on(payload, len(spans))

    def pass_on(self, otlp: bytes, spans: int) -> None:
        """Emit one event with a request."""
        self._emit(TelemetryData(otlp=msgspec.to_builtins(otlp)))  # base64


class Direct(SpanSink):
    """Sends spans to an OTLP endpoint over HTTP, in a thread; `close` reports lost spans."""

    sends = True

    def __init__(self, environ: Mapping[str, str], emit: Emit) -> None:
        self._environ = environ
        self._emit = emit
        self._ready = threading.Lock()
        self._processor: Any = None
        self._foreign_processor: Any = None
        """For spans of processes, so that these take no room in the queue of the run's own."""
        self._counting: _Counting | None = None
        self._resource: Any = None
        self._given = 0
        self._failed: str | None = None
        self._warning: str | None = None

    def prepare(self) -> None:
        """Import OpenTelemetry's exporter and start its thread."""
        with self._ready:
            if self._processor is not None or self._failed is not None:
                return
            try:
                self._start()
            except Exception as error:  # a bad OTEL_* value must not fail the run
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
        self._foreign_processor = BatchSpanProcessor(cast("SpanExporter", self._counting))

    def export(self, spans: Sequence[Span]) -> None:
        """Queue the spans for the exporter's thread."""
        if self._accepts(len(spans)):
            from .contract import readable

            for span in spans:
                self._processor.on_end(readable.readable(span, self._resource))

    def pass_on(self, otlp: bytes, spans: int) -> None:
        """Queue the spans of a request for the exporter's thread."""
        if self._accepts(spans):
            from .contract.otlp_messages import readable

            for span in readable(otlp):
                self._foreign_processor.on_end(span)

    def _accepts(self, spans: int) -> bool:
        """Count spans that are to be exported; return whether they can be."""
        self.prepare()
        if self._warning is not None:
            self._emit(LogData(stream="telemetry", text=self._warning))
            self._warning = None
        self._given += spans
        return self._processor is not None

    def close(self) -> str | None:
        """Flush within `FLUSH_SECONDS`; return a message with the number of spans that were not exported."""
        if self._processor is not None:
            # The processor's own timeout has no effect while a request hangs.
            flush = threading.Thread(target=self._flush, daemon=True)
            flush.start()
            flush.join(FLUSH_SECONDS)
        lost = self._given - (self._counting.delivered if self._counting else 0)
        if not lost:
            return None
        delivered = self._counting is not None and self._counting.delivered
        slow = "the endpoint is too slow" if delivered else "the endpoint did not answer"
        why = self._failed or (self._counting and self._counting.last_error) or slow
        return f"{lost} of {self._given} spans were not exported: {why}"

    def _flush(self) -> None:
        self._processor.force_flush()
        self._foreign_processor.force_flush()


class _Counting:
    """A `SpanExporter` that counts the delivered spans, as the batch processor discards the outcome."""

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
    """Hands a run's ended spans to its sink in batches, as a hand-over takes as long as many spans."""

    def __init__(self, spans: Spans, sink: SpanSink) -> None:
        self._spans = spans
        self._sink = sink
        self._timer: asyncio.TimerHandle | None = None

    def flush_soon(self, *, in_turn: bool) -> None:
        """Hand over ended spans: at once after a turn or if `FLUSH_AT_SPANS` wait, else in `FLUSH_AFTER_SECONDS`."""
        ended = self._spans.ended
        if ended and (not in_turn or ended >= FLUSH_AT_SPANS):
            self.flush()
        elif ended and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_AFTER_SECONDS, self.flush)

    def flush(self) -> None:
        """Hand over all ended spans now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if spans := self._spans.take_ended():
            self._sink.export(spans)


def choose_sink(environ: Mapping[str, str], emit: Emit) -> SpanSink:
    """Return the sink that the environment selects: none, an endpoint, or by default the relay to the host."""
    if environ.get("OTEL_ENABLED", "").lower() == "false" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return SpanSink()
    if environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return Direct(environ, emit)
    return Relay(environ, emit)

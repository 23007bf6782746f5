"""Count and measure sessions with OpenTelemetry's instruments, whether their traces are sampled or not.

Importing this module imports OpenTelemetry. `Metrics` has a meter provider of its own, so that two of them in one
process do not mix, and so that the metrics of the application around it stay as they are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, Counter, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.resources import Resource

from agent_runner.contract import __version__, readable
from agent_runner.contract.protocol import (
    AnyEvent,
    ApprovalResolved,
    ApprovalResolvedData,
    Error,
    QuestionResolved,
    QuestionResolvedData,
    Result,
    Start,
    ToolResult,
)
from agent_runner.contract.sanitize import brief
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.conventions import Conventions
from host_client.telemetry.otlp import ENVIRONMENT
from host_client.telemetry.tail.pipeline import Who
from host_client.telemetry.trace.session_trace import SERVICE_NAME
from host_client.telemetry.turns import turn_of

from ._genai import MAX_MS, GenAiMetrics, duration_ms, failure
from ._labels import Labels, source_of
from ._session import MeasuredSession
from .instruments import BY_NAME, MAX_COUNTER_SERIES, OUTCOMES, TOKEN_KINDS, Metric, is_exported

if TYPE_CHECKING:
    from host_client.telemetry.batch import EndedSpan
    from host_client.telemetry.config import TelemetryConfig

_logger = logging.getLogger(__name__)

SpanCounts = Callable[[], Mapping[str, Mapping[str, int]]]
"""Returns the counts of `Telemetry.counts`: by exporter, then by outcome (``dropped: REASON`` for a drop)."""


class MetricsExport(Protocol):
    """A way for metrics to leave the process: served for scraping, or sent to a receiver."""

    @property
    def reader(self) -> MetricReader:
        """Return the reader that the meter provider feeds."""
        ...

    def close(self, timeout: float) -> bool:
        """Export the last values within ``timeout`` seconds; return whether that succeeded."""
        ...


class Metrics:
    """Record all metrics that `METRICS` lists, from the events and spans of sessions. Called from one thread.

    ``tier`` is the tier of users whose session names none. With a ``user_label_limit`` of 0 no metric has a user.
    ``environment`` is the name of the deployment, unless OTEL_RESOURCE_ATTRIBUTES has one. Metrics of the GenAI
    conventions have the names of ``conventions``.
    """

    def __init__(
        self,
        parts: Sequence[MetricsExport] = (),
        *,
        user_label_limit: int = 1000,
        tier: str | None = None,
        environment: str = "development",
        conventions: Conventions = "v0.1.0",
    ) -> None:
        self._parts = tuple(parts)
        self._labels = Labels(user_label_limit, tier)
        self._sessions: dict[str, MeasuredSession] = {}
        self._delivery_ended: threading.Event | None = None
        counters = (Counter, ObservableCounter)
        provider = MeterProvider(
            metric_readers=[part.reader for part in parts],
            resource=Resource({ENVIRONMENT: environment}).merge(readable.resource(SERVICE_NAME)),
            shutdown_on_exit=False,  # `close` does it
            exemplar_filter=AlwaysOffExemplarFilter(),  # no span is current here that an exemplar could name
            views=[View(instrument_type=kind, aggregation_cardinality_limit=MAX_COUNTER_SERIES) for kind in counters],
        )
        self._meter = provider.get_meter("sandspan.host_client", __version__)
        self._records = {
            metric.name: self._instrument(metric)
            for metric in BY_NAME.values()
            if metric.kind != "observable_counter" and is_exported(metric, conventions)
        }
        self._genai = GenAiMetrics(self._record, self._labels, conventions)

    def _record(self, metric: str, value: float, labels: Mapping[str, str | int]) -> None:
        self._records[metric](value, labels)

    def _instrument(self, metric: Metric) -> Callable[[float, Mapping[str, str | int]], None]:
        """Return the function that records a value in a new instrument."""
        match metric.kind:
            case "histogram":
                return self._meter.create_histogram(
                    metric.name, metric.unit, metric.what, explicit_bucket_boundaries_advisory=metric.buckets
                ).record
            case "up_down_counter":
                return self._meter.create_up_down_counter(metric.name, metric.unit, metric.what).add
            case _:
                return self._meter.create_counter(metric.name, metric.unit, metric.what).add

    def watch(self, counts: SpanCounts, delivery_ended: threading.Event | None = None) -> None:
        """Export the outcomes of spans, which ``counts`` returns at each collection. Called once.

        `close` waits for ``delivery_ended``, for at most half of its time, so that the last export has all outcomes.
        """
        self._delivery_ended = delivery_ended

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [
                Observation(count, labels)
                for exporter, of in counts().items()
                for key, count in of.items()
                if (labels := self._delivery(exporter, key)) is not None
            ]

        metric = BY_NAME["claude.agent.telemetry.spans"]
        self._meter.create_observable_counter(metric.name, [observe], metric.unit, metric.what)

    def _delivery(self, exporter: str, key: str) -> dict[str, str] | None:
        """Return the labels of one count, None for a count that is no outcome."""
        outcome, _, reason = key.partition(":")
        if outcome not in OUTCOMES:
            return None
        labels = {"exporter": self._labels.reason(exporter), "outcome": outcome}
        return {**labels, "reason": self._labels.reason(reason)} if reason.strip() else labels

    # -- what the pipeline calls ---------------------------------------------------------------------

    def begin(self, who: Who, calls: ToolCalls) -> None:
        """Count a session as active, and keep room for the names that its host asked for."""
        self._labels.know(who)
        if (session := self._sessions.get(who.session_id)) is None:
            self._sessions[who.session_id] = session = self._new(who)
            self._record("claude.agent.sessions.active", 1, session.customer)
        session.calls = calls

    def _new(self, who: Who) -> MeasuredSession:
        source = source_of(who.session_id, who.user_id, who.tenant_id)
        return MeasuredSession(source, self._labels.customer(who.tenant_id, who.tier))

    def end(self, who: Who) -> None:
        """Count a session as no longer active."""
        # The SDK cannot drop a series: that of a customer without sessions stays, at 0.
        if (session := self._sessions.pop(who.session_id, None)) is not None:
            self._record("claude.agent.sessions.active", -1, session.customer)

    def observe(self, event: AnyEvent, who: Who, *, replayed: bool = False) -> None:
        """Count an event and record its figures. Of a replayed one only the session's model is noted."""
        session = self._sessions.get(who.session_id) or self._new(who)
        if isinstance(event, Start):
            session.model = brief(event.data.model)
        if replayed:
            return
        self._record("claude.agent.events", 1, {**session.customer, "type": event.type})
        match event:
            case ToolResult():
                self._tool_ended(session, event)
            case ApprovalResolved():
                self._decided(session, _tool(session, event.data.tool_use_id), event.data)
            case QuestionResolved():
                self._decided(session, "AskUserQuestion", event.data)
            case Error():
                labels = {**session.customer, **self._model(session), "error.type": event.data.error_type}
                self._record("claude.agent.errors.total", 1, labels)
            case Result():
                self._turn_ended(session, event, who)
            case _:
                pass

    def _model(self, session: MeasuredSession) -> dict[str, str]:
        return {"model": self._labels.model(session.model, session.source)} if session.model else {}

    def _tool_ended(self, session: MeasuredSession, event: ToolResult) -> None:
        labels = dict(session.customer)
        if name := _tool(session, event.data.tool_use_id):
            labels["tool"] = self._labels.tool(name, session.source)
        if 0 <= event.data.duration_ms <= MAX_MS:
            self._record("claude.agent.tool.duration.ms", event.data.duration_ms, labels)
        if event.data.is_error:
            self._record("claude.agent.tool.errors", 1, {**labels, "error.type": event.data.error_type or "tool_error"})

    def _decided(self, session: MeasuredSession, tool: str, data: ApprovalResolvedData | QuestionResolvedData) -> None:
        labels = {**session.customer, "decision": data.decision}
        if 0 <= data.wait_ms <= MAX_MS:
            self._record("claude.agent.approval.wait", data.wait_ms, labels)
        if tool:
            labels["tool"] = self._labels.tool(tool, session.source)
        if data.decided_by:
            labels["decided_by"] = self._labels.decider(data.decided_by, session.source)
        self._record("claude.agent.approvals", 1, labels)

    def _turn_ended(self, session: MeasuredSession, event: Result, who: Who) -> None:
        data = event.data
        failed = {"error.type": data.error_type} if data.error_type else {}
        if 0 <= data.duration_ms <= MAX_MS:
            self._record(
                "claude.agent.duration.ms", data.duration_ms, {**session.customer, **self._model(session), **failed}
            )
        try:
            turn = turn_of(data, session.model)
        except ValueError as error:
            _logger.warning("a turn is missing from the metrics of cost and tokens: %s", error)
            return
        user = self._labels.user(who.user_id)
        for part in turn.parts:
            labels = {**session.customer, "model": self._labels.model(part.model, session.source)}
            self._record("claude.agent.cost.usd", part.nano / 1e9, {**labels, **user})
            for kind, tokens in zip(TOKEN_KINDS, part[2:], strict=True):
                if tokens:
                    self._record("claude.agent.tokens", tokens, {**labels, "kind": kind})

    def observe_span(self, span: EndedSpan, *, replayed: bool = False) -> None:
        """Record a model request, a tool call, an agent or the creation of a sandbox, unless it is replayed."""
        session = self._session_of(span.attributes)
        self._genai.observe(span, session, replayed=replayed)
        if span.name == "sandbox.create" and not replayed and (ms := duration_ms(span)) is not None:
            kind = self._labels.sandbox_kind(_text(span.attributes, "sandbox.kind") or "unknown", session.source)
            labels = {**session.customer, "sandbox.kind": kind, **failure(span.attributes)}
            self._record("claude.agent.sandbox.creation.duration", ms, labels)

    def _session_of(self, attributes: Mapping[str, Any]) -> MeasuredSession:
        """Return the session that a span's attributes name, from them alone if it has not begun here."""
        session_id = _text(attributes, "session.id") or ""
        user, tenant, tier = (_text(attributes, name) for name in ("user.id", "tenant.id", "user.tier"))
        known = self._sessions.get(session_id)
        return known or self._new(Who(session_id=session_id, user_id=user, tenant_id=tenant, tier=tier))

    def flush(self, timeout: float) -> bool:
        """Return True: metrics are cumulative, so the next export makes up for one that failed."""
        return True

    def close(self, timeout: float) -> bool:
        """Export the last values to all exporters at once, within ``timeout`` seconds; return whether all succeeded."""
        until = time.monotonic() + timeout
        if self._delivery_ended is not None:
            self._delivery_ended.wait(timeout / 2)
        closed: list[bool] = []

        def close(part: MetricsExport) -> None:
            closed.append(part.close(until - time.monotonic()))

        threads = [threading.Thread(target=close, args=(part,), daemon=True) for part in self._parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            _logger.warning("an export of metrics has not ended within %.1f s", timeout)
        return len(closed) == len(threads) and all(closed)


def metrics_of(config: TelemetryConfig) -> tuple[Metrics | None, tuple[str, ...]]:
    """Return the metrics of a configuration, None if nothing exports any, and a sentence for each problem."""
    parts: list[MetricsExport] = []
    problems: list[str] = []
    if "prometheus" in config.exporters:
        from ._prometheus import PrometheusServer  # imported only where it serves metrics

        where = f"{config.prometheus_host}:{config.prometheus_port}"
        try:
            parts.append(PrometheusServer(config.prometheus_host, config.prometheus_port))
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be a host's
            why = getattr(error, "strerror", None) or error
            problems.append(
                f"prometheus cannot listen on {where} ({why}), so no metrics can be scraped: "
                "set OTEL_EXPORTER_PROMETHEUS_PORT or OTEL_EXPORTER_PROMETHEUS_HOST"
            )
    for name, endpoint in (("signoz", config.signoz_metrics), ("otlp", config.otlp_metrics)):
        if endpoint is not None:
            from host_client.telemetry.export.destinations.otlp import otlp_metrics

            from ._otlp import OtlpPart  # imported only where metrics go over OTLP

            parts.append(OtlpPart(otlp_metrics(name, endpoint), config.metric_interval, config.metric_temporality))
    if config.metrics_textfile is not None:
        from ._textfile import TextfilePart  # as above

        parts.append(TextfilePart(config.metrics_textfile, config.pushgateway))
    if not parts:
        return None, tuple(problems)
    metrics = Metrics(
        parts,
        user_label_limit=config.user_label_limit,
        tier=config.tier,
        environment=config.environment,
        conventions=config.conventions,
    )
    return metrics, tuple(problems)


def _tool(session: MeasuredSession, tool_use_id: str) -> str:
    return call.name if (call := session.calls.get(tool_use_id)) is not None else ""


def _text(attributes: Mapping[str, Any], name: str) -> str | None:
    value = attributes.get(name)
    return str(value) if value else None

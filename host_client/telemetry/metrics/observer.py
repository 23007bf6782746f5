"""Metrics of everything that runs, sampled or not: events and spans to OpenTelemetry's instruments.

Importing this module imports OpenTelemetry. It has a meter provider of its own: two sets of metrics in one process
do not mix, and what an application measures by itself is not touched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.metrics import Counter as CounterInstrument
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, Counter, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricReader,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.view import View
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

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
from host_client.telemetry.trace.calls import ToolCalls
from host_client.telemetry.trace.session_trace import SERVICE_NAME
from host_client.telemetry.turns import TurnCost, turn_of

from ._histograms import Recorder, Series
from ._labels import Labels, error_type, source_of
from .instruments import BY_NAME, MAX_COUNTER_SERIES, OUTCOMES, TOKEN_KINDS

if TYPE_CHECKING:
    from host_client.telemetry.batch import EndedSpan
    from host_client.telemetry.config import TelemetryConfig
    from host_client.telemetry.tail.pipeline import Who

MAX_ALIKE = 32
"""Kinds of model requests of one session that are remembered, each with its labels."""

MAX_MS = 30 * 86_400_000.0
"""What takes longer is no duration: a sandbox's clock is not trusted."""

_NUMBER = (int, float)
_SCOPE = InstrumentationScope("sandspan.host_client", __version__)
_MODELS = ("gen_ai.request.model", "gen_ai.response.model")
_TELLS_APART = (*_MODELS, "error.type", "tenant.id", "user.id", "user.tier")
"""Attributes of a model request that the labels of its measurements are made of, within a session."""

_USAGE = {"input": "gen_ai.usage.input_tokens", "output": "gen_ai.usage.output_tokens"}

_logger = logging.getLogger(__name__)

SpanCounts = Callable[[], Mapping[str, Mapping[str, int]]]
"""By exporter, spans that were exported, retried, spooled, and dropped with a reason (``dropped: why``)."""


Customer = tuple[tuple[str, str], ...]
"""Labels of whose a session is."""


class MetricsExport(Protocol):
    """Something that takes the metrics away, or lets them be fetched."""

    @property
    def reader(self) -> MetricReader:
        """What the meter provider feeds."""
        ...

    def close(self, timeout: float) -> bool:
        """Give away what is left, in so many seconds; return whether that was done."""
        ...


class _OfRequest(NamedTuple):
    """Where the measurements of model requests go that are alike."""

    duration: Series
    first_chunk: Series
    tokens: tuple[Series, ...]
    """One for each kind of `_USAGE`."""


@dataclass(slots=True)
class _Session:
    source: str
    customer: Mapping[str, str]
    key: Customer
    """The same."""
    model: str | None = None
    calls: ToolCalls = field(default_factory=ToolCalls)
    requests: dict[tuple[Any, ...], _OfRequest] = field(default_factory=dict[tuple[Any, ...], _OfRequest])


class Metrics:
    """An `Observer` that counts and measures; see `METRICS`. Called from one thread.

    ``tier`` is that of users whose session names none; with a ``user_label_limit`` of 0 no metric has a user.
    """

    def __init__(
        self, parts: Sequence[MetricsExport] = (), *, user_label_limit: int = 1000, tier: str | None = None
    ) -> None:
        self._parts = tuple(parts)
        self._labels = Labels(user_label_limit, tier)
        self._sessions: dict[str, _Session] = {}
        more = (Counter, ObservableCounter)
        self._source = InMemoryMetricReader()
        self._resource = readable.resource(SERVICE_NAME)
        self._provider = MeterProvider(
            metric_readers=[self._source],
            resource=self._resource,
            shutdown_on_exit=False,
            exemplar_filter=AlwaysOffExemplarFilter(),  # what counts is in no span that one could name
            views=[View(instrument_type=kind, aggregation_cardinality_limit=MAX_COUNTER_SERIES) for kind in more],
        )
        self._meter = self._provider.get_meter(_SCOPE.name, _SCOPE.version)
        self._histograms: list[Recorder] = []
        self._cost = self._counter("claude.agent.cost.usd")
        self._turn_duration = self._histogram("claude.agent.duration.ms")
        self._tool_duration = self._histogram("claude.agent.tool.duration.ms")
        self._tool_errors = self._counter("claude.agent.tool.errors")
        self._errors = self._counter("claude.agent.errors.total")
        self._tokens = self._counter("claude.agent.tokens")
        self._request_tokens = self._histogram("gen_ai.client.token.usage")
        self._request_duration = self._histogram("gen_ai.client.operation.duration")
        self._first_chunk = self._histogram("gen_ai.client.operation.time_to_first_chunk")
        self._wait = self._histogram("claude.agent.approval.wait")
        self._approvals = self._counter("claude.agent.approvals")
        self._creation = self._histogram("claude.agent.sandbox.creation.duration")
        active = BY_NAME["claude.agent.sessions.active"]
        self._active = self._meter.create_up_down_counter(active.name, active.unit, active.what)
        self._events: Counts[tuple[Customer, str]] = Counts()
        events = BY_NAME["claude.agent.events"]
        self._meter.create_observable_counter(events.name, [self._counted], events.unit, events.what)
        for part in parts:
            # What a meter provider does with a reader that it feeds.
            part.reader._set_collect_callback(self._collected)  # pyright: ignore[reportPrivateUsage, reportArgumentType]

    def _counter(self, name: str) -> CounterInstrument:
        metric = BY_NAME[name]
        return self._meter.create_counter(metric.name, metric.unit, metric.what)

    def _histogram(self, name: str) -> Recorder:
        self._histograms.append(recorder := Recorder(BY_NAME[name]))
        return recorder

    def _collected(self, _reader: MetricReader, timeout_millis: float = 10_000) -> MetricsData | None:
        """Return everything since the start of the process: each reader gets the same, and it is summed up once."""
        data = self._source.get_metrics_data()
        sums = data.resource_metrics if data is not None else ()
        metrics = [
            *(metric for of in sums for scope in of.scope_metrics for metric in scope.metrics),
            *filter(None, (histogram.collected() for histogram in self._histograms)),
        ]
        if not metrics:
            return None
        return MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(_SCOPE, metrics, "")], "")])

    def _counted(self, _: CallbackOptions) -> Iterable[Observation]:
        """Return how many events there were: they are many, and a sum of our own costs a tenth of an instrument's."""
        return [
            Observation(count, {**dict(customer), "type": kind})
            for (customer, kind), count in self._events.copy().items()
        ]

    def watch(self, counts: SpanCounts) -> None:
        """Tell what became of spans, as ``counts`` has it whenever metrics are read. Called once."""

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
        outcome, _, reason = key.partition(":")
        if outcome not in OUTCOMES:
            return None
        labels = {"exporter": self._labels.reason(exporter), "outcome": outcome}
        return {**labels, "reason": self._labels.reason(reason)} if reason.strip() else labels

    # -- what the pipeline calls ---------------------------------------------------------------------

    def begin(self, who: Who) -> None:
        """A session begins."""
        self._labels.know(who)
        if who.session_id not in self._sessions:
            self._sessions[who.session_id] = session = self._new(who)
            self._active.add(1, session.customer)

    def _new(self, who: Who) -> _Session:
        customer = self._customer(who)
        return _Session(_source(who), customer, tuple(customer.items()))

    def end(self, who: Who) -> None:
        """A session has ended."""
        if self._sessions.pop(who.session_id, None) is not None:
            self._active.add(-1, self._customer(who))

    def observe(self, event: AnyEvent, who: Who, *, replayed: bool = False) -> None:
        """Count an event, and what it says. Of a replayed one only the session's model and its calls are noted."""
        session = self._sessions.get(who.session_id) or self._new(who)
        session.calls.observe(event)
        if isinstance(event, Start):
            session.model = brief(event.data.model)
        if replayed:
            return
        customer = session.customer
        self._events[(session.key, event.type)] += 1
        match event:
            case ToolResult():
                self._tool_ended(session, event, customer)
            case ApprovalResolved():
                self._decided(session, _tool(session, event.data.tool_use_id), event.data, customer)
            case QuestionResolved():
                self._decided(session, "AskUserQuestion", event.data, customer)
            case Error():
                self._errors.add(1, {**customer, **self._model(session), "error.type": event.data.error_type})
            case Result():
                self._turn_ended(session, event, who, customer)
            case _:
                pass

    def _customer(self, who: Who) -> dict[str, str]:
        return self._labels.customer(who.tenant_id, who.tier)

    def _model(self, session: _Session) -> dict[str, str]:
        return {"model": self._labels.model(session.model, session.source)} if session.model else {}

    def _tool_ended(self, session: _Session, event: ToolResult, customer: Mapping[str, str]) -> None:
        name = _tool(session, event.data.tool_use_id)
        labels = {**customer, "tool": self._labels.tool(name, session.source)} if name else dict(customer)
        if 0 <= event.data.duration_ms <= MAX_MS:
            self._tool_duration.record(event.data.duration_ms, labels)
        if event.data.is_error:
            self._tool_errors.add(1, {**labels, "error.type": event.data.error_type or "tool_error"})

    def _decided(
        self,
        session: _Session,
        tool: str,
        data: ApprovalResolvedData | QuestionResolvedData,
        customer: Mapping[str, str],
    ) -> None:
        labels = {**customer, "decision": data.decision}
        if 0 <= data.wait_ms <= MAX_MS:
            self._wait.record(data.wait_ms, labels)
        if tool:
            labels["tool"] = self._labels.tool(tool, session.source)
        if data.decided_by:
            labels["decided_by"] = self._labels.decider(data.decided_by, session.source)
        self._approvals.add(1, labels)

    def _turn_ended(self, session: _Session, event: Result, who: Who, customer: Mapping[str, str]) -> None:
        data = event.data
        failed = {"error.type": data.error_type} if data.error_type else {}
        if 0 <= data.duration_ms <= MAX_MS:
            self._turn_duration.record(data.duration_ms, {**customer, **self._model(session), **failed})
        try:
            turn = turn_of(data, session.model)
        except ValueError as error:
            _logger.warning("not counted: %s", error)
            return
        self._count_turn(turn, session.source, customer, self._labels.user(who.user_id))

    def _count_turn(self, turn: TurnCost, source: str, customer: Mapping[str, str], user: Mapping[str, str]) -> None:
        for part in turn.parts:
            labels = {**customer, "model": self._labels.model(part.model, source)}
            self._cost.add(part.nano / 1e9, {**labels, **user})
            for kind, tokens in zip(TOKEN_KINDS, part[2:], strict=True):
                if tokens:
                    self._tokens.add(tokens, {**labels, "kind": kind})

    def observe_span(self, span: EndedSpan, *, replayed: bool = False) -> None:
        """Measure a model request, or a sandbox's creation; a process that died has measured replayed ones."""
        if replayed:
            return
        name = span.name  # by which it is known: to read attributes costs more
        if name.startswith("chat"):
            attributes = span.attributes
            if attributes.get("gen_ai.operation.name") == "chat":
                self._request(span, attributes)
        elif name == "sandbox.create":
            attributes = span.attributes
            kind = _text(attributes.get("sandbox.kind")) or "unknown"
            kind = self._labels.sandbox_kind(kind, _source_in(attributes))
            labels = {**self._customer_of(attributes), "sandbox.kind": kind, **_failure(attributes)}
            if (ms := _duration_ms(span)) is not None:
                self._creation.record(ms, labels)

    def _request(self, span: EndedSpan, attributes: Mapping[str, Any]) -> None:
        to = self._series_of(attributes)
        if (ms := _duration_ms(span)) is not None:
            to.duration.record(ms / 1000)
        seconds = _number(attributes.get("gen_ai.response.time_to_first_chunk"), MAX_MS / 1000)
        if seconds is not None:
            to.first_chunk.record(seconds)
        for series, name in zip(to.tokens, _USAGE.values(), strict=True):
            if (tokens := _number(attributes.get(name), 1e12)) is not None:
                series.record(tokens)

    def _series_of(self, attributes: Mapping[str, Any]) -> _OfRequest:
        """Return where a request's measurements go; a session's requests are mostly alike."""
        session = self._sessions.get(attributes.get("session.id", ""))
        if session is None:
            return self._new_series(attributes)
        if (found := session.requests.get(key := tuple(map(attributes.get, _TELLS_APART)))) is None:
            if len(session.requests) >= MAX_ALIKE:
                session.requests.clear()
            found = session.requests[key] = self._new_series(attributes)
        return found

    def _new_series(self, attributes: Mapping[str, Any]) -> _OfRequest:
        labels = {**self._customer_of(attributes), "gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic"}
        source = _source_in(attributes)
        for name in _MODELS:
            if isinstance(model := attributes.get(name), str):
                labels[name] = self._labels.model(model, source)
        return _OfRequest(
            self._request_duration.series({**labels, **_failure(attributes)}),
            self._first_chunk.series(labels),
            tuple(self._request_tokens.series({**labels, "gen_ai.token.type": kind}) for kind in _USAGE),
        )

    def _customer_of(self, attributes: Mapping[str, Any]) -> dict[str, str]:
        return self._labels.customer(_text(attributes.get("tenant.id")), _text(attributes.get("user.tier")))

    def close(self, timeout: float) -> bool:
        """Give away what is left, to all at once, in so many seconds; return whether that was done."""
        until = time.monotonic() + timeout
        closed: list[bool] = []

        def close(part: MetricsExport) -> None:
            closed.append(part.close(timeout))

        threads = [threading.Thread(target=close, args=(part,), daemon=True) for part in self._parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return len(closed) == len(threads) and all(closed)


def metrics_of(config: TelemetryConfig) -> tuple[Metrics | None, tuple[str, ...]]:
    """Return the metrics of a configuration, None where nobody takes any, and a sentence for what is wrong."""
    parts: list[MetricsExport] = []
    problems: list[str] = []
    if "prometheus" in config.exporters:
        from ._prometheus import PrometheusServer  # the exporter and its HTTP server: not for OTLP alone

        where = f"{config.prometheus_host}:{config.prometheus_port}"
        try:
            parts.append(PrometheusServer(config.prometheus_host, config.prometheus_port))
        except (OSError, UnicodeError) as error:  # the latter for a name that no host can have
            why = getattr(error, "strerror", None) or error
            problems.append(
                f"prometheus cannot listen on {where} ({why}); nothing is there to scrape: "
                "set OTEL_EXPORTER_PROMETHEUS_PORT or OTEL_EXPORTER_PROMETHEUS_HOST"
            )
    for name, endpoint in (("signoz", config.signoz_metrics), ("otlp", config.otlp_metrics)):
        if endpoint is not None:
            from host_client.telemetry.export.destinations.otlp import otlp_metrics

            from ._otlp import OtlpPart  # protobuf and a client: not for Prometheus alone

            parts.append(OtlpPart(otlp_metrics(name, endpoint), config.metric_interval))
    if not parts:
        return None, tuple(problems)
    return Metrics(parts, user_label_limit=config.user_label_limit, tier=config.tier), tuple(problems)


def _tool(session: _Session, tool_use_id: str) -> str:
    call = session.calls.get(tool_use_id)
    return (
        brief(call.name) if call is not None else ""
    )  # the model's own words, where it calls a tool that is not there


def _source(who: Who) -> str:
    return source_of(who.session_id, who.user_id, who.tenant_id)


def _source_in(attributes: Mapping[str, Any]) -> str:
    return source_of(*(_text(attributes.get(name)) for name in ("session.id", "user.id", "tenant.id")))


def _text(value: object) -> str | None:
    return str(value) if value else None


def _failure(attributes: Mapping[str, Any]) -> dict[str, str]:
    return {"error.type": error_type(attributes["error.type"])} if "error.type" in attributes else {}


def _duration_ms(span: EndedSpan) -> float | None:
    return _number((span.end_time - span.start_time) / 1e6, MAX_MS)


def _number(value: Any, limit: float) -> float | None:
    return value if type(value) in _NUMBER and 0 <= value <= limit else None  # which a truth value is not

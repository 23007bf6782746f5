"""Record the metrics of the GenAI conventions from ended spans: model requests, agents and tool calls.

Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from host_client.telemetry.batch import EndedSpan
from host_client.telemetry.conventions import Conventions

from ._labels import Labels, error_type

if TYPE_CHECKING:
    from ._session import MeasuredSession

MAX_MS = 30 * 86_400_000.0
"""Maximum of a duration that is recorded, in milliseconds. A sandbox's clock is not trusted."""

MAX_COUNTED_AGENTS = 1000
"""Maximum number of agents of one session whose calls are counted at once."""

_MAX_TOKENS = 1e12
_NUMBER = (int, float)
_MODELS = ("gen_ai.request.model", "gen_ai.response.model")
_INPUT, _OUTPUT = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
_PARTS = ("cache_read.input_tokens", "cache_write.input_tokens", "reasoning.output_tokens")

Record = Callable[[str, float, Mapping[str, str | int]], None]
"""Records a value with its labels in the metric of a name."""


class GenAiMetrics:
    """Record the metrics of the GenAI conventions with ``record``."""

    def __init__(self, record: Record, labels: Labels, conventions: Conventions) -> None:
        self._labels = labels
        self._record = record
        self._is_new = conventions != "v1.41.0"
        self._is_old = conventions != "v0.1.0"

    def observe(self, span: EndedSpan, session: MeasuredSession, *, replayed: bool = False) -> None:
        """Record the figures of an ended span; the spans of an agent's requests and calls end before its own.

        Of a replayed span only the call is counted for its agent, which may still be under way.
        """
        operation = span.attributes.get("gen_ai.operation.name")
        if operation == "chat" or operation == "execute_tool":
            self._count_call(span, session, operation)
        calls = session.calls_by_agent.pop(span.span_id, None) if operation == "invoke_agent" else None
        if replayed:
            return
        match operation:
            case "chat":
                self._request(span, session)
            case "execute_tool" if self._is_new:
                self._tool(span, session)
            case "invoke_agent" if self._is_new:
                self._agent(span, session, calls or Counter())
            case _:
                pass

    def _count_call(self, span: EndedSpan, session: MeasuredSession, operation: str) -> None:
        agent = session.calls.agent_of(span.parent_span_id or "")
        if agent not in session.calls_by_agent:
            if len(session.calls_by_agent) >= MAX_COUNTED_AGENTS:
                del session.calls_by_agent[next(iter(session.calls_by_agent))]  # whose end has been missed
            session.calls_by_agent[agent] = Counter()
        session.calls_by_agent[agent][operation] += 1

    def _request(self, span: EndedSpan, session: MeasuredSession) -> None:
        attributes = span.attributes
        labels: dict[str, str | int] = {
            **session.customer,
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "anthropic",
            **self._labels.server(attributes.get("server.address"), attributes.get("server.port"), session.source),
        }
        for name in _MODELS:
            if isinstance(model := attributes.get(name), str):
                labels[name] = self._labels.model(model, session.source)
        seconds = _seconds(span)
        first = number(attributes.get("gen_ai.response.time_to_first_chunk"), MAX_MS / 1000)
        if self._is_new:
            self._record_if("gen_ai.client.inference.duration", seconds, {**labels, **failure(attributes)})
            self._record_if("gen_ai.client.inference.time_to_first_chunk", first, labels)
            self._usage(attributes, labels)
        if self._is_old:
            self._record_if("gen_ai.client.operation.duration", seconds, {**labels, **failure(attributes)})
            self._record_if("gen_ai.client.operation.time_to_first_chunk", first, labels)
            for kind, name in (("input", _INPUT), ("output", _OUTPUT)):
                tokens = number(attributes.get(name), _MAX_TOKENS)
                self._record_if("gen_ai.client.token.usage", tokens, {**labels, "gen_ai.token.type": kind})

    def _usage(self, attributes: Mapping[str, Any], labels: Mapping[str, str | int]) -> None:
        # By the conventions a failed request without usage counts as one of 0 tokens. The usage of one that succeeded
        # can be unknown: without the gateway a subagent's output tokens are.
        of_usage = {**labels, "gen_ai.token.modality": "unknown"}
        of_operation = {**labels, **failure(attributes)}
        for name in ("input_tokens", "output_tokens"):
            tokens = number(attributes.get(f"gen_ai.usage.{name}"), _MAX_TOKENS)
            if tokens is None and "error.type" in attributes:
                tokens = 0
            self._record_if(f"gen_ai.client.inference.usage.{name}", tokens, of_usage)
            self._record_if(f"gen_ai.client.inference.operation.{name}", tokens, of_operation)
        for name in _PARTS:
            tokens = number(attributes.get(f"gen_ai.usage.{name}"), _MAX_TOKENS)
            self._record_if(f"gen_ai.client.inference.usage.{name}", tokens, of_usage)

    def _tool(self, span: EndedSpan, session: MeasuredSession) -> None:
        labels = {**session.customer, "gen_ai.operation.name": "execute_tool", **failure(span.attributes)}
        if isinstance(name := span.attributes.get("gen_ai.tool.name"), str):
            labels["gen_ai.tool.name"] = self._labels.tool(name, session.source)
        if (kind := span.attributes.get("gen_ai.tool.type")) in ("function", "extension"):
            labels["gen_ai.tool.type"] = kind
        self._record_if("gen_ai.execute_tool.duration", _seconds(span), labels)

    def _agent(self, span: EndedSpan, session: MeasuredSession, calls: Counter[str]) -> None:
        labels = {**session.customer, "gen_ai.operation.name": "invoke_agent"}
        if isinstance(name := span.attributes.get("gen_ai.agent.name"), str):
            labels["gen_ai.agent.name"] = self._labels.agent(name, session.source)
        self._record_if("gen_ai.invoke_agent.duration", _seconds(span), {**labels, **failure(span.attributes)})
        self._record("gen_ai.invoke_agent.inference_calls", calls["chat"], labels)
        self._record("gen_ai.invoke_agent.tool_calls", calls["execute_tool"], labels)

    def _record_if(self, metric: str, value: float | None, labels: Mapping[str, str | int]) -> None:
        if value is not None:
            self._record(metric, value, labels)


def duration_ms(span: EndedSpan) -> float | None:
    """Return the duration of a span in milliseconds, None for an impossible one."""
    return number((span.end_time - span.start_time) / 1e6, MAX_MS)


def _seconds(span: EndedSpan) -> float | None:
    ms = duration_ms(span)
    return None if ms is None else ms / 1000


def failure(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the label of a failed span's error type."""
    return {"error.type": error_type(attributes["error.type"])} if "error.type" in attributes else {}


def number(value: Any, limit: float) -> float | None:
    """Return a number from 0 to the limit, None for any other value; ``type`` because a bool is an int."""
    return value if type(value) in _NUMBER and 0 <= value <= limit else None

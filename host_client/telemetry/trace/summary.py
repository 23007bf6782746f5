"""Summarize a trace: how much of its time the model, the tools and the waiting for people took. Pure.

Every moment of the session counts once: as model time while a model request runs, else as tool time while a tool
executes, else as waiting while an approval is open, else as other time. So parallel work is not counted twice, and an
approval that is open while a subagent works does not count as waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_runner.contract.otlp import SCOPE
from host_client.telemetry.intervals import Interval, seconds, union, without

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan


@dataclass(frozen=True)
class Summary:
    """Seconds, tokens and numbers of calls and approvals in one trace."""

    total: float
    model: float
    tools: float
    waiting: float
    input_tokens: int
    output_tokens: int
    tool_calls: int
    approvals: int

    @property
    def other(self) -> float:
        """Return the seconds of start-up, of the CLI's own work, and of anything else that no span covers."""
        return max(0.0, self.total - self.model - self.tools - self.waiting)


def summarize(spans: Sequence[ReadableSpan]) -> Summary:
    """Return the summary of the spans of one trace; those of the processes of tools do not count."""
    spans = [span for span in spans if _is_own(span)]
    chats = [_interval(span) for span in spans if span.name.startswith("chat")]
    waits = [_interval(span) for span in spans if span.name == "agent.approval"]
    calls = [span for span in spans if span.name.startswith("execute_tool")]
    agents = {id_ for span in spans if (id_ := _parent(span)) is not None and span.name != "agent.approval"}
    # A subagent's call lasts as long as its own requests and calls, which are counted themselves.
    working = [_interval(span) for span in calls if _id(span) not in agents]
    model = union(chats)
    tools = without(without(union(working), union(waits)), model)
    waiting = without(without(union(waits), model), tools)
    root = [_interval(span) for span in spans if span.name == "agent.session"] or [_interval(span) for span in spans]
    return Summary(
        total=seconds(union(root)),
        model=seconds(model),
        tools=seconds(tools),
        waiting=seconds(waiting),
        input_tokens=_sum(spans, "gen_ai.usage.input_tokens"),
        output_tokens=_sum(spans, "gen_ai.usage.output_tokens"),
        tool_calls=len(calls),
        approvals=len(waits),
    )


def _interval(span: ReadableSpan) -> Interval:
    start = span.start_time or 0
    return start, max(start, span.end_time or start)


def _is_own(span: ReadableSpan) -> bool:
    return span.instrumentation_scope is None or span.instrumentation_scope.name == SCOPE


def _id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    return context.span_id if context else 0


def _parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def _number(span: ReadableSpan, name: str) -> float:
    value = (span.attributes or {}).get(name)
    return value if isinstance(value, int | float) else 0


def _sum(spans: Iterable[ReadableSpan], name: str) -> int:
    return int(sum(_number(span, name) for span in spans))

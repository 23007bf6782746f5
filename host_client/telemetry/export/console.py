"""Show a trace as a tree in the terminal, and as OTLP/JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import StatusCode
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from rich.tree import Tree

from agent_runner.contract.sanitize import single_line

_ROOT = "agent.session"
_HELD = 20_000
_NAME_WIDTH = 44
_NARROWEST_NAME = 24
_NOTE_WIDTH = 40
"""Maximum width that a note may take from the names."""
_DURATION_WIDTH = 9
_MAX_DEPTH = 40

_STYLES = (("chat", "blue"), ("execute_tool", "green"), ("agent.approval", "yellow"))


class TreeExporter(SpanExporter):
    """Print each session's trace as a tree when the session's own span, its last, is exported."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._held: dict[int, list[ReadableSpan]] = {}

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hold spans until their session ends."""
        for span in spans:
            held = self._held.setdefault(_trace_id(span), [])
            if len(held) < _HELD:
                held.append(span)
            if span.name == _ROOT:
                self._console.print(TraceTree(self._held.pop(_trace_id(span))))
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Print the traces whose session's span has not come."""
        for spans in self._held.values():
            self._console.print(TraceTree(spans))
        self._held.clear()


def otlp_json(spans: Sequence[ReadableSpan]) -> dict[str, Any]:
    """Return spans as an OTLP/JSON ``ExportTraceServiceRequest``."""
    return request_json(encode_spans(list(spans)))


def request_json(request: ExportTraceServiceRequest) -> dict[str, Any]:
    """Return a request as OTLP/JSON. Its ids are in hex, unlike those in protobuf's JSON."""
    converted: dict[str, Any] = MessageToDict(request, use_integers_for_enums=True)
    for resource in converted.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                _hex_ids(span)
    return converted


def _hex_ids(span: dict[str, Any]) -> None:
    for key in ("traceId", "spanId", "parentSpanId"):
        if key in span:
            span[key] = base64.b64decode(span[key]).hex()


@dataclass(frozen=True)
class TraceTree:
    """A trace that rich prints as a tree with durations. Spans whose parent is not among them are at the top.

    If the terminal is narrow, names are cut in favour of the notes.
    """

    spans: Sequence[ReadableSpan]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the tree for the console's width."""
        notes = max((min(_NOTE_WIDTH, len(_note(span)) + len(_failure(span))) for span in self.spans), default=0)
        room = options.max_width - _DURATION_WIDTH - notes
        yield _tree(self.spans, max(_NARROWEST_NAME, min(_NAME_WIDTH, room)))


def _tree(spans: Sequence[ReadableSpan], name_width: int) -> Tree:
    children: dict[int | None, list[ReadableSpan]] = {}
    known = {_span_id(span) for span in spans}
    for span in sorted(spans, key=lambda s: s.start_time or 0):
        parent = span.parent.span_id if span.parent and span.parent.span_id in known else None
        children.setdefault(parent, []).append(span)
    trace_id = f"{_trace_id(spans[0]):032x}" if spans else "empty"
    top = Tree(Text(f"trace {trace_id}", style="bold"), guide_style="dim")
    _grow(top, None, children, name_width)
    while children:
        # A forged cycle, and spans nested deeper than _MAX_DEPTH, are shown at the top.
        _grow(top, next(iter(children)), children, name_width)
    return top


def _grow(top: Tree, root: int | None, children: dict[int | None, list[ReadableSpan]], name_width: int) -> None:
    todo = [(top, span, 1) for span in reversed(children.pop(root, []))]
    while todo:
        branch, span, depth = todo.pop()
        grown = branch.add(_line(span, max(10, name_width - 4 * depth)))
        if depth < _MAX_DEPTH:
            todo += [(grown, child, depth + 1) for child in reversed(children.pop(_span_id(span), []))]


def _line(span: ReadableSpan, width: int) -> Text:
    style = next((style for prefix, style in _STYLES if span.name.startswith(prefix)), "")
    line = Text(f"{single_line(span.name, width):<{width}}", style=style, no_wrap=True, overflow="ellipsis")
    line.append(f"{duration(((span.end_time or 0) - (span.start_time or 0)) / 1e9):>{_DURATION_WIDTH}}", style="bold")
    line.append(_note(span), style="dim")
    line.append(_failure(span), style="red")
    return line


def _failure(span: ReadableSpan) -> str:
    if span.status.status_code is not StatusCode.ERROR:
        return ""
    return f"  ✗ {single_line(str((span.attributes or {}).get('error.type', 'error')), 40)}"


def _note(span: ReadableSpan) -> str:
    attributes = span.attributes or {}
    notes: list[str] = []
    if "gen_ai.usage.input_tokens" in attributes:
        output = attributes.get("gen_ai.usage.output_tokens")
        notes.append(f"{attributes['gen_ai.usage.input_tokens']}{'' if output is None else f'→{output}'} tokens")
    if isinstance(first := attributes.get("gen_ai.response.time_to_first_chunk"), int | float):
        notes.append(f"first after {duration(first)}")
    if isinstance(waited := attributes.get("tool.approval_wait_ms"), int | float) and waited:
        ran = attributes.get("tool.execution_ms")
        notes.append(f"waited {duration(waited / 1e3)}")
        if isinstance(ran, int | float):
            notes.append(f"ran {duration(ran / 1e3)}")
    if "approval.decision" in attributes:
        by = attributes.get("approval.decided_by")
        notes.append(f"{attributes['approval.decision']}{f' by {by}' if by else ''}")
    if isinstance(cost := attributes.get("agent.cost_usd"), int | float):
        notes.append(f"${cost:.4f}")
    if any(event.name == "api_retry" for event in span.events):
        retries = sum(event.name == "api_retry" for event in span.events)
        notes.append(f"{retries} {'retry' if retries == 1 else 'retries'}")
    return f"  {single_line(', '.join(notes), 120)}" if notes else ""


def duration(seconds: float) -> str:
    """Format a duration in seconds or milliseconds."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def _trace_id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    return context.trace_id if context else 0


def _span_id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    return context.span_id if context else 0

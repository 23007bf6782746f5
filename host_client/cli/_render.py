"""Renders events, approval requests and summaries for a terminal.

Control characters in text from the sandbox are made visible: an escape sequence or a bidirectional mark could make a
person approve something other than the text that they see.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from agent_runner.contract import protocol as p
from agent_runner.contract.approvals import remembered
from agent_runner.contract.attachments import AttachmentView
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.trace.summary import Summary

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]"
)
_RESULT_LINES = 6
_LINE = 200


def visible(text: str) -> str:
    r"""Return the text with every invisible or text-moving character replaced by ``\xNN``."""
    return _INVISIBLE.sub(lambda found: ascii(found.group())[1:-1], text.replace("\r\n", "\n"))


class Renderer:
    """Prints the events of a session; the model's text is printed while it arrives."""

    def __init__(self, console: Console, calls: ToolCalls) -> None:
        self._console = console
        self._live = ""
        self._mid_line = False
        self._calls = calls
        self.last_error: str | None = None
        """Message of the last error that was printed."""

    def show(self, event: p.AnyEvent) -> None:
        """Print one event."""
        if isinstance(event, p.TextDelta):
            self._delta(event.data.text)
        elif isinstance(event, p.Text) and event.data.parent_tool_use_id is None:
            self._whole(event.data.text)
        elif (line := self._line(event)) is not None:
            if self._mid_line:
                self._console.print()
                self._mid_line = False
            self._console.print(line)

    def _delta(self, text: str) -> None:
        if not self._live:
            self._console.print()
        self._console.print(Text(visible(text)), end="", soft_wrap=True)
        self._live += text
        self._mid_line = True

    def _whole(self, text: str) -> None:
        # Live text may have been dropped on the way, so the rest of the whole text is printed.
        rest = text[len(self._live) :] if self._live and text.startswith(self._live) else f"\n{text}"
        self._console.print(Text(visible(rest)), soft_wrap=True)
        self._live, self._mid_line = "", False

    def _line(self, event: p.AnyEvent) -> RenderableType | None:
        match event:
            case p.Start():
                data = event.data
                where = f"{visible(data.model)} in {visible(data.cwd)}"
                return Text(f"● {where}{' (resumed)' if data.resumed else ''}", style="dim")
            case p.ToolUse():
                return self._tool_use(event.data)
            case p.ToolResult():
                return self._tool_result(event.data)
            case p.Thinking():
                return Text(f"  {visible(event.data.text)[:_LINE]}", style="dim italic")
            case p.Text():
                return self._indented(event.data.parent_tool_use_id, Text(visible(event.data.text), style="cyan"))
            case p.ApprovalResolved():
                by = f" by {visible(event.data.decided_by)}" if event.data.decided_by else ""
                style = "green" if event.data.decision.startswith("allow") else "yellow"
                edit = f": {headline(event.data.updated_input)}"[:_LINE] if event.data.updated_input else ""
                return Text(f"  ⏸ {event.data.decision}{by} after {event.data.wait_ms / 1e3:.1f} s{edit}", style=style)
            case p.BackgroundTask():
                code = f" with exit code {event.data.exit_code}" if event.data.exit_code else ""
                text = f"  ⧖ in the background, {event.data.state}{code}: {visible(event.data.description)}"
                return Text(text.replace("\n", " ⏎ ")[:_LINE], style="cyan")
            case p.QuestionResolved():
                return Text(f"  ⏸ {event.data.decision}: {visible(str(event.data.answers or ''))}", style="green")
            case p.Result() if event.data.structured_output is not None:
                answer = json.dumps(event.data.structured_output, indent=2, ensure_ascii=False)
                return Text(visible(answer), style="cyan")
            case p.TurnStart() if event.data.attachments:
                names = ", ".join(map(_described, event.data.attachments))
                return Text(f"  attached {names}"[: 5 * _LINE], style="dim")
            case p.Error():
                self.last_error = event.data.message
                retry = " (may succeed if tried again)" if event.data.retryable else ""
                return Text(f"✗ {event.data.error_type}: {visible(event.data.message)}{retry}", style="bold red")
            case p.Log():
                return Text(f"  {event.data.stream}: {visible(event.data.text)[:_LINE]}", style="dim")
            case _:
                return None

    def _tool_use(self, data: p.ToolUseData) -> RenderableType:
        line = Text("⏵ ", style="bold magenta")
        line.append(visible(data.name), style="bold magenta")
        line.append(f" {headline(data.input)}")
        line.truncate(_LINE, overflow="ellipsis")
        return self._indented(data.parent_tool_use_id, line)

    def _tool_result(self, data: p.ToolResultData) -> RenderableType:
        lines = visible(content_text(data.content)).strip().split("\n")
        shown = [line[:_LINE] for line in lines[:_RESULT_LINES] if line]
        more = f" (+{len(lines) - _RESULT_LINES} lines)" if len(lines) > _RESULT_LINES else ""
        by = f" (by {data.denied_by})" if data.denied_by else ""
        mark = f"✗ {data.error_type or 'error'}{by}" if data.is_error else "✓"
        call = self._calls.get(data.tool_use_id)
        name, depth = (visible(call.name), call.depth) if call is not None else ("", 0)
        head = Text(
            f"{mark} {name} {data.duration_ms:.0f} ms, {data.bytes} bytes{more}",
            style="red" if data.is_error else "green",
        )
        body = Text("\n".join(shown), style="dim")
        return Group(_shifted(head, depth), _shifted(body, depth + 1)) if shown else _shifted(head, depth)

    def _indented(self, parent: str | None, line: Text) -> Text:
        call = self._calls.get(parent)
        return _shifted(line, call.depth + 1 if call is not None else 0)


def _described(attachment: AttachmentView) -> str:
    about = f"{attachment.media_type}, {attachment.size:,} bytes"
    name = visible(attachment.name or "").replace("\n", " ⏎ ")
    return f"{name} ({about})" if name else about


def _shifted(text: Text, depth: int) -> Text:
    shifted = Text("\n").join(Text("  " * depth + " ") + line for line in text.split("\n"))
    shifted.no_wrap = True
    shifted.overflow = "ellipsis"
    return shifted


def headline(tool_input: Mapping[str, Any]) -> str:
    """Return the most informative argument of a tool call's input, such as its command, in one line."""
    for key in ("command", "file_path", "pattern", "description", "url", "query", "prompt"):
        if isinstance(value := tool_input.get(key), str):
            return visible(value).replace("\n", " ⏎ ")
    return visible(json.dumps(tool_input)) if tool_input else ""


def content_text(content: object) -> str:
    """Return the text of a tool result's content; other blocks as their type in brackets."""
    match content:
        case str():
            return content
        case list():
            return "\n".join(content_text(block) for block in cast("list[object]", content))
        case {"text": str(text)}:
            return text
        case {"type": str(kind)}:
            return f"[{kind}]"
        case _:
            return ""


def approval_card(data: p.ApprovalRequestData) -> Panel:
    """Return a panel for an approval request, with the exact input of the tool, or the diff of an edit."""
    parts: list[RenderableType] = []
    if data.reason:
        parts.append(Text(visible(data.reason), style="italic"))
    parts.append(_exact_input(data))
    rules = [visible(rule) for rule in remembered_rules(data)]
    if rules:
        parts.append(Text(f"remembering it would also allow: {', '.join(rules)}", style="dim"))
    return Panel(Group(*parts), title=f"[bold]Allow {visible(data.tool_name)}?[/]", border_style="yellow")


def _exact_input(data: p.ApprovalRequestData) -> RenderableType:
    tool_input = data.input
    match data.tool_name, tool_input:
        case "Bash", {"command": str(command)}:
            return Text(f"$ {visible(command)}", style="bold")
        case "Edit", {"file_path": str(path), "old_string": str(old), "new_string": str(new)}:
            return _diff(path, old, new)
        case "Write", {"file_path": str(path), "content": str(content)}:
            return _diff(path, "", content)
        case _:
            return Text(visible(json.dumps(tool_input, indent=2, ensure_ascii=False)))


def _diff(path: str, old: str, new: str) -> Text:
    text = Text(f"{visible(path)}\n", style="bold")
    for line in difflib.unified_diff(old.split("\n"), new.split("\n"), lineterm="", n=3):
        if line.startswith(("---", "+++", "@@")):
            continue
        style = "green" if line.startswith("+") else "red" if line.startswith("-") else "dim"
        text.append(visible(line) + "\n", style=style)
    return text


def remembered_rules(data: p.ApprovalRequestData) -> list[str]:
    """Return, as readable texts, what ``remember`` would allow for the rest of the session."""
    rules: list[str] = []
    for suggestion in remembered(data.suggestions, lambda each: each.get("type")):
        for rule in suggestion.get("rules") or ():
            content = rule.get("ruleContent")
            rules.append(f"{rule.get('toolName')}({content})" if content else str(rule.get("toolName")))
        rules += [f"the directory {directory}" for directory in suggestion.get("directories") or ()]
        if mode := suggestion.get("mode"):
            rules.append("all edits (mode acceptEdits)" if mode == "acceptEdits" else f"mode {mode}")
    return rules


def dollars(amount: float | Decimal) -> str:
    """Return an amount of US dollars as a text such as ``$1.25``, with two to nine decimals."""
    whole, _, decimals = f"{amount:,.9f}".partition(".")
    return f"${whole}.{decimals.rstrip('0').ljust(2, '0')}"


def summary_line(
    summary: Summary, cost_usd: float, input_tokens: int | None = None, output_tokens: int | None = None
) -> Text:
    """Return a summary of a run's time, tokens (by default those in its spans), cost and tool calls."""
    total = summary.total or 1.0
    shares = (
        ("model", summary.model, "blue"),
        ("tools", summary.tools, "green"),
        ("waiting for a person", summary.waiting, "yellow"),
        # Time outside of requests and calls: sandbox, runner and CLI start and end.
        ("start-up and other", summary.other, "dim"),
    )
    line = Text(f"{summary.total:.1f} s: ")
    for n, (name, seconds, style) in enumerate(shares):
        line.append(f"{', ' if n else ''}{name} {seconds / total:.0%}", style=style)
    line.append(
        f"\n{summary.input_tokens if input_tokens is None else input_tokens} tokens in,"
        f" {summary.output_tokens if output_tokens is None else output_tokens} out, ${cost_usd:.4f},"
        f" {summary.tool_calls} tool call{'' if summary.tool_calls == 1 else 's'}, {summary.approvals} asked"
    )
    return line


def delivery_line(exporter: str, counts: Mapping[str, int]) -> Text:
    """Return a line with the delivery counts of an exporter, in yellow if spans were not delivered."""
    arrived = {name: counts.get(name, 0) for name in ("exported", "retried", "spooled")}
    rest = {name: count for name, count in counts.items() if count and name not in arrived}
    parts = [f"{count} {name}" for name, count in arrived.items() if count or name == "exported"]
    for name, count in rest.items():
        what, _, reason = name.partition(": ")
        parts.append(f"{count} {what} ({reason})" if reason else f"{count} {what}")
    if not any(counts.values()):
        parts.append("the trace was not sampled")
    return Text(visible(f"telemetry: {exporter}: {', '.join(parts)}"), style="yellow" if rest else "dim")

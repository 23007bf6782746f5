"""Measure the time that hooks from settings take on tool calls. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from claude_agent_sdk import HookEventMessage

from ._state import HookTime, ToolCall


@dataclass(slots=True)
class HookTimes:
    """The times of the hooks that run, by the hook's id."""

    _running: dict[str, HookTime] = field(default_factory=dict[str, HookTime])

    def observe(self, message: HookEventMessage, calls: Iterable[ToolCall], now: int) -> None:
        """Note when a hook starts and ends on a call, which is the first one of its tool that waits for such a hook.

        The CLI names the tool, and not the call. ``now`` is in nanoseconds.
        """
        key = str(message.data.get("hook_id"))
        if message.subtype == "hook_response":
            if (time := self._running.pop(key, None)) is not None:
                time.end = now
        elif (time := _time_of(message, calls)) is not None:
            time.start = time.start or now
            self._running[key] = time


def _time_of(message: HookEventMessage, calls: Iterable[ToolCall]) -> HookTime | None:
    name = str(message.data.get("hook_name") or "").partition(":")[2]
    waiting = (call for call in calls if call.name == name and not call.result_seen)
    match message.hook_event_name:
        case "PreToolUse":
            return next((call.hooks_before for call in waiting if call.begun is None), None)
        case "PostToolUse" | "PostToolUseFailure":
            # Our own hook runs beside the others, so it may not have reported yet that the tool ran.
            return next((call.hooks_after for call in waiting), None)
        case _:
            return None

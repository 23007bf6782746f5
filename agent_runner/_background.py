"""Follow the CLI's background tasks: commands and subagents that continue when their tool call has returned.

It relies on an order of messages that was observed with SDK 0.2.189 and CLI 2.1.332. ``background_tasks_changed`` lists
all tasks in the background after each change. When a task begins, it comes before the message about that task; when a
task ends, it comes after the messages that report its outcome.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from claude_agent_sdk import TaskStartedMessage, TaskUpdatedMessage

from ._agents import Agents
from ._events import Events
from ._tool_calls import OpenCalls
from ._turns import Turns
from .contract import genai
from .contract.classify import classify
from .contract.protocol import BackgroundTaskData, TaskState
from .contract.spans import Spans

_STATES: dict[str, TaskState] = {
    "completed": "completed",
    "failed": "failed",
    "killed": "stopped",
    "stopped": "stopped",
}
# The end of a summary: `… completed (exit code 0)`, `… failed with exit code 3`.
_EXIT_CODE = re.compile(r"exit code (\d+)\)?$")

MAX_DESCRIPTION = 1000


@dataclass(slots=True)
class RunningTask:
    """A background task that has not ended, and what is known of its end."""

    id: str
    kind: str
    description: str
    tool_use_id: str | None = None
    state: TaskState = "completed"
    """State to report when the task ends."""
    exit_code: int | None = None
    is_stopping: bool = False
    """True when the CLI was asked to stop it."""
    is_told: bool = False
    """True when the CLI, in a turn of its own, will tell the model that it was stopped."""

    def data(self, state: TaskState) -> BackgroundTaskData:
        """Return the data of the event that reports this state."""
        return BackgroundTaskData(
            task_id=self.id,
            kind=self.kind,
            state=state,
            description=self.description,
            tool_use_id=self.tool_use_id,
            exit_code=self.exit_code,
        )


@dataclass(slots=True)
class BackgroundTasks:
    """The tasks of a conversation: ties them to their tool calls, and reports those that run in the background."""

    events: Events
    spans: Spans
    turns: Turns
    agents: Agents
    calls: OpenCalls
    running: dict[str, RunningTask] = field(default_factory=dict[str, RunningTask])
    """The tasks in the background that have not ended, by id."""

    @property
    def is_stopping(self) -> bool:
        """Return whether the CLI was asked to stop a subagent that has not ended."""
        return any(task.is_stopping for task in self.running.values())

    def interrupted(self) -> None:
        """Note that the CLI is interrupted, which stops the subagents and no command."""
        for task in self.running.values():
            task.is_stopping = task.kind == "local_agent"

    @contextmanager
    def stopping(self, task_id: str) -> Generator[None]:
        """Note that a task is stopped by itself in the block; raise `ValueError` if no such task runs.

        If the block raises, the task goes on.
        """
        task, calls = self.running.get(task_id), self.calls.of_tasks([task_id])
        if task is None and not calls:
            raise ValueError(f"no task {task_id} is running")
        before = [call.refusal for call in calls]
        try:
            if task is not None and task.kind == "local_agent":
                task.is_stopping = task.is_told = True
            for call in calls:
                call.refusal = "cancelled"
            yield
        except BaseException:
            if task is not None:
                task.is_stopping = task.is_told = False
            for call, refusal in zip(calls, before, strict=True):
                call.refusal = refusal
            raise

    def started(self, message: TaskStartedMessage) -> None:
        """Note which task a call is; the task of a subagent begins the subagent."""
        call_id = message.tool_use_id
        call = self.calls.by_id.get(call_id or "")
        if call is None or call_id is None:
            return
        call.task = message.task_id
        if message.task_type == "local_agent":
            self.agents.subagent(call_id, call, message.data.get("subagent_type"))
            self.agents.chats.place_waiting()
        self._report_running(message.task_id)

    def updated(self, message: TaskUpdatedMessage) -> None:
        """Take a change of a task, such as its move to the background."""
        self.settle(message.task_id, message.status)
        if message.patch.get("is_backgrounded") is True:
            self._report_running(message.task_id)

    def settle(self, task_id: str, status: str | None, summary: str = "") -> None:
        """Note how a task has ended, if this status is the last one of a task."""
        if (task := self.running.get(task_id)) is not None and status in _STATES:
            task.state = _STATES[status]
            if task.kind == "local_bash" and (found := _EXIT_CODE.search(summary)):
                task.exit_code = int(found[1])

    def listed(self, tasks: Iterable[Mapping[str, Any]]) -> None:
        """Take the CLI's list of all tasks in the background; report those that have ended since the last list."""
        listed = {str(task.get("task_id")): task for task in tasks}
        ended = [self.running.pop(key) for key in list(self.running) if key not in listed]
        for key, task in listed.items():
            description = str(task.get("description") or "")[:MAX_DESCRIPTION]
            self.running.setdefault(key, RunningTask(key, str(task.get("task_type") or ""), description))
        for task in ended:
            self._end(task)

    def abort(self) -> None:
        """Report that the end of the run stops all tasks."""
        for task in self.running.values():
            self._report(task, "stopped", self.spans.clock())
        self.running.clear()

    def _report_running(self, task_id: str) -> None:
        """Report a task that has begun in the background or was moved there; its call's span stays open."""
        task = self.running.get(task_id)
        if task is None or task.tool_use_id is not None:
            return
        calls = self.calls.by_id
        task.tool_use_id = next((key for key, call in calls.items() if call.task == task_id), None)
        if task.tool_use_id is not None:
            calls[task.tool_use_id].span.attributes["tool.background"] = True
        self._report(task, "running", self.spans.clock())

    def _report(self, task: RunningTask, state: TaskState, now: int) -> None:
        """Report a task's state; at its end, put its time, which includes that after the call's result, on the span."""
        call = self.calls.by_id.get(task.tool_use_id or "")
        self.events.emit(task.data(state), call.span if call is not None else self.turns.current_span)
        if call is not None and state != "running":
            ms = (now - call.span.start) / 1e6 - call.wait_ms
            call.span.attributes["tool.execution_ms"] = round(max(0.0, ms), 3)

    def _end(self, task: RunningTask) -> None:
        """Report the end of a background task, and end its call's span."""
        now = self.spans.clock()
        self._report(task, task.state, now)
        # The CLI then begins a turn of its own, or informs the model in the present turn.
        self.turns.own_expected |= task.is_told or task.state != "stopped"
        call_id = task.tool_use_id or ""
        if (call := self.calls.by_id.get(call_id)) is None:
            return
        genai.set_exit_code(call.span, task.exit_code)
        if task.state != "completed":
            agent = self.agents.subagents.get(call_id)
            failure = classify(tool="failed" if task.state == "failed" else "cancelled")
            failure = agent.failure or failure if agent is not None else failure
            call.span.fail(failure.error_type, f"{call.name}: {task.state} in the background")
        if task.state == "stopped":
            for each in self.calls.of_tasks([task.id]):
                if each is not call:
                    each.refusal = "cancelled"
                    each.span.fail("cancelled", f"{each.name}: cancelled")  # its result may not arrive any more
        if call.result_seen:
            self.calls.close(call_id, end=now)

"""Follow the CLI's background tasks: commands and subagents that continue when their tool call has returned.

It relies on an order of messages that was observed with SDK 0.2.187 and CLI 2.1.330. ``background_tasks_changed`` lists
all tasks in the background after each change. When a task begins, it comes before the message about that task; when a
task ends, it comes after the messages that report its outcome.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .contract.protocol import BackgroundTaskData, TaskState

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
    """The background tasks of a conversation that run."""

    running: dict[str, RunningTask] = field(default_factory=dict[str, RunningTask])
    """The tasks by id."""

    def update(self, tasks: Iterable[Mapping[str, Any]]) -> list[RunningTask]:
        """Take the CLI's list of all tasks in the background; return those that have ended since the last list."""
        listed = {str(task.get("task_id")): task for task in tasks}
        ended = [self.running.pop(key) for key in list(self.running) if key not in listed]
        for key, task in listed.items():
            description = str(task.get("description") or "")[:MAX_DESCRIPTION]
            self.running.setdefault(key, RunningTask(key, str(task.get("task_type") or ""), description))
        return ended

    def settle(self, task_id: str, status: str | None, summary: str = "") -> None:
        """Note how a task has ended, if this status is the last one of a task."""
        if (task := self.running.get(task_id)) is not None and status in _STATES:
            task.state = _STATES[status]
            if task.kind == "local_bash" and (found := _EXIT_CODE.search(summary)):
                task.exit_code = int(found[1])

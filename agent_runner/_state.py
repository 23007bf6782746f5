"""The state of a conversation: its tool calls, its agents, its turn and its outcome so far. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ._model_access import ModelVerdict
from .contract.classify import Failure
from .contract.protocol import DeniedBy, ErrorType
from .contract.spans import Span

MAX_INPUT = 4 * 1024 * 1024
"""Maximum bytes of JSON of an input that a person may approve, and of a changed input that a result reports.

An event with a longer one could be left out.
"""


@dataclass(slots=True)
class HookTime:
    """The time from the start of the first to the end of the last hook of one kind on a call, in nanoseconds."""

    start: int = 0
    end: int = 0

    @property
    def ms(self) -> float:
        return max(0, self.end - self.start) / 1e6

    def add(self, start: int, end: int) -> None:
        """Add the time of one hook."""
        self.start, self.end = min(self.start or start, start), max(self.end, end)


@dataclass(slots=True, eq=False)
class ToolCall:
    """The state of a tool call that has not ended."""

    span: Span
    name: str
    input: dict[str, Any]
    executed_input: dict[str, Any] | None = None
    """The input that the tool ran with, if it is not the model's."""
    exit_code: int | None = None
    execution_ms: float | None = None
    output_size: int = 0
    """Bytes of the whole output, or 0 if the CLI does not report it."""
    wait_ms: float = 0.0
    begun: int | None = None
    """Time when a person was first asked, or else the tool began to run: until then, the call was in the queue."""
    hooks_before: HookTime = field(default_factory=HookTime)
    hooks_after: HookTime = field(default_factory=HookTime)
    refusal: str | None = None
    denied_by: DeniedBy | None = None
    task: str | None = None
    """Id of the CLI's task for the call, a command or a subagent, which may continue after the call's result."""
    result_seen: bool = False


@dataclass(slots=True)
class AgentState:
    """The state of one agent, main or sub: its own span and its current model request."""

    span: Span
    turn: TurnState | None = None
    """The turn of the main agent; None for a subagent."""
    chat: Span | None = None
    message_id: str | None = None
    answer: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The blocks of the answer to the current model request so far, in the form of the Messages API."""
    text: str = ""
    """The agent's last text."""
    failure: Failure | None = None
    """Failure of a subagent's model request, which ends the subagent."""
    boundary: int = 0
    """Time when the next model request may have begun; used where no partial message tells it."""


@dataclass(slots=True)
class TurnState:
    """The state of the current turn."""

    number: int
    span: Span
    is_prompted: bool = True
    """False for a turn that the CLI began by itself."""
    interrupted: bool = False
    requested: bool = False
    error_type: ErrorType | None = None
    given_up: ModelVerdict | None = None
    """Reason to interrupt the CLI, as a retry of its model request cannot succeed."""


@dataclass(slots=True)
class RunOutcome:
    """The outcome of the turns so far."""

    turns: int = 0
    failed: bool = False
    interrupted: bool = False

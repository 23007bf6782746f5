"""The exceptions of this package, in one hierarchy.

::

    SandspanError
    ├── ConfigurationError        a bad option or value, found before anything starts
    ├── SandboxError              the sandbox failed
    │   ├── SandboxStartError     the sandbox could not be created, or the runner could not be started in it
    │   ├── SandboxGoneError      the sandbox ended during the session: its time was up, or it was removed
    │   ├── StreamLostError       the connection to the sandbox was lost; a session connects again by itself
    │   ├── RunnerDiedError       the runner ended without an ``end`` event (killed, out of memory)
    │   ├── TemplateBuildError    E2B could not build the template (`host_client.sandbox.e2b.template`)
    │   └── FileRefusedError      the path names no regular file in the working directory
    │       ├── FileMissingError  there is no file of that name
    │       └── FileTooLargeError the file is larger than the limit of the call
    ├── SessionClosedError        the session accepts no more commands
    ├── NotWaitingError           the approval or question is unknown, or was resolved already
    ├── NotAskedError             the reply does not fit its request, which still waits
    ├── CommandRefusedError       the runner refused a command to a running agent, or does not know it
    ├── NoAnswerError             the runner did not answer a command in time; it may have been carried out
    ├── FolderChangedError        files of a folder changed since it was sent; no change was applied (`Changes.apply`)
    ├── AgentError                the agent's turn ended in an error (`AgentResult.raise_for_error`)
    └── LangfuseError             Langfuse cannot be reached, or refuses (`host_client.dashboards.langfuse`)

`SandspanError.error_type` is one of the contract's error types.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent_runner.contract.protocol import ErrorType


class SandspanError(Exception):
    """The base class of this package's exceptions."""

    error_type: ErrorType = "internal"


class ConfigurationError(SandspanError, ValueError):
    """An option or value is wrong; the message says which values are right."""

    error_type: ErrorType = "invalid_request"


class SandboxError(SandspanError):
    """The sandbox failed; ``error_type`` is the cause, ``sandbox`` if it is unknown."""

    error_type: ErrorType = "sandbox"

    def __init__(self, message: str, error_type: ErrorType | None = None) -> None:
        super().__init__(message)
        self.error_type = error_type or type(self).error_type


class SandboxStartError(SandboxError):
    """The sandbox could not be created, or the runner could not be started in it."""


class SandboxGoneError(SandboxError):
    """The sandbox ended during the session: its time was up, or it was removed."""


class StreamLostError(SandboxError):
    """The connection to a process in the sandbox was lost; the process may still run."""

    error_type: ErrorType = "network"


class RunnerDiedError(SandboxError):
    """The runner ended without an ``end`` event; ``exit_code`` is negative for a signal."""

    def __init__(self, message: str, error_type: ErrorType, exit_code: int) -> None:
        super().__init__(message, error_type)
        self.exit_code = exit_code


class FileRefusedError(SandboxError):
    """The file cannot be read: it is not a regular file, or not in the working directory."""

    error_type: ErrorType = "invalid_request"


class FileMissingError(FileRefusedError):
    """The working directory has no file of that name."""


class FileTooLargeError(FileRefusedError):
    """The file is larger than the limit of the call."""


class SessionClosedError(SandspanError):
    """The session accepts no more commands."""

    error_type: ErrorType = "cancelled"


class NotWaitingError(SandspanError):
    """The approval or question is unknown, or was resolved already."""

    error_type: ErrorType = "protocol"


class NotAskedError(SandspanError, ValueError):
    """The reply does not fit its request: it answers another question, or approves another input.

    The request still waits.
    """

    error_type: ErrorType = "protocol"


class CommandRefusedError(SandspanError):
    """The runner refused a command that changes or asks a running agent, or does not know it."""

    error_type: ErrorType = "invalid_request"


class NoAnswerError(SandspanError):
    """The runner did not answer a command in time, which may still be carried out."""

    error_type: ErrorType = "timeout"


class FolderChangedError(SandspanError):
    """Files of a folder are not as they were when its session began, so no change was applied to it.

    ``paths`` are these files, relative to the folder.
    """

    error_type: ErrorType = "invalid_request"

    def __init__(self, folder: Path, paths: Sequence[str]) -> None:
        super().__init__(f"nothing was applied to {folder}: since the session began, {in_words(paths)} changed there")
        self.folder, self.paths = folder, tuple(paths)


def in_words(paths: Sequence[str]) -> str:
    """Return the first paths for a message, and the number of the others."""
    return ", ".join(map(repr, paths[:5])) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


class AgentError(SandspanError):
    """The agent's turn ended in an error."""

    def __init__(self, message: str, error_type: ErrorType) -> None:
        super().__init__(message)
        self.error_type = error_type

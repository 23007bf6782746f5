"""All that this package raises, in one hierarchy.

::

    SandspanError
    ├── ConfigurationError        a bad option or value, known before anything starts
    ├── SandboxError              the sandbox failed
    │   ├── SandboxStartError     it could not be created, or the runner could not be started in it
    │   ├── SandboxGoneError      it ended under the session: its time was up, or somebody ended it
    │   ├── StreamLostError       the connection to it was lost; a session attaches again by itself
    │   ├── RunnerDiedError       the runner ended without saying so (killed, out of memory)
    │   ├── TemplateBuildError    E2B could not build the template (`host_client.sandbox.e2b.template`)
    │   └── FileRefusedError      a file that is not given out: it is none, or not in the working directory
    │       ├── FileMissingError  there is none of that name
    │       └── FileTooLargeError it is larger than was asked for
    ├── SessionClosedError        the session takes no more commands
    ├── NotWaitingError           the approval or question is unknown, or was resolved already
    ├── NotAskedError             an answer to what the question did not ask; the question waits on
    ├── AgentError                the agent's turn ended in an error (`AgentResult.raise_for_error`)
    └── LangfuseError             Langfuse cannot be reached, or refuses (`host_client.dashboards.langfuse`)

`SandspanError.error_type` is one of the contract's error types.
"""

from __future__ import annotations

from agent_runner.contract.protocol import ErrorType


class SandspanError(Exception):
    """The base of all of them."""

    error_type: ErrorType = "internal"


class ConfigurationError(SandspanError, ValueError):
    """A bad option or value; the message says what it takes."""

    error_type: ErrorType = "invalid_request"


class SandboxError(SandspanError):
    """The sandbox failed; ``error_type`` says why, where that is known."""

    error_type: ErrorType = "sandbox"

    def __init__(self, message: str, error_type: ErrorType | None = None) -> None:
        super().__init__(message)
        self.error_type = error_type or type(self).error_type


class SandboxStartError(SandboxError):
    """The sandbox could not be created, or the runner could not be started in it."""


class SandboxGoneError(SandboxError):
    """The sandbox ended under the session: its time was up, or somebody ended it."""


class StreamLostError(SandboxError):
    """The connection to a process in the sandbox was lost while the process may live on."""

    error_type: ErrorType = "network"


class RunnerDiedError(SandboxError):
    """The runner ended without an ``end`` event; ``exit_code`` is negative for a signal."""

    def __init__(self, message: str, error_type: ErrorType, exit_code: int) -> None:
        super().__init__(message, error_type)
        self.exit_code = exit_code


class FileRefusedError(SandboxError):
    """A file that is not given out: it is no regular file, or not in the working directory."""

    error_type: ErrorType = "invalid_request"


class FileMissingError(FileRefusedError):
    """The working directory has no file of that name."""


class FileTooLargeError(FileRefusedError):
    """The file is larger than was asked for."""


class SessionClosedError(SandspanError):
    """The session takes no more commands."""

    error_type: ErrorType = "cancelled"


class NotWaitingError(SandspanError):
    """The approval or question is unknown, or was resolved already."""

    error_type: ErrorType = "protocol"


class NotAskedError(SandspanError, ValueError):
    """A reply that does not fit its request: an answer to another question, an approval of another input.

    The request waits on.
    """

    error_type: ErrorType = "protocol"


class AgentError(SandspanError):
    """The agent's turn ended in an error."""

    def __init__(self, message: str, error_type: ErrorType) -> None:
        super().__init__(message)
        self.error_type = error_type

"""Note why a run has failed, from the exceptions of the SDK and of the runner itself."""

from __future__ import annotations

import errno
from collections.abc import Callable

from claude_agent_sdk import CLINotFoundError, ProcessError

from ._config import ConfigError
from .contract.classify import Failure, classify
from .contract.oom import oom_kills
from .contract.protocol import ErrorData

_REFUSALS = (
    "No conversation found",
    "--resume requires a valid session ID",
    "Resume rejected by --resume-drops-turn",
    "Failed to load settings",
)
"""Texts of the CLI and the SDK, which have no codes for them, when they end at once because of a bad option."""

_NOT_A_PROGRAM = (errno.EACCES, errno.ENOEXEC, errno.ENOTDIR)
"""Errors of starting a file that will never be a program."""


class RunFailure:
    """The failure of a run, if there is one; ``on_failure`` is called for it."""

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self.data: ErrorData | None = None
        self.misconfigured = False
        self.is_final = False
        """True when the run ends, so that the end of the CLI is no failure any more."""
        self._on_failure = on_failure
        self._oom_before = oom_kills()

    def of_cli(self, error: Exception, refusal: str | None = None) -> None:
        """Take an exception of the CLI or the SDK; the first one counts.

        ``refusal`` is the CLI's own reason if it did not start because of a bad option.
        """
        if self.data is None and not self.is_final:
            if refusal is not None:
                error = ConfigError(f"Claude Code does not start with these options: {refusal}")
            self.misconfigured = isinstance(error, ConfigError)
            failure = _classified(error, oom_killed=oom_kills() > self._oom_before)
            self.data = ErrorData(error_type=failure.error_type, message=str(error)[:1000], retryable=failure.retryable)
        self._on_failure()

    def of_runner(self, error: Exception) -> None:
        """Take a bug in the runner, which must not prevent the ``end`` event."""
        self.data = ErrorData(error_type="internal", message=f"the runner failed: {error!r}"[:1000])
        self._on_failure()


def _classified(error: Exception, *, oom_killed: bool) -> Failure:
    if isinstance(error, ConfigError) or any(text in str(error) for text in _REFUSALS):
        return Failure("invalid_request", False)
    if isinstance(error, CLINotFoundError) or getattr(error.__cause__, "errno", None) in _NOT_A_PROGRAM:
        return Failure("cli_crash", False)
    if isinstance(error, ProcessError) and error.exit_code == -9:
        return classify(oom_killed=oom_killed or None, process="cli")
    return classify(process="cli")

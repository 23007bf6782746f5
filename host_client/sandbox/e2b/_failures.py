"""Translates the E2B SDK's exceptions to `SandboxError` and its subclasses, by tables.

The SDK's class hierarchy misleads in places: a sandbox that no longer exists is a ``TimeoutException``, the errors of a
wrong key and a busy service are not ``SandboxException``, and a lost connection is any exception of the HTTP library.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import httpx
from connectrpc.errors import ConnectError
from e2b import (
    AuthenticationException,
    InvalidArgumentException,
    NotEnoughSpaceException,
    NotFoundException,
    RateLimitException,
    SandboxException,
    SandboxNotFoundException,
    SandboxNotRunningException,
    SandboxUnreachableException,
    TimeoutException,
)
from e2b.exceptions import ServiceBusyException

from agent_runner.contract.protocol import ErrorType
from host_client.errors import SandboxError, SandboxGoneError, SandboxStartError, StreamLostError


class Cause(NamedTuple):
    """The translation of one exception of the SDK: our error class, its ``error_type``, and the cause or advice."""

    raises: type[SandboxError]
    error_type: ErrorType
    advice: str


_WHERE = "check E2B_API_URL, E2B_DOMAIN, the proxy variables and the network"
_GONE = "the sandbox no longer exists: its time was up (--timeout), or it was removed"

_BY_CLASS: tuple[tuple[type[Exception], Cause], ...] = (
    (SandboxNotRunningException, Cause(SandboxGoneError, "sandbox", _GONE)),
    (SandboxNotFoundException, Cause(SandboxGoneError, "sandbox", _GONE)),
    (SandboxUnreachableException, Cause(StreamLostError, "network", "the sandbox cannot be reached")),
    (TimeoutException, Cause(StreamLostError, "timeout", "E2B took too long to answer")),
    (
        AuthenticationException,
        Cause(SandboxStartError, "authentication", "E2B refused the key: set E2B_API_KEY to one of e2b.dev/dashboard"),
    ),
    (
        RateLimitException,
        Cause(SandboxStartError, "rate_limit", "E2B refused for now: too many requests, or too many sandboxes at once"),
    ),
    (ServiceBusyException, Cause(SandboxStartError, "overloaded", "E2B is busy: try again later")),
    (NotEnoughSpaceException, Cause(SandboxError, "sandbox", "the sandbox's disk is full")),
    (NotFoundException, Cause(StreamLostError, "sandbox", "the process in the sandbox no longer exists")),
    (InvalidArgumentException, Cause(SandboxStartError, "invalid_request", "E2B refused the request")),
)

_BY_WORDS: tuple[tuple[str, Cause], ...] = (
    (
        "network transform rules are not available",
        Cause(
            SandboxStartError,
            "permission_denied",
            "E2B does not let this team use its proxy for the key (--keys e2b-secrets): use --keys gateway,"
            " or ask E2B for network transform rules",
        ),
    ),
    (
        "network transform rules are not supported",
        Cause(
            SandboxStartError,
            "invalid_request",
            "the template is too old for --keys e2b-secrets: build it again with `host_client template build`,"
            " or use --keys gateway",
        ),
    ),
)
"""Causes by parts of E2B's message, in lower case, where the HTTP status is ambiguous."""

_BY_STATUS: dict[int, Cause] = {
    400: Cause(SandboxStartError, "invalid_request", "E2B refused the request"),
    403: Cause(SandboxStartError, "permission_denied", "the E2B key may not do this"),
    404: Cause(SandboxStartError, "invalid_request", f"E2B does not know this, or another server answered: {_WHERE}"),
    500: Cause(SandboxStartError, "sandbox", "E2B failed: try again later"),
}

NO_TEMPLATE = "E2B has no such template: build it with `host_client template build`, or name another with --template"
_LOST = Cause(StreamLostError, "network", f"E2B cannot be reached: {_WHERE}")
_NO_E2B = Cause(StreamLostError, "network", f"the server that answered is not E2B: {_WHERE}")


# The query of a URL is of no use in a message, and may hold ids.
_QUERY = re.compile(r"\?[^\s)]+")

_THEIRS = (
    *(SandboxException, AuthenticationException, ServiceBusyException, ConnectError, httpx.HTTPError, OSError),
    json.JSONDecodeError,  # the page of a proxy, in place of E2B's JSON
)


def failure_of(error: Exception) -> SandboxError:
    """Return the `SandboxError` for an exception of the SDK; its message ends with the SDK's own, in brackets."""
    cause = _cause_of(error)
    text = _QUERY.sub("", " ".join(str(error).split()))[:500]
    return cause.raises(f"{cause.advice} ({text})" if text else cause.advice, cause.error_type)


def _cause_of(error: Exception) -> Cause:
    for kind, cause in _BY_CLASS:
        if isinstance(error, kind):
            return cause
    if isinstance(error, SandboxException):
        text = str(error).lower()
        for words, cause in _BY_WORDS:
            if words in text:
                return cause
        unknown = Cause(SandboxError, "sandbox", "E2B failed")
        return _BY_STATUS.get(error.status_code or 0, unknown)
    # For an unreadable or missing body the SDK raises a bare Exception; all others are the HTTP library's.
    return _NO_E2B if isinstance(error, json.JSONDecodeError) or type(error) is Exception else _LOST


class Translated:
    """A ``with`` block that raises our errors in place of the SDK's."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Raise our error for an exception of the SDK; other exceptions pass through."""
        if isinstance(error, _THEIRS) or type(error) is Exception:
            raise failure_of(error) from error

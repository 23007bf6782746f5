"""What the E2B SDK raises, as errors of ours: one table, most telling first.

The SDK's hierarchy misleads in places: a sandbox that is gone is a ``TimeoutException``, a wrong key and
a busy service are no ``SandboxException``, and a lost connection is whatever the HTTP library raised.
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
    """What an exception of the SDK means to a user: our error's class, its type, and what to do."""

    raises: type[SandboxError]
    error_type: ErrorType
    advice: str


_WHERE = "look at E2B_API_URL, E2B_DOMAIN, the proxy variables and the network"
_GONE = "the sandbox is gone: its time was up (--timeout), or somebody ended it"

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
    (NotFoundException, Cause(StreamLostError, "sandbox", "the process in the sandbox is gone")),
    (InvalidArgumentException, Cause(SandboxStartError, "invalid_request", "E2B refused the request")),
)

_BY_WORDS: tuple[tuple[str, Cause], ...] = (
    (
        "network transform rules are not available",
        Cause(
            SandboxStartError,
            "permission_denied",
            "this E2B team may not have E2B's proxy add the key (--keys e2b-secrets): use --keys gateway,"
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
"""In lower case, what E2B says where the status alone tells too little."""

_BY_STATUS: dict[int, Cause] = {
    400: Cause(SandboxStartError, "invalid_request", "E2B refused the request"),
    403: Cause(SandboxStartError, "permission_denied", "the E2B key may not do this"),
    404: Cause(SandboxStartError, "invalid_request", f"E2B does not know this, or it is no E2B: {_WHERE}"),
    500: Cause(SandboxStartError, "sandbox", "E2B failed: try again later"),
}

NO_TEMPLATE = "E2B has no such template: build it with `host_client template build`, or name another with --template"
_LOST = Cause(StreamLostError, "network", f"E2B cannot be reached: {_WHERE}")
_NO_E2B = Cause(StreamLostError, "network", f"what answers is no E2B: {_WHERE}")


# A URL's query says nothing to a person, and may hold ids.
_QUERY = re.compile(r"\?[^\s)]+")

_THEIRS = (
    *(SandboxException, AuthenticationException, ServiceBusyException, ConnectError, httpx.HTTPError, OSError),
    json.JSONDecodeError,  # a proxy's page
)


def failure_of(error: Exception) -> SandboxError:
    """Return our error for one of the SDK's; the SDK's own words follow what to do."""
    cause = _cause_of(error)
    said = _QUERY.sub("", " ".join(str(error).split()))[:500]
    return cause.raises(f"{cause.advice} ({said})" if said else cause.advice, cause.error_type)


def _cause_of(error: Exception) -> Cause:
    for kind, cause in _BY_CLASS:
        if isinstance(error, kind):
            return cause
    if isinstance(error, SandboxException):
        said = str(error).lower()
        for words, cause in _BY_WORDS:
            if words in said:
                return cause
        unknown = Cause(SandboxError, "sandbox", "E2B failed")
        return _BY_STATUS.get(error.status_code or 0, unknown)
    # A body that cannot be read, or none where there should be one, is a bare Exception; the rest is HTTP's.
    return _NO_E2B if isinstance(error, json.JSONDecodeError) or type(error) is Exception else _LOST


class Translated:
    """Raises our errors for the SDK's, in a ``with`` block."""

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Raise ours for theirs; let everything else pass."""
        if isinstance(error, _THEIRS) or type(error) is Exception:
            raise failure_of(error) from error

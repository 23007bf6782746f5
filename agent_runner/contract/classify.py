"""Classify failures as the contract's error types, by one table. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from .protocol import ErrorType


class Failure(NamedTuple):
    """An error type, and whether a retry may succeed."""

    error_type: ErrorType
    retryable: bool


BUDGET_SPENT = "the run's budget is spent"
"""The gateway's error message for a spent budget; the CLI repeats it in its own message about the API error."""

_TABLE: dict[tuple[str, object], Failure] = {
    ("budget_spent", True): Failure("budget_exceeded", False),
    # Why a turn ended, as the CLI reports it (ResultMessage.subtype, .terminal_reason).
    ("subtype", "error_max_turns"): Failure("max_turns", False),
    ("subtype", "error_max_budget_usd"): Failure("budget_exceeded", False),
    ("subtype", "error_max_structured_output_retries"): Failure("tool_error", True),
    ("reason", "aborted_tools"): Failure("cancelled", False),
    ("reason", "aborted_streaming"): Failure("cancelled", False),
    # The HTTP status of the model's API (ResultMessage.api_error_status, api_retry.error_status).
    ("status", 400): Failure("invalid_request", False),
    ("status", 401): Failure("authentication", False),
    ("status", 402): Failure("billing", False),
    ("status", 403): Failure("authentication", False),
    ("status", 404): Failure("invalid_request", False),
    ("status", 408): Failure("timeout", True),
    ("status", 413): Failure("invalid_request", False),
    ("status", 429): Failure("rate_limit", True),
    ("status", 500): Failure("overloaded", True),
    ("status", 502): Failure("network", True),
    ("status", 503): Failure("overloaded", True),
    ("status", 504): Failure("timeout", True),
    ("status", 529): Failure("overloaded", True),
    # The CLI's own label for an API error (AssistantMessage.error, api_retry.error).
    ("label", "authentication_failed"): Failure("authentication", False),
    ("label", "oauth_org_not_allowed"): Failure("authentication", False),
    ("label", "billing_error"): Failure("billing", False),
    ("label", "rate_limit"): Failure("rate_limit", True),
    ("label", "overloaded"): Failure("overloaded", True),
    ("label", "server_error"): Failure("overloaded", True),
    ("label", "invalid_request"): Failure("invalid_request", False),
    ("label", "model_not_found"): Failure("invalid_request", False),
    # The API's own label for an error within a stream; those that it shares with the CLI are above.
    ("label", "authentication_error"): Failure("authentication", False),
    ("label", "permission_error"): Failure("authentication", False),
    ("label", "invalid_request_error"): Failure("invalid_request", False),
    ("label", "not_found_error"): Failure("invalid_request", False),
    ("label", "request_too_large"): Failure("invalid_request", False),
    ("label", "rate_limit_error"): Failure("rate_limit", True),
    ("label", "timeout_error"): Failure("timeout", True),
    ("label", "api_error"): Failure("overloaded", True),
    ("label", "overloaded_error"): Failure("overloaded", True),
    # The model's API sent no HTTP response (api_retry without a status).
    ("no_response", True): Failure("network", True),
    # How a tool call ended.
    ("tool", "failed"): Failure("tool_error", False),
    ("tool", "deny"): Failure("permission_denied", False),
    ("tool", "timeout"): Failure("approval_timeout", False),
    ("tool", "cancelled"): Failure("cancelled", False),
    # How a process ended.
    ("oom_killed", True): Failure("out_of_memory", True),
    ("process", "cli"): Failure("cli_crash", True),
    ("process", "runner"): Failure("sandbox", True),
}

# The most specific fact comes first: the CLI's label comes after status and text, as it is "server_error" for a refused
# connection too.
_ORDER = (
    "oom_killed",
    "budget_spent",
    "subtype",
    "reason",
    "status",
    "text",
    "label",
    "no_response",
    "tool",
    "process",
)

# Only the text of the CLI's result distinguishes a failed connection from a timeout.
_PROSE = (
    ("timed out", Failure("timeout", True)),
    ("timeout", Failure("timeout", True)),
    ("connection", Failure("network", True)),
    ("unable to connect", Failure("network", True)),
    ("econn", Failure("network", True)),
    ("stream ended", Failure("network", True)),
    ("stream disconnected", Failure("network", True)),
    ("not logged in", Failure("authentication", False)),
    ("credit balance", Failure("billing", False)),
)

_STATUS = re.compile(r"API Error: (\d{3})\b")

UNKNOWN = Failure("internal", False)


def classify(**facts: object) -> Failure:
    """Return the failure that the most specific of the given facts stands for.

    Facts: ``budget_spent``: the gateway refused a request because the budget is spent; ``subtype``, ``reason``,
    ``status`` and ``text`` of a result; ``label`` of an API error; ``no_response``: the API sent no response; ``tool``:
    how a tool call ended; ``process``: the process that died; ``oom_killed``: the kernel killed it for lack of memory.
    A fact that is None is ignored.
    """
    for key in _ORDER:
        fact = facts.get(key)
        if fact is None:
            continue
        failure = _from_prose(str(fact)) if key == "text" else _TABLE.get((key, fact))
        if failure is not None:
            return failure
    return UNKNOWN


def budget_spent_in(text: str) -> bool | None:
    """Return True if an API error's text is the gateway's message about a spent budget, else None, for `classify`."""
    return BUDGET_SPENT in text[:2000] or None


def status_in(text: str) -> int | None:
    """Return the HTTP status in the CLI's message about an API error, or None."""
    match = _STATUS.search(text[:2000])
    return int(match[1]) if match else None


def _from_prose(text: str) -> Failure | None:
    lowered = text[:2000].lower()
    return next((failure for words, failure in _PROSE if words in lowered), None)

"""Failures are classified as error types."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.contract.classify import UNKNOWN, classify, status_in
from agent_runner.contract.protocol import ERROR_TYPES

TABLE: list[tuple[dict[str, object], str, bool]] = [
    ({"subtype": "error_max_turns"}, "max_turns", False),
    ({"subtype": "error_max_budget_usd"}, "budget_exceeded", False),
    ({"reason": "aborted_tools"}, "cancelled", False),
    ({"reason": "aborted_streaming"}, "cancelled", False),
    ({"status": 400}, "invalid_request", False),
    ({"status": 401}, "authentication", False),
    ({"status": 402}, "billing", False),
    ({"status": 403}, "authentication", False),
    ({"status": 404}, "invalid_request", False),
    ({"status": 408}, "timeout", True),
    ({"status": 413}, "invalid_request", False),
    ({"status": 429}, "rate_limit", True),
    ({"status": 500}, "overloaded", True),
    ({"status": 502}, "network", True),
    ({"status": 503}, "overloaded", True),
    ({"status": 504}, "timeout", True),
    ({"status": 529}, "overloaded", True),
    ({"label": "billing_error"}, "billing", False),
    ({"label": "rate_limit"}, "rate_limit", True),
    ({"label": "server_error", "text": "API Error: Connection refused (ECONNREFUSED)"}, "network", True),
    ({"label": "server_error", "text": "Request timed out."}, "timeout", True),
    ({"label": "unknown", "no_response": True}, "network", True),
    ({"tool": "failed"}, "tool_error", False),
    ({"tool": "deny"}, "permission_denied", False),
    ({"tool": "timeout"}, "approval_timeout", False),
    ({"tool": "cancelled"}, "cancelled", False),
    ({"process": "cli"}, "cli_crash", True),
    ({"process": "runner"}, "sandbox", True),
    # The more telling fact decides.
    ({"status": 429, "label": "server_error", "text": "connection"}, "rate_limit", True),
    ({"subtype": "error_max_turns", "status": 500}, "max_turns", False),
    ({"subtype": "success", "status": 401}, "authentication", False),
    ({"process": "cli", "oom_killed": True}, "out_of_memory", True),
    ({"process": "cli", "oom_killed": None}, "cli_crash", True),
    ({"status": 418, "label": "overloaded"}, "overloaded", True),
    ({}, "internal", False),
    ({"status": None, "label": "what is this"}, "internal", False),
]


@pytest.mark.parametrize(("facts", "error_type", "retryable"), TABLE, ids=lambda value: str(value))
def test_facts_are_classified(facts: dict[str, object], error_type: str, retryable: bool) -> None:
    assert classify(**facts) == (error_type, retryable)


@given(
    st.dictionaries(
        st.sampled_from(["subtype", "reason", "status", "label", "text", "tool", "process", "oom_killed"]),
        st.none() | st.integers() | st.text() | st.booleans(),
    )
)
def test_any_facts_have_an_error_type(facts: dict[str, object]) -> None:
    assert classify(**facts).error_type in ERROR_TYPES
    assert classify(**facts) == UNKNOWN or facts


def test_the_status_stands_in_the_clis_prose() -> None:
    assert status_in("Failed to authenticate. API Error: 401 no such key") == 401
    assert status_in("API Error: Connection refused") is None
    assert status_in("API Error: 4010") is None
    assert status_in("x" * 10_000 + "API Error: 401 late") is None

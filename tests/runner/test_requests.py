"""A waiting request is resolved at most once, and only by a reply that fits it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from agent_runner._requests import PendingRequests, RefusedError, Unanswered
from agent_runner.contract.approvals import NO_ONE, fault_of_answer, fault_of_approval, outcome_of
from agent_runner.contract.protocol import Approval, Decision, input_digest

pytestmark = pytest.mark.anyio

ALLOW = Approval(approval_id="", decision="allow")
DENY = Approval(approval_id="", decision="deny")


def requests() -> PendingRequests[Approval]:
    return PendingRequests("approval")


def anything(_: Approval) -> None:
    """Accept every reply."""


async def test_an_answer_reaches_the_one_who_waits_and_the_id_is_used_up() -> None:
    this = requests()
    key = this.open(anything)
    waiting = asyncio.ensure_future(this.wait(key, 60))
    this.answer(key, ALLOW)
    with pytest.raises(RefusedError, match="was resolved already"):
        this.answer(key, DENY)  # before the one who waits has even run
    assert await waiting == ALLOW
    with pytest.raises(RefusedError, match="was resolved already"):
        this.answer(key, DENY)


async def test_an_answer_may_come_before_the_wait_begins() -> None:
    this = requests()
    key = this.open(anything)
    this.answer(key, ALLOW)
    assert await this.wait(key, 60) == ALLOW


async def test_an_unknown_id_answers_nothing() -> None:
    this = requests()
    key = this.open(anything)
    with pytest.raises(RefusedError, match="is unknown"):
        this.answer("guess" * 100, ALLOW)
    this.cancel_all()
    assert await this.wait(key, 60) == Unanswered("cancelled")


async def test_an_answer_to_another_input_is_refused_and_the_right_one_still_counts() -> None:
    this = requests()
    key = this.open(lambda reply: fault_of_approval(reply, "digest"))
    with pytest.raises(RefusedError, match="input_sha256"):
        this.answer(key, replace(ALLOW, input_sha256="another"))
    this.answer(key, replace(DENY, input_sha256="digest"))
    assert (await this.wait(key, 60)) == replace(DENY, input_sha256="digest")


@pytest.mark.parametrize(
    ("approval", "fault"),
    [
        (ALLOW, None),
        (replace(ALLOW, input_sha256="digest", updated_input={}), None),
        (replace(DENY, input_sha256="another"), "input_sha256 is not the digest of the requested input"),
        (replace(DENY, updated_input={}), "a denial cannot carry an updated_input"),
    ],
)
def test_an_approval_is_of_the_input_that_was_shown_and_a_denial_edits_nothing(
    approval: Approval, fault: str | None
) -> None:
    assert fault_of_approval(approval, "digest") == fault


@pytest.mark.parametrize(
    ("approval", "outcome"),
    [
        (ALLOW, "allow"),
        (DENY, "deny"),
        (replace(ALLOW, updated_input={"b": 1, "a": 2}), "allow"),
        (replace(ALLOW, updated_input={"a": 2, "b": True}), "allow_edited"),
    ],
)
def test_only_an_input_that_differs_is_an_edit(approval: Approval, outcome: Decision) -> None:
    assert outcome_of(approval, input_digest({"a": 2, "b": 1})) == outcome


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ({"Which colour?": "Blue", "Which size?": ["S", "M"]}, None),
        ({"Which size?": "S"}, None),
        ({"Which colour": "Blue"}, "there is no question 'Which colour'"),
        ({"Which size?": "S", "0": "Blue"}, "there is no question '0'"),
        ({}, "no answer was given"),
    ],
)
def test_an_answer_is_to_what_was_asked(answers: dict[str, Any], fault: str | None) -> None:
    told = fault_of_answer(answers, [{"question": "Which colour?"}, {"question": "Which size?"}, "no question"])
    if fault is None:
        assert told is None
    else:
        assert (
            told == f"{fault}: each key of answers must be the whole text of a question: 'Which colour?', 'Which size?'"
        )


async def test_nobody_answers_in_time() -> None:
    this = requests()
    key = this.open(anything)
    assert await this.wait(key, 0.001) == Unanswered("timeout")
    with pytest.raises(RefusedError, match="was resolved already"):
        this.answer(key, ALLOW)


async def test_a_wait_that_is_withdrawn_uses_up_its_id() -> None:
    this = requests()
    key = this.open(anything)
    waiting = asyncio.ensure_future(this.wait(key, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(RefusedError, match="was resolved already"):
        this.answer(key, ALLOW)


async def test_closed_requests_deny_what_waits_and_what_comes() -> None:
    this = requests()
    answered, open_ = this.open(anything), this.open(anything)
    this.answer(answered, ALLOW)
    this.close()
    assert await this.wait(answered, 60) == ALLOW
    assert await this.wait(open_, 60) == Unanswered("deny", NO_ONE)
    assert await this.wait(this.open(anything), 60) == Unanswered("deny", NO_ONE)


async def test_ids_are_long_and_never_the_same() -> None:
    this = requests()
    keys = {this.open(anything) for _ in range(1000)}
    assert len(keys) == 1000
    assert min(map(len, keys)) >= 22

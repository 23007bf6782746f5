"""A session's log always reports the outcome, also if the service fails or stops at a critical moment."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec.structs
import pytest

from agent_runner._resource import resource
from agent_runner.contract import otlp, prices
from agent_runner.contract.protocol import (
    Answer,
    Approval,
    ApprovalRequestData,
    BackgroundTaskData,
    EndData,
    LogData,
    QuestionRequestData,
    SetModel,
    TelemetryData,
    TurnStartData,
)
from agent_runner.contract.spans import Span
from host_client.client import _session as session_module
from host_client.errors import ConfigurationError, SandboxError
from host_client.service import _commands as c
from host_client.service import _hosting as hosting_module
from host_client.service._attachments import detach
from host_client.service._events import AdoptedData
from host_client.service._feed import Feed
from host_client.service._hosting import House
from host_client.service._limits import day_of
from host_client.service._log import SessionLog
from host_client.service._service import DecidedError, MismatchError, Service, SessionOverError
from host_client.service.run import options_of
from host_client.store._sqlite import SqliteStore
from host_client.store.base import Note, StoredFile, StoredSession, StoreError
from host_client.telemetry import Telemetry
from tests.server.flaky import Flaky
from tests.store.records import created as kept
from tests.store.records import stored
from tests.support.metrics import result
from tests.support.told_sandbox import START, ToldSandbox
from tests.telemetry.test_pipeline import Recorder, assert_set

pytestmark = pytest.mark.anyio
WAIT_SECONDS = 60.0
SHA = "0" * 64
APPROVED = Approval(approval_id="a-1", decision="allow", input_sha256=SHA, decided_by="bob")
RESULT = result(0.25)


class Scene:
    """A service with a SQLite store, whose sandboxes emit what a test dictates."""

    def __init__(self, store: Flaky) -> None:
        self.store = store
        self.sandboxes: dict[str, ToldSandbox] = {}
        self.prepare: Callable[[ToldSandbox], None] = lambda _: None
        self.refusals: list[Exception] = []
        self.idle_seconds = self.silent_seconds = 1000.0
        self.telemetry = Telemetry()

    def service(self, owner: str = "one", shutdown_seconds: float = WAIT_SECONDS) -> Service:
        house = House(
            store=self.store,
            owner=owner,
            telemetry=self.telemetry,
            environ={},
            sandbox=self._sandbox,
            options=options_of,
            forget=self._forget,
            idle_seconds=self.idle_seconds,
            silent_seconds=self.silent_seconds,
        )
        return Service(house, shutdown_seconds=shutdown_seconds)

    def _sandbox(self, of: StoredSession) -> ToldSandbox:
        if self.refusals:
            raise self.refusals.pop(0)
        known = self.sandboxes.get(of.record.id)
        if known is None:
            known = self.sandboxes[of.record.id] = ToldSandbox(of.record.root.trace_id)
            self.prepare(known)
        return known

    async def _forget(self, of: StoredSession) -> None:
        pass

    async def until(self, session_id: str, kind: str, number: int = 1) -> list[dict[str, Any]]:
        """Wait until a session's log has this number of events of a type; return the log."""
        async with asyncio.timeout(WAIT_SECONDS), self.store.subscribe(session_id, only=Note.EVENTS) as notes:
            while True:
                log = [json.loads(entry.data) for entry in await self.store.read(session_id, 0)]
                if [event["type"] for event in log].count(kind) >= number:
                    return log
                await anext(notes)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(Flaky(tmp_path / "service.sqlite"))


async def eventually(is_so: Callable[[], bool]) -> None:
    """Yield to other tasks until a condition holds that no event announces."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not is_so():  # noqa: ASYNC110 - the loop goes round, and no time passes
            await asyncio.sleep(0)


async def begun(scene: Scene, service: Service) -> StoredSession:
    made = await service.create({"prompt": "go"}, tenant_id="acme", by="ada")
    await scene.until(made.record.id, "prompt")
    return made


def approval(expires_at: float) -> ApprovalRequestData:
    return ApprovalRequestData(
        approval_id="a-1", tool_use_id="t", tool_name="Bash", input={}, input_sha256=SHA, expires_at=expires_at
    )


def log_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def test_a_prompt_whose_attachment_is_gone_is_told_and_the_session_goes_on(scene: Scene) -> None:
    scene.prepare = lambda sandbox: sandbox.may_be_made.clear()
    service = scene.service()
    await service.start()
    file = StoredFile(data=b"text", media_type="text/plain", name="notes.txt")
    made = await service.create({"prompt": "go"}, tenant_id="acme", by="ada", files=[file])
    await service.send(made, "next", by="ada", files=[file])
    lost, kept = (c.decode(each.data) for each in await scene.store.commands(made.record.id, 0))
    assert isinstance(lost, c.PromptCommand) and isinstance(kept, c.PromptCommand)
    await detach(scene.store, made.record, lost.attachments)
    await eventually(lambda: made.record.id in scene.sandboxes)
    sandbox = scene.sandboxes[made.record.id]
    sandbox.may_be_made.set()
    log = await scene.until(made.record.id, "prompt", 2)
    first, second = (event["data"] for event in log if event["type"] == "prompt")
    assert first["error"] == ("the prompt was not sent: its attachment 'notes.txt' is no longer stored; send it again")
    left = [each.position for each in await scene.store.commands(made.record.id, 0)]
    assert 1 not in left  # the next process does not tell it again
    assert [each["name"] for each in second["attachments"]] == ["notes.txt"]
    assert "error" not in second
    await eventually(lambda: bool(sandbox.commands))
    assert sandbox.commands == ["prompt"]
    now = await scene.store.get(made.record.id)
    assert now is not None and now.state.takes_more
    await service.stop()


async def test_a_runner_that_is_too_old_for_a_prompt_or_a_command_keeps_its_session(scene: Scene) -> None:
    def make_old(sandbox: ToldSandbox) -> None:
        sandbox.start = msgspec.structs.replace(START, takes_attachments=False, commands=["prompt", "stop"])

    scene.prepare = make_old
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    await scene.until(made.record.id, "start")
    file = StoredFile(data=b"text", media_type="text/plain", name="notes.txt")
    await service.send(made, "look", by="ada", files=[file])
    await service.control(made, SetModel(model="m", command_id="c1", requested_by="ada"))
    log = await scene.until(made.record.id, "command_result")
    prompt = [event["data"] for event in log if event["type"] == "prompt"][-1]
    assert prompt["error"].startswith("the prompt was not sent: the runner in this session's sandbox is too old")
    outcome = log[-1]["data"]
    assert outcome["command"] == {"type": "set_model", "model": "m", "requested_by": "ada"}
    assert outcome["error"].startswith("the runner in this sandbox ignores set_model: it is older than this host")
    assert scene.sandboxes[made.record.id].commands == ["prompt"]
    now = await scene.store.get(made.record.id)
    assert now is not None and now.state.takes_more
    await service.stop()


async def test_turns_sent_while_the_agent_talks_lose_no_event(scene: Scene) -> None:
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    sandbox = scene.sandboxes[made.record.id]

    async def talk() -> None:
        for number in range(300):
            sandbox.say(LogData(stream="runner", text=str(number)))
            await asyncio.sleep(0)

    async def ask() -> None:
        for number in range(30):
            await service.send(made, str(number), by="ada")

    await asyncio.gather(talk(), ask())
    events = await scene.until(made.record.id, "log", 300)
    events = await scene.until(made.record.id, "prompt", 31)
    await service.close(made, by="ada")
    events = await scene.until(made.record.id, "closed")
    assert [event["data"]["text"] for event in events if event["type"] == "log"] == [str(n) for n in range(300)]
    assert sandbox.commands == ["prompt"] * 31 + ["stop"]
    await service.stop()


async def test_a_write_that_is_cancelled_leaves_log_and_state_as_one(store: SqliteStore) -> None:
    await kept(store)
    log = SessionLog(store, "replica-1", stored("s-1"), Feed())
    for number in range(20):
        writing = asyncio.create_task(log.say(AdoptedData(reason=str(number), replica="r")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait((writing,))
    await log.say(AdoptedData(reason="last", replica="r"))
    entries = await store.read("s-1", 0)
    assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
    assert log.state.last_event_id == len(entries)


async def test_the_last_event_is_written_once_the_spans_of_the_session_are_in_the_spool(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_asked = threading.Event()
    spool = Recorder(before=lambda: assert_set(is_asked))  # nothing gets into the spool unless the service waits for it
    scene.telemetry = Telemetry(spool)
    write = scene.telemetry.write

    def write_when_asked(timeout: float) -> bool:
        is_asked.set()
        try:
            return write(timeout)
        finally:
            is_asked.clear()

    monkeypatch.setattr(scene.telemetry, "write", write_when_asked)
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    await service.close(made, by="ada")
    await scene.until(made.record.id, "closed")
    assert "agent.session" in spool.sent
    await service.stop()
    scene.telemetry.shutdown()


async def test_a_session_whose_spans_are_not_written_in_time_ends_with_a_warning(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (session_module, hosting_module):
        monkeypatch.setattr(module, "SPOOL_SECONDS", 0.01)
    has_ended = threading.Event()
    scene.telemetry = Telemetry(Recorder(before=lambda: assert_set(has_ended)))
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    await service.close(made, by="ada")
    await scene.until(made.record.id, "closed")
    assert f"session {made.record.id}: its last spans were not written to the spool within 0.01 s" in caplog.text
    has_ended.set()
    await service.stop()
    scene.telemetry.shutdown()


@pytest.mark.parametrize("where", ["adopt", "factory"])
async def test_a_session_that_cannot_be_taken_over_at_once_is_tried_again(scene: Scene, where: str) -> None:
    first = scene.service()
    await first.start()
    made = await begun(scene, first)
    session_id = made.record.id
    hosted = first._hosted.get(session_id)  # pyright: ignore[reportPrivateUsage]
    assert hosted is not None
    hosted.abandon()  # leaves the session as a dead process does
    await scene.store.release(session_id, "one")
    if where == "adopt":
        scene.sandboxes[session_id].fails = [SandboxError("E2B is away"), SandboxError("still away")]
    else:
        scene.refusals = [ConfigurationError("no key for E2B"), ConfigurationError("still none")]
    await eventually(lambda: session_id not in first._hosted)  # pyright: ignore[reportPrivateUsage]
    for _ in range(2):
        await first.look_for_orphans()
        await eventually(lambda: session_id not in first._hosted)  # pyright: ignore[reportPrivateUsage]
    await first.look_for_orphans()
    events = await scene.until(session_id, "adopted")
    assert "closed" not in log_of(events)
    await first.close(await first.get(session_id, "acme"), by="ada")
    assert (await scene.until(session_id, "closed"))[-1]["data"]["reason"] == "closed"
    await first.stop()


async def test_what_is_asked_of_a_session_that_is_being_closed_is_refused_or_told_of(scene: Scene) -> None:
    scene.prepare = lambda sandbox: setattr(sandbox, "stops", False)
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    sandbox = scene.sandboxes[made.record.id]
    sandbox.say(TurnStartData(turn=1, prompt_size=2), approval(time.time() + 100))
    await scene.until(made.record.id, "approval_request")
    await service.close(made, by="ada")
    stale = await scene.store.get(made.record.id)
    assert stale is not None
    taken = 0
    async with asyncio.timeout(WAIT_SECONDS):
        while "stop" not in sandbox.commands:  # while the session is being closed
            with contextlib.suppress(SessionOverError):
                await service.send(stale, "late", by="ada")
                taken += 1
        with pytest.raises(SessionOverError):
            await service.send(stale, "later", by="ada")
        now = await scene.store.get(made.record.id)
        assert now is not None and now.state.closing
        with pytest.raises(SessionOverError):
            await service.decide(now, APPROVED)
    sandbox.end()
    events = await scene.until(made.record.id, "closed")
    begun_turns = log_of(events).count("prompt") - 1
    told = [event for event in events if event["type"] == "error" and "was not begun" in event["data"]["message"]]
    assert begun_turns + len(told) >= taken
    await service.stop()


async def test_an_approval_that_has_expired_is_a_timeout_and_not_an_allowance(scene: Scene) -> None:
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    scene.sandboxes[made.record.id].say(approval(time.time() - 600))
    await scene.until(made.record.id, "approval_request")
    now = await service.get(made.record.id, "acme")
    with pytest.raises(DecidedError) as refused:
        await service.decide(now, APPROVED)
    assert (refused.value.decision.decision, refused.value.decision.decided_by) == ("timeout", None)
    await service.stop()


async def test_a_second_request_of_the_same_id_does_not_change_what_is_approved(scene: Scene) -> None:
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    forged = ApprovalRequestData(
        approval_id="a-1", tool_use_id="t", tool_name="Bash", input={"command": "rm -rf /"}, input_sha256="1" * 64,
        expires_at=time.time() + 100,
    )  # fmt: skip
    scene.sandboxes[made.record.id].say(approval(time.time() + 100), forged)
    await scene.until(made.record.id, "approval_request", 2)
    now = await service.get(made.record.id, "acme")
    assert [each.input_sha256 for each in now.state.waiting] == [SHA]
    await service.stop()


async def test_a_session_whose_runner_hears_nothing_is_closed_all_the_same(scene: Scene) -> None:
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    sandbox = scene.sandboxes[made.record.id]
    sandbox.say(approval(time.time() + 1000))
    await scene.until(made.record.id, "approval_request")
    sandbox.is_deaf = True
    await service.send(made, "never heard", by="ada")
    await scene.until(made.record.id, "prompt", 2)
    await service.close(made, by="ada")
    closing = asyncio.create_task(scene.until(made.record.id, "closed"))
    sandbox.end()
    assert (await closing)[-1]["data"]["closed_by"] == "ada"
    assert sandbox.closed == 1
    await service.stop()


async def test_a_session_that_is_closed_while_its_sandbox_is_made_begins_no_turn(scene: Scene) -> None:
    scene.prepare = lambda sandbox: sandbox.may_be_made.clear()
    service = scene.service()
    await service.start()
    made = await service.create({"prompt": "go"}, tenant_id="acme", by="ada")
    await eventually(lambda: made.record.id in scene.sandboxes)
    sandbox = scene.sandboxes[made.record.id]
    await eventually(sandbox.is_being_made.is_set)
    await service.close(made, by="ada")
    events = await scene.until(made.record.id, "closed")
    assert (events[-1]["data"]["reason"], sandbox.commands, sandbox.closed) == ("closed", [], 1)
    await service.stop()


async def test_a_new_session_whose_sandbox_cannot_be_had_says_so_and_ends_its_trace(scene: Scene) -> None:
    scene.refusals = [ConfigurationError("no key for E2B")]
    service = scene.service()
    await service.start()
    made = await service.create({"prompt": "go"}, tenant_id="acme", by="ada")
    events = await scene.until(made.record.id, "closed")
    assert [event["data"].get("message") for event in events if event["type"] in ("error", "closed")] == [
        "no key for E2B"
    ] * 2
    assert len([payload async for payload in scene.store.spans(made.record.id)]) == 1
    await service.stop()


async def test_a_cost_that_no_turn_can_have_counts_nothing(scene: Scene) -> None:
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    for cost in (-1000.0, 1e15, 0.25):
        scene.sandboxes[made.record.id].say(msgspec.structs.replace(RESULT, cost_usd=cost))
    await scene.until(made.record.id, "result", 3)
    assert await scene.store.spent("acme", day_of(time.time())) == 0.25
    assert (await service.get(made.record.id, "acme")).state.cost_usd == 0.25
    await service.stop()


def chat_span(trace_id: str, turn: str) -> TelemetryData:
    """Return a telemetry event with the span of a model request of 1,000 input tokens in a turn."""
    span = Span("chat", trace_id, "2" * 16, turn, 1, end=2)
    span.attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.response.model": "claude-opus-4-5",
        "gen_ai.usage.input_tokens": 1000,
    }
    return TelemetryData(otlp=base64.b64encode(otlp.encode([span], resource("tests", {}))).decode())


async def test_what_a_turn_without_a_result_has_spent_counts_for_the_tenants_day(scene: Scene) -> None:
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    sandbox = scene.sandboxes[made.record.id]
    request = chat_span(made.record.root.trace_id, turn="1" * 16)
    sandbox.say(TurnStartData(turn=1, prompt_size=2), RESULT, TurnStartData(turn=2, prompt_size=2), request, request)
    sandbox.say(EndData(reason="terminated", exit_code=143))
    closed = (await scene.until(made.record.id, "closed"))[-1]["data"]
    estimated = prices.cost("claude-opus-4-5", {"input_tokens": 1000})
    assert (closed["cost_usd"], closed["estimated_usd"]) == (0.25, estimated)
    assert await scene.store.spent("acme", day_of(time.time())) == pytest.approx(0.25 + estimated)
    await service.stop()


async def test_a_session_that_nobody_answers_is_not_idle_for_ever(scene: Scene) -> None:
    scene.idle_seconds = scene.silent_seconds = 0.01
    service = scene.service()
    await service.start()
    made = await service.create({"prompt": "go"}, tenant_id="acme", by="ada")
    await eventually(lambda: made.record.id in scene.sandboxes)
    scene.sandboxes[made.record.id].say(approval(time.time() - 3600))
    assert (await scene.until(made.record.id, "closed"))[-1]["data"]["reason"] == "inactive"
    await service.stop()


async def test_a_turn_is_activity_until_it_seems_to_hang(scene: Scene) -> None:
    scene.idle_seconds, scene.silent_seconds = 0.01, 0.2
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    log = await scene.until(made.record.id, "closed")
    assert log[-1]["data"]["reason"] == "inactive"
    assert log[-1]["ts"] - log[log_of(log).index("prompt")]["ts"] >= 0.2
    await service.stop()


async def test_work_in_the_background_of_an_ended_turn_is_activity_too(scene: Scene) -> None:
    scene.idle_seconds, scene.silent_seconds = 0.01, 0.3
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    task = BackgroundTaskData(task_id="b1", kind="local_bash", state="running", description="make")
    scene.sandboxes[made.record.id].say(TurnStartData(turn=1, prompt_size=2), task, RESULT)
    log = await scene.until(made.record.id, "closed")
    assert log[-1]["data"]["reason"] == "inactive"
    assert log[-1]["ts"] - log[log_of(log).index("result")]["ts"] >= 0.3
    await service.stop()


async def test_an_answer_to_what_was_not_asked_is_told_and_the_session_goes_on(scene: Scene) -> None:
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    asked = QuestionRequestData(
        question_id="q-1", tool_use_id="t", questions=[{"question": "Which?"}], expires_at=time.time() + 100
    )
    scene.sandboxes[made.record.id].say(asked)
    await scene.until(made.record.id, "question_request")
    await service.store.push(made.record.id, c.encode(Answer(decided_by="ada", question_id="q-1", answers={"a": "b"})))
    told = (await scene.until(made.record.id, "error"))[-1]["data"]
    assert told["error_type"] == "protocol"
    assert told["message"].startswith("an answer does not fit its question:")
    await service.send(made, "go on", by="ada")
    await scene.until(made.record.id, "prompt", 2)
    await service.stop()


async def test_an_approval_of_another_input_reaches_no_runner_also_if_it_is_in_the_store(scene: Scene) -> None:
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    scene.sandboxes[made.record.id].say(approval(time.time() + 100))
    await scene.until(made.record.id, "approval_request")
    other = msgspec.structs.replace(APPROVED, input_sha256="1" * 64)
    with pytest.raises(MismatchError, match="is not the digest of the requested input"):
        await service.decide(await service.get(made.record.id, "acme"), other)
    await service.store.push(made.record.id, c.encode(other))
    error = (await scene.until(made.record.id, "error"))[-1]
    assert "is not the digest of the requested input" in error["data"]["message"]
    await service.store.push(made.record.id, c.encode(APPROVED))
    await eventually(lambda: scene.sandboxes[made.record.id].commands == ["prompt", "approval"])
    await service.stop()


@pytest.mark.parametrize(
    ("stored", "reply"),
    [
        (
            b'{"type":"approval","by":"bob","approval_id":"a-1","decision":"allow","updated_input":{"command":"ls"},'
            b'"remember":true}',
            Approval(
                approval_id="a-1", decision="allow", updated_input={"command": "ls"}, remember=True, decided_by="bob"
            ),
        ),
        (
            b'{"type":"approval","by":"bob","approval_id":"a-1","decision":"deny","message":"Not now"}',
            Approval(approval_id="a-1", decision="deny", message="Not now", decided_by="bob"),
        ),
        (
            b'{"type":"answer","by":"ada","question_id":"q-1","answers":{"Which?":"A"}}',
            Answer(question_id="q-1", answers={"Which?": "A"}, decided_by="ada"),
        ),
        (b'{"type":"approval","approval_id":"a-1","decision":"deny"}', Approval(approval_id="a-1", decision="deny")),
    ],
)
def test_a_decision_that_an_earlier_version_stored_keeps_who_decided(stored: bytes, reply: Approval | Answer) -> None:
    assert c.decode(stored) == reply
    assert c.decode(c.encode(reply)) == reply


async def test_a_question_that_is_no_longer_kept_is_not_taken_for_another(scene: Scene) -> None:
    service = scene.service()
    await service.start()
    made = await begun(scene, service)
    for key, text in (("q-1", "First?"), ("q-2", "Second?")):
        scene.sandboxes[made.record.id].say(
            QuestionRequestData(
                question_id=key, tool_use_id="t", questions=[{"question": text}], expires_at=time.time() + 100
            )
        )
    await scene.until(made.record.id, "question_request", 2)
    await scene.store.trim(made.record.id, 1)
    now = await service.get(made.record.id, "acme")
    answer = Answer(decided_by="ada", question_id="q-1", answers={"First?": "yes"})
    assert (await service.decide(now, answer)).decision == "answered"
    with pytest.raises(MismatchError, match="there is no question 'First\\?'"):
        await service.decide(now, Answer(decided_by="ada", question_id="q-2", answers={"First?": "yes"}))
    await service.stop()


async def test_a_service_that_is_stopped_while_its_store_is_away_leaves_its_sessions_to_the_next(scene: Scene) -> None:
    service = scene.service(shutdown_seconds=0.05)
    await service.start()
    made = await begun(scene, service)
    scene.store.fails = lambda: StoreError("it is away")
    async with asyncio.timeout(WAIT_SECONDS):
        await service.stop()
    assert scene.sandboxes[made.record.id].closed == 0
    scene.store.fails = lambda: None
    following = scene.service("two")
    await following.start()
    await scene.until(made.record.id, "adopted")
    await following.close(await following.get(made.record.id, "acme"), by="ada")
    assert (await scene.until(made.record.id, "closed"))[-1]["data"]["reason"] == "closed"
    await following.stop()

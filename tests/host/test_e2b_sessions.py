"""Sessions in E2B: the real SDK with a stand-in of E2B, whose sandboxes run the real runner and CLI."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, open_session, run_agent
from host_client.errors import SandboxGoneError
from tests.host.test_session import LONG_TOOL, ONE_TOOL, WHOLE_TRACE
from tests.support.e2b import Ending, Recorded, Slow
from tests.support.hosts import DEFAULT_CHAT, E2BLab, e2b_lab, numbered, views
from tests.support.runs import WAIT_SECONDS, tree

pytestmark = pytest.mark.anyio

REPLY = """
    model: scripted
    conversations:
      main:
        replies:
          - text: Done.
"""


async def until(holds: Callable[[], object]) -> None:
    """Poll until a condition holds that another thread or process brings about; fail after a limit."""
    limit = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < limit
        await asyncio.sleep(0.01)


def sent(lab: E2BLab, line: str) -> list[Recorded]:
    return [request for request in lab.e2b.requests if request.line == line]


async def test_one_prompt_is_one_trace_from_the_session_to_the_tool_in_e2b() -> None:
    with e2b_lab(ONE_TOOL) as lab:
        options = AgentOptions(user_id="ada", tenant_id="acme")
        result = await run_agent("go", options, sandbox=lab.sandbox(), approvals="auto", environ=lab.environ)
        made = lab.e2b.sandboxes[0]
    assert (result.text, result.is_error, result.exit_code) == ("Done.", False, 0)
    spans = views(result.spans)
    assert tree(spans) == WHOLE_TRACE
    assert {span.trace_id for span in spans} == {result.trace_id}
    create = next(span for span in spans if span.name == "sandbox.create")
    about = {name: value for name, value in create.attributes.items() if name.startswith("sandbox.")}
    assert about.pop("sandbox.creation_duration_ms") > 0
    assert about == {
        "sandbox.id": made.id,
        "sandbox.kind": "e2b",
        "sandbox.template_id": made.template.id,
        "sandbox.cpu_cores": made.template.cpu_count,
        "sandbox.memory_mb": made.template.memory_mb,
    }
    assert made.state == "gone"


async def test_the_sandbox_is_told_whose_it_is_and_asked_for_once() -> None:
    with e2b_lab(REPLY) as lab:
        options = AgentOptions(user_id="ada", tenant_id="acme")
        sandbox = lab.sandbox(timeout=77, metadata={"team": "blue"}, envs={"PLAIN": "yes"})
        key = "sk-ant-secretsecret"
        prompt = f"use {key} please"
        async with open_session(prompt, options, sandbox=sandbox, environ=lab.environ) as session:
            await session.finish()
            _ = [event async for event in session]
        [create] = sent(lab, "POST /v2/sandboxes")
    body = create.json()
    noted = body["metadata"]
    assert noted["prompt"] == "use [redacted] please"
    assert (noted["session.id"], noted["user.id"], noted["tenant.id"]) == (session.id, "ada", "acme")
    assert (noted["trace_id"], noted["sandspan.run_id"], noted["team"]) == (session.trace_id, session.run_id, "blue")
    assert (body["templateID"], body["timeout"], body["envVars"]) == ("sandspan", 77, {"PLAIN": "yes"})
    assert create.headers["idempotency-key"] == session.run_id
    assert body.get("autoPause") is False
    assert key not in json.dumps(body)


async def test_the_runner_is_started_as_root_with_its_input_open_and_the_trace_in_its_environment() -> None:
    with e2b_lab(REPLY) as lab:
        async with open_session("go", sandbox=lab.sandbox(), environ=lab.environ) as session:
            await session.finish()
            _ = [event async for event in session]
            runner = lab.e2b.sandboxes[0].processes[0]
        start = sent(lab, "POST /process.Process/Start")[0]
    assert runner.command.account.name == "root"
    assert runner.command.stdin
    assert "connect-timeout-ms" not in start.headers
    *shell, command = runner.command.args
    assert shell == ["-l", "-c"]
    python, *args = command.partition("; exec ")[2].split()
    assert Path(python).is_absolute()
    assert args == ["-P", "-m", "agent_runner", "run"]
    envs = runner.command.envs
    assert envs["TRACEPARENT"].split("-")[1:3] == [session.trace_id, session.trace.root.span_id]
    assert f"session.id={session.id}" in envs["BAGGAGE"]
    assert envs["AGENT_GATEWAY"] == "on"
    assert envs["AGENT_USER"] == "nobody"  # the stand-in's account in place of the template's `user`


async def test_no_event_is_lost_or_doubled_however_the_chunks_and_the_end_fall() -> None:
    with e2b_lab(ONE_TOOL) as lab:
        from tests.support.e2b import random_chunks

        lab.e2b.rechunk(random_chunks(7, 40))
        seen: list[p.AnyEvent] = []
        result = await run_agent(
            "go", sandbox=lab.sandbox(), approvals="auto", environ=lab.environ, on_event=seen.append
        )
    assert numbered(seen) == list(range(1, len(numbered(seen)) + 1))
    assert tree(views(result.spans)) == WHOLE_TRACE


async def test_the_sandboxs_end_is_put_off_while_the_session_lives() -> None:
    with e2b_lab(REPLY) as lab:
        async with open_session(None, sandbox=lab.sandbox(timeout=10), environ=lab.environ):
            made = lab.e2b.sandboxes[0]
            await until(lambda: len(made.timeouts) >= 3)
    assert made.timeouts[:3] == [10, 10, 10]


async def test_a_sandbox_that_is_gone_ends_the_session_with_the_reason_and_whole_spans() -> None:
    with e2b_lab(LONG_TOOL) as lab:
        options = AgentOptions(allowed_tools=("Bash",))
        async with open_session("go", options, sandbox=lab.sandbox(), environ=lab.environ) as session:
            async for event in session:
                if isinstance(event, p.ToolUse):
                    lab.e2b.lose(lab.e2b.sandboxes[0].id)
        assert session.failure is not None
    assert session.failure.error_type == SandboxGoneError.error_type
    assert "the sandbox no longer exists" in session.failure.message
    # A model request that had ended is lost if its span was not sent yet; open spans are ended by the host.
    spans = [span for span in views(session.trace.kept) if span.name != DEFAULT_CHAT]
    turn = ["agent.execute !sandbox", ["execute_tool Bash !sandbox"]]
    assert tree(spans) == [["agent.session !sandbox", ["sandbox.create"], turn, ["sandbox.cleanup"]]]


@pytest.mark.parametrize("ending", Ending)
async def test_a_stream_that_is_cut_is_taken_up_again_from_the_journal(ending: Ending) -> None:
    with e2b_lab(ONE_TOOL) as lab:
        seen: list[p.AnyEvent] = []
        async with open_session("go", sandbox=lab.sandbox(), environ=lab.environ) as session:
            await session.finish()
            async for event in session:
                seen.append(event)
                if isinstance(event, p.ApprovalRequest):
                    assert lab.e2b.cut_streams(ending) > 0
                    await session.approve(event.data.approval_id)
    assert numbered(seen) == list(range(1, len(numbered(seen)) + 1))
    assert isinstance(seen[-1], p.End)
    assert tree(views(session.trace.kept)) == WHOLE_TRACE


async def test_a_session_cancelled_while_its_sandbox_is_made_leaves_none() -> None:
    with e2b_lab(REPLY) as lab:
        rule = lab.e2b.fail("POST /v2/sandboxes", Slow(1.0))
        running = asyncio.ensure_future(run_agent("go", sandbox=lab.sandbox(), environ=lab.environ))
        await until(lambda: rule.met)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert [made.state for made in lab.e2b.sandboxes] == ["gone"]


async def test_a_paused_session_goes_on_with_its_conversation_its_files_and_its_trace() -> None:
    script = """
        model: scripted
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: echo kept > note}}]
              - text: First.
              - tools: [{name: Bash, input: {command: cat note}}]
              - text: Second.
    """
    with e2b_lab(script) as lab:
        options = AgentOptions(allowed_tools=("Bash",), user_id="ada")
        sandbox = lab.sandbox(pause=True)
        async with open_session("one", options, sandbox=sandbox, environ=lab.environ) as first:
            await first.finish()
            _ = [event async for event in first]
        made = lab.e2b.sandboxes[0]
        assert made.state == "paused"
        assert made.request["autoPause"]
        seen: list[p.AnyEvent] = []
        async with open_session(
            "two",
            options,
            sandbox=lab.sandbox(resume=made.id),
            environ=lab.environ,
            session_id=first.id,
            traceparent=made.metadata["traceparent"],
        ) as second:
            await second.finish()
            seen = [event async for event in second]
        assert made.state == "gone"
        asked = lab.model.requests[-1].body["messages"]
    start = next(event for event in seen if isinstance(event, p.Start))
    assert start.data.resumed
    assert start.data.session_id == first.claude_session_id
    assert "First." in json.dumps(asked)
    output = next(event for event in seen if isinstance(event, p.ToolResult))
    assert output.data.content == "kept"
    spans = views([*first.trace.kept, *second.trace.kept])
    assert {span.trace_id for span in spans} == {first.trace_id}
    again = [span for span in spans if span.name == "agent.session"]
    assert [span.parent_span_id for span in again] == ["", first.trace.root.span_id]
    assert {span.attributes["session.id"] for span in spans} == {first.id}


async def test_a_paused_sandbox_that_holds_no_conversation_stays_as_it_was() -> None:
    with e2b_lab(REPLY) as lab:
        async with open_session("one", sandbox=lab.sandbox(pause=True), environ=lab.environ) as first:
            await first.finish()
            _ = [event async for event in first]
        made = lab.e2b.sandboxes[0]
        for journal in lab.state.iterdir():
            journal.unlink()
        with pytest.raises(Exception, match="holds no conversation"):
            await run_agent("two", sandbox=lab.sandbox(resume=made.id), environ=lab.environ)
        assert made.state == "paused"

"""Runs in E2B that fail: interrupted, closed or terminated, with a killed CLI or a failing model."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, Session, open_session
from host_client.errors import SessionClosedError
from tests.host.test_e2b_scenarios import bash, replies
from tests.runner.test_approvals import TOUCH
from tests.runner.test_ending import CANCELLED, LONG
from tests.runner.test_model_failures import ONE_RETRY
from tests.support.hosts import E2BLab, e2b_lab, views
from tests.support.remote import fifo_of, read, run_remotely, runner_pid, trace_of
from tests.support.runs import CHAT, HANG, MODEL, children, is_gone, runner_below, tree

pytestmark = pytest.mark.anyio

BASH = AgentOptions(allowed_tools=("Bash",))


def failing(failure: str, times: int = 9) -> str:
    return f"{{conversations: {{main: {{replies: [{{text: Done., fail: [{{{failure}, times: {times}}}]}}]}}}}}}"


def spending(input_tokens: int) -> str:
    return f"""
        conversations:
          main:
            replies:
              - tools: [{{name: Bash, input: {{command: echo one}}}}]
                usage: {{input_tokens: {input_tokens}, output_tokens: 1000}}
              - tools: [{{name: Bash, input: {{command: echo two}}}}]
              - text: never
    """


@dataclass(frozen=True, kw_only=True)
class Failing:
    """A turn that ends in an error: the model's script, the expected error type and the spans below the turn."""

    script: str
    error_type: p.ErrorType
    calls: list[Any] | None = None
    """None: requests that all fail."""
    retryable: bool = False
    options: AgentOptions = field(default_factory=lambda: AgentOptions(env=ONE_RETRY))


def _status(status: int, error_type: p.ErrorType, *, retryable: bool = False) -> Failing:
    script = failing(f"status: {status}")
    return Failing(script=script, error_type=error_type, retryable=retryable)


FAILING = {
    "401": _status(401, "authentication"),
    "529": _status(529, "overloaded", retryable=True),
    "max turns": Failing(
        script=spending(10),
        error_type="max_turns",
        calls=[[CHAT], ["execute_tool Bash"]],
        options=AgentOptions(max_turns=1),
    ),
    "max budget": Failing(
        script=spending(100_000),
        error_type="budget_exceeded",
        calls=[[CHAT], ["execute_tool Bash !budget_exceeded"]],
        options=AgentOptions(max_budget_usd=0.01),
    ),
}


@pytest.mark.parametrize("name", FAILING)
async def test_a_turn_that_fails_says_why_in_its_events_its_trace_and_its_outcome(name: str) -> None:
    failing = FAILING[name]
    with e2b_lab(failing.script) as lab:
        done = await run_remotely(lab, options=failing.options)
    why = failing.error_type
    calls = failing.calls or [[f"{CHAT} !{why}"]] * len(lab.model.requests)
    assert done.tree == trace_of([f"agent.execute !{why}", *calls], session=f"agent.session !{why}")
    assert (done.result.is_error, done.result.error_type, done.exit_code) == (True, why, 1)
    error = done.one(p.Error).data
    assert (error.error_type, error.retryable) == (why, failing.retryable)
    assert done.one(p.Result).data.error_type == why
    assert done.one(p.End).data == p.EndData(reason="completed", exit_code=1)


@pytest.mark.parametrize(("cuts", "streaming"), [(1, [True, True]), (2, [True, True, False])])
async def test_a_stream_of_the_model_that_is_cut_halfway_is_asked_for_again(cuts: int, streaming: list[bool]) -> None:
    """When its retries are used up, the CLI sends the request once more without streaming."""
    with e2b_lab(failing("cut: true", times=cuts)) as lab:
        done = await run_remotely(lab, options=AgentOptions(env=ONE_RETRY))
        assert [request.body["stream"] for request in lab.model.requests] == streaming
    assert done.tree == trace_of(["agent.execute", *[[f"{CHAT} !network"]] * cuts, [CHAT]])
    assert [text.data.text for text in done.of(p.Text)] == ["Done."]
    assert (done.result.error_type, done.exit_code) == (None, 0)


async def test_an_interrupt_in_a_tool_ends_the_turn_and_the_conversation_goes_on() -> None:
    with e2b_lab(LONG) as lab:
        up, pids = fifo_of(lab), list[int]()

        async def interrupt(session: Session, event: p.AnyEvent) -> None:
            if isinstance(event, p.ToolUse):
                pids.append(await read(up))
                await session.interrupt()
            if isinstance(event, p.End):
                assert all(is_gone(pid) for pid in pids)  # the processes end before the sandbox does

        done = await run_remotely(lab, "go", "again", options=BASH, react=interrupt)
    assert done.tree == trace_of(CANCELLED, ["agent.execute", [CHAT]])
    assert [result.data.error_type for result in done.of(p.Result)] == ["cancelled", None]
    assert done.one(p.ToolResult).data.error_type == "cancelled"
    assert (done.result.text, done.result.error_type, done.exit_code) == ("Never mind.", None, 130)


async def test_closing_a_session_in_a_tool_ends_the_runner_its_tool_and_the_sandbox() -> None:
    with e2b_lab(LONG) as lab:
        up = fifo_of(lab)
        options = AgentOptions(allowed_tools=("Bash",), model=MODEL)
        async with open_session("go", options, sandbox=lab.sandbox(), environ=lab.environ) as session:
            async for event in session:
                if isinstance(event, p.ToolUse):
                    break
            pid = await read(up)
            [sandbox] = lab.e2b.sandboxes
            [runner] = sandbox.processes
        assert is_gone(pid)
        assert is_gone(runner.pid)
        assert sandbox.state == "gone"
    # 130: the runner got `stop` and ended by itself.
    assert session.exit_code == 130
    assert tree(views(session.trace.kept)) == trace_of(CANCELLED, session="agent.session !cancelled")


async def test_a_runner_that_is_terminated_in_a_tool_ends_its_turn_and_its_processes() -> None:
    with e2b_lab(LONG) as lab:
        up, pids = fifo_of(lab), list[int]()

        async def terminate(_session: Session, event: p.AnyEvent) -> None:
            if isinstance(event, p.ToolUse):
                pids.extend([await read(up), *children(runner_below(runner_pid(lab)))])
                os.kill(runner_pid(lab), signal.SIGTERM)
            if isinstance(event, p.End):
                assert all(is_gone(pid) for pid in pids)

        done = await run_remotely(lab, options=BASH, react=terminate)
    assert len(pids) == 2
    assert done.one(p.End).data == p.EndData(reason="terminated", exit_code=143)
    assert (done.result.is_error, done.result.error_type, done.exit_code) == (True, "cancelled", 143)
    assert done.tree == trace_of(CANCELLED, session="agent.session !cancelled")


async def test_a_cli_that_is_killed_in_a_tool_of_a_later_turn_fails_the_session_and_leaves_nothing_behind() -> None:
    with e2b_lab(replies({"text": "First."}, bash(HANG))) as lab:
        up, pids = fifo_of(lab), list[int]()

        async def kill(_session: Session, event: p.AnyEvent) -> None:
            if isinstance(event, p.ToolUse):
                [cli] = children(runner_below(runner_pid(lab)))
                pids.extend([await read(up), cli])
                os.kill(cli, signal.SIGKILL)
            if isinstance(event, p.End):
                assert all(is_gone(pid) for pid in pids)

        done = await run_remotely(lab, "first", "second", options=BASH, react=kill)
    assert done.types == ["start", "turn_start", "text", "result", "turn_start", "tool_use", "error", "end"]
    assert done.one(p.Error).data.error_type == "cli_crash"
    assert (done.result.is_error, done.result.error_type, done.exit_code) == (True, "cli_crash", 3)
    turn = ["agent.execute !cli_crash", [CHAT], ["execute_tool Bash !cli_crash"]]
    assert done.tree == trace_of(["agent.execute", [CHAT]], turn, session="agent.session !cli_crash")


async def test_a_runner_whose_input_is_closed_early_denies_what_it_would_ask_and_ends_its_turn() -> None:
    with e2b_lab(TOUCH) as lab:

        async def close(session: Session, event: p.AnyEvent) -> None:
            if isinstance(event, p.ApprovalRequest):
                await close_input(lab)
                with pytest.raises(SessionClosedError):
                    await session.send("more")

        done = await run_remotely(lab, react=close)
        assert list(lab.work.iterdir()) == []
    resolved = done.one(p.ApprovalResolved).data
    assert (resolved.decision, resolved.decided_by) == ("deny", "runner:no-one-to-ask")
    tool = ["execute_tool Bash !permission_denied", ["agent.approval"]]
    assert done.tree == trace_of(["agent.execute", [CHAT], tool, [CHAT]])
    assert (done.result.text, done.result.error_type, done.exit_code) == ("Done.", None, 0)


async def close_input(lab: E2BLab) -> None:
    """Close the runner's stdin from another client of E2B with the same key."""
    from e2b import AsyncSandbox

    environ, [sandbox] = lab.environ, lab.e2b.sandboxes
    other = await AsyncSandbox.connect(
        sandbox.id,
        api_key=environ["E2B_API_KEY"],
        api_url=environ["E2B_API_URL"],
        sandbox_url=environ["E2B_SANDBOX_URL"],
    )
    await other.commands.close_stdin(runner_pid(lab))

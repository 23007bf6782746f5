"""A run can be interrupted, stopped or terminated, or its CLI can be killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_runner.contract import protocol
from agent_runner.contract.protocol import Approval, Finish, Interrupt, Prompt, Stop
from tests.support.runs import (
    CHAT,
    ERROR,
    HANG,
    OK,
    SUBAGENT,
    TOUCH,
    WAIT_SECONDS,
    Finished,
    Lab,
    RunnerProcess,
    is_gone,
)

MakeLab = Callable[[str], Lab]

LONG = f"""
    conversations:
      main:
        replies:
          - tools: [{{name: Bash, input: {{command: {json.dumps(HANG)}}}}}]
          - text: Never mind.
"""
CANCELLED = ["agent.execute !cancelled", [CHAT], ["execute_tool Bash !cancelled"]]


def in_a_tool(lab: Lab, *options: str) -> tuple[RunnerProcess, int]:
    """Start a run; return it and the pid of its tool's running process."""
    up = lab.fifo()
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash", *options)
    return runner, int(up.read())


def assert_whole(done: Finished) -> None:
    """Check that the stream has no gaps, every call has ended, and ``end`` is last."""
    seqs = [event.seq for event in done.events if event.seq is not None]
    assert seqs == list(range(1, len(seqs) + 1))
    assert isinstance(done.events[-1], protocol.End)


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_an_interrupt_ends_the_turn_and_the_conversation_goes_on(make_lab: MakeLab, gateway: str) -> None:
    lab = make_lab(LONG)
    runner, pid = in_a_tool(lab, "--gateway", gateway)
    runner.send(Interrupt())
    interrupted = runner.until(protocol.Result)
    assert (interrupted.data.is_error, interrupted.data.error_type) == (True, "cancelled")
    runner.send(Prompt(text="again"))
    runner.until(protocol.Result)
    done = runner.finish()
    assert is_gone(pid)
    assert done.exit_code == 130
    assert_whole(done)
    assert done.types == [
        *("start", "turn_start", "tool_use", "tool_result", "result"),
        *("turn_start", "text", "result", "end"),
    ]
    assert done.tree == [CANCELLED, ["agent.execute", [CHAT]]]
    turn = min((span for span in done.spans if span.name == "agent.execute"), key=lambda span: span.start)
    assert (turn.message, done.span("execute_tool Bash").message) == ("interrupted", "Bash: cancelled")
    assert done.one(protocol.ToolResult).data.error_type == "cancelled"
    assert done.one(protocol.End).data == protocol.EndData(reason="completed", exit_code=130)


def test_an_interrupt_while_a_person_is_asked_cancels_the_question(make_lab: MakeLab) -> None:
    lab = make_lab(LONG)
    runner = lab.start("--prompt", "go")
    runner.until(protocol.ApprovalRequest)
    runner.send(Interrupt())
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 130
    assert_whole(done)
    assert done.one(protocol.ApprovalResolved).data.decision == "cancelled"
    tool = ["execute_tool Bash !cancelled", ["agent.approval !cancelled"]]
    assert done.tree == [["agent.execute !cancelled", [CHAT], tool]]


def test_an_interrupt_while_the_model_writes_ends_its_request(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - {text: This goes on and on and on., pace: 10, first_token_after: 0}
    """)
    runner = lab.start("--prompt", "go")
    runner.until(protocol.TextDelta)
    runner.send(Interrupt())
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 130
    assert_whole(done)
    assert done.tree == [["agent.execute !cancelled", [f"{CHAT} !cancelled"]]]


def test_stop_ends_the_turn_and_then_the_runner(make_lab: MakeLab) -> None:
    lab = make_lab(LONG)
    runner, pid = in_a_tool(lab)
    runner.send(Prompt(text="never begun"), Stop())
    done = runner.finish()
    assert done.exit_code == 130
    assert_whole(done)
    assert done.tree == [CANCELLED]
    assert done.one(protocol.End).data == protocol.EndData(reason="stopped", exit_code=130)
    assert is_gone(pid)


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
def test_a_signal_ends_the_run_and_all_its_processes(
    make_lab: MakeLab, number: signal.Signals, code: int, reason: str
) -> None:
    lab = make_lab(LONG)
    runner, pid = in_a_tool(lab)
    cli = runner.cli
    runner.process.send_signal(number)
    done = runner.finish()
    assert done.exit_code == code
    assert_whole(done)
    assert done.tree == [CANCELLED]
    end = done.one(protocol.End).data
    assert (end.reason, end.exit_code) == (reason, code)
    assert is_gone(pid)
    assert is_gone(cli)


def test_a_signal_before_the_agent_is_up_ends_the_run(make_lab: MakeLab) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: Hi.}]}}")
    runner = lab.start()
    runner.send_raw(b"nonsense\n")
    runner.until(protocol.Error)  # the signal handlers are set by now, and no prompt has come
    runner.process.send_signal(signal.SIGTERM)
    runner.until(protocol.End)  # before stdin ends, of which the runner could hear first
    done = runner.finish()
    assert done.exit_code == 143
    assert done.types == ["error", "end"]
    assert done.tree == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_the_runner_is_starting_ends_the_run(
    make_lab: MakeLab, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: Hi.}]}}")
    journal = tmp_path / "journal"
    runner = lab.start("--prompt", "go", "--journal", str(journal))
    limit = time.monotonic() + WAIT_SECONDS
    while not journal.exists():  # made before the SDK is imported
        assert time.monotonic() < limit
        os.sched_yield()
    runner.process.send_signal(number)
    done = runner.finish()
    assert done.exit_code == code
    assert done.types[-1] == "end"
    assert done.one(protocol.End).data.exit_code == code


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_an_interrupt_that_comes_with_its_prompt_ends_that_turn(make_lab: MakeLab, gateway: str) -> None:
    lab = make_lab(LONG)
    runner = lab.start("--gateway", gateway)
    runner.send(Prompt(text="go"), Interrupt())
    result = runner.until(protocol.Result)
    assert (result.data.is_error, result.data.error_type) == (True, "cancelled")
    done = runner.finish()
    assert done.exit_code == 130
    assert "approval_request" not in done.types


def test_a_killed_cli_is_an_error_and_leaves_nothing_behind(make_lab: MakeLab) -> None:
    lab = make_lab(LONG)
    runner, pid = in_a_tool(lab)
    os.kill(runner.cli, signal.SIGKILL)
    done = runner.finish()
    assert done.exit_code == 3
    assert_whole(done)
    assert done.types == ["start", "turn_start", "tool_use", "error", "end"]
    assert done.tree == [["agent.execute !cli_crash", [CHAT], ["execute_tool Bash !cli_crash"]]]
    error = done.one(protocol.Error)
    assert (error.data.error_type, error.data.retryable) == ("cli_crash", True)
    assert error.span_id == done.span("agent.execute").span_id
    assert done.one(protocol.End).data == protocol.EndData(reason="failed", exit_code=3)
    assert [span.status for span in sorted(done.spans, key=lambda span: span.start)] == [ERROR, OK, ERROR]
    assert is_gone(pid)


def test_a_killed_runner_leaves_a_stream_that_tells_what_was_open(make_lab: MakeLab) -> None:
    lab = make_lab(LONG)
    runner, _ = in_a_tool(lab)
    call = runner.until(protocol.ToolUse)
    runner.process.kill()
    done = runner.finish()
    assert done.exit_code == -signal.SIGKILL
    turn = done.one(protocol.TurnStart)
    # What a host needs to end the spans that a dead runner left open.
    assert call.parent_span_id == turn.span_id
    assert not done.of(protocol.End)


def test_a_signal_while_a_person_is_asked_cancels_the_question(make_lab: MakeLab) -> None:
    lab = make_lab(LONG)
    runner = lab.start("--prompt", "go")
    runner.until(protocol.ApprovalRequest)
    runner.process.send_signal(signal.SIGTERM)
    runner.until(protocol.End)  # before stdin ends, which would deny
    done = runner.finish()
    assert done.exit_code == 143
    assert_whole(done)
    assert done.one(protocol.ApprovalResolved).data.decision == "cancelled"
    tool = ["execute_tool Bash !cancelled", ["agent.approval !cancelled"]]
    assert done.tree == [["agent.execute !cancelled", [CHAT], tool]]


def test_a_terminated_conversation_can_be_resumed(make_lab: MakeLab) -> None:
    lab = make_lab(f"""
        conversations:
          main:
            replies:
              - {{text: First., usage: {{input_tokens: 1000, output_tokens: 100}}}}
              - tools: [{{name: Bash, input: {{command: {json.dumps(HANG)}}}}}]
              - text: Resumed.
              - text: Resumed.  # the CLI may put a message of its own before it
    """)
    up = lab.fifo()
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    runner.until(protocol.Result)
    runner.send(Prompt(text="and on"))
    up.read()
    runner.process.send_signal(signal.SIGTERM)
    before = runner.finish()
    after = lab.run("--prompt", "again", "--resume", before.one(protocol.Start).data.session_id)
    assert after.exit_code == 0
    assert after.tree == [["agent.execute", [CHAT]]]
    past, result = before.of(protocol.Result)[-1].data, after.one(protocol.Result).data
    assert result.result == "Resumed."
    assert result.cost_usd == pytest.approx(result.total_cost_usd - past.total_cost_usd)
    assert result.cost_usd < past.total_cost_usd


def test_a_cli_killed_between_turns_is_an_error_without_a_turn(make_lab: MakeLab) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: Hi.}]}}")
    runner = lab.start("--prompt", "go")
    runner.until(protocol.Result)
    os.kill(runner.cli, signal.SIGKILL)
    runner.until(protocol.End)
    done = runner.finish()
    assert done.exit_code == 3
    assert_whole(done)
    assert done.types == ["start", "turn_start", "text", "result", "error", "end"]
    assert done.one(protocol.Error).data.error_type == "cli_crash"
    assert done.tree == [["agent.execute", [CHAT]]]


def test_a_cli_killed_while_a_person_is_asked_withdraws_the_question(make_lab: MakeLab) -> None:
    lab = make_lab(LONG)
    runner = lab.start("--prompt", "go")
    runner.until(protocol.ApprovalRequest)
    os.kill(runner.cli, signal.SIGKILL)
    runner.until(protocol.End)
    done = runner.finish()
    assert done.exit_code == 3
    assert_whole(done)
    assert done.one(protocol.ApprovalResolved).data.decision == "cancelled"
    tool = ["execute_tool Bash !cli_crash", ["agent.approval !cancelled"]]
    assert done.tree == [["agent.execute !cli_crash", [CHAT], tool]]


def test_after_finish_the_runner_ends_by_itself_and_answers_still_count(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH)
    runner = lab.start()
    runner.send(Prompt(text="go"), Finish())
    request = runner.until(protocol.ApprovalRequest)
    runner.send(Approval(approval_id=request.data.approval_id, decision="allow"))
    runner.until(protocol.End)  # though stdin is open
    done = runner.finish()
    assert done.exit_code == 0
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash", ["agent.approval"]], [CHAT]]]
    assert (lab.cwd / "made").exists()


def test_an_interrupt_ends_a_subagent_that_alone_works_in_the_background(make_lab: MakeLab) -> None:
    lab = make_lab(f"""
        conversations:
          main:
            replies:
              - tools:
                  - {{name: Agent, input: {{description: d, prompt: Work slowly, subagent_type: general-purpose}}}}
              - text: It runs.
          helper:
            when: Work slowly
            replies:
              - tools: [{{name: Bash, input: {{command: {json.dumps(HANG)}}}}}]
              - text: never
    """)
    up = lab.fifo()
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    runner.until(protocol.Result)
    pid = int(up.read())
    runner.send(Interrupt())
    runner.until(protocol.BackgroundTask, lambda task: task.data.state == "stopped")
    done = runner.finish()
    assert is_gone(pid)
    assert_whole(done)
    agent = ["execute_tool Agent !cancelled", [f"{SUBAGENT} !cancelled", [CHAT], ["execute_tool Bash !cancelled"]]]
    assert done.tree == [["agent.execute", [CHAT], agent, [CHAT]]]


def test_an_interrupt_ends_what_works_in_the_background_too(make_lab: MakeLab) -> None:
    lab = make_lab(f"""
        conversations:
          main:
            replies:
              - tools:
                  - {{name: Agent, input: {{description: d, prompt: Work slowly, subagent_type: general-purpose}}}}
                  - {{name: Bash, input: {{command: {json.dumps(HANG)}}}}}
              - text: Go on.
          helper:
            when: Work slowly
            replies:
              - tools: [{{name: Bash, input: {{command: sleep 1.9; sleep 1.9; sleep 1.9; echo end}}}}]
              - text: never
    """)
    up = lab.fifo()
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    up.read()
    runner.until(protocol.ToolUse, lambda use: use.data.parent_tool_use_id is not None)
    runner.send(Interrupt())
    runner.until(protocol.Result)
    runner.send(Prompt(text="and on"))
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 130
    assert_whole(done)
    agent = ["execute_tool Agent !cancelled", [f"{SUBAGENT} !cancelled", [CHAT], ["execute_tool Bash !cancelled"]]]
    bash = ["execute_tool Bash !cancelled"]
    assert done.tree == [["agent.execute !cancelled", [CHAT], agent, bash], ["agent.execute", [CHAT]]]

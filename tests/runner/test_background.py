"""Commands in the background of their turn, on the real CLI: the run waits for them, and says how they end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from agent_runner.contract import protocol
from tests.support.runs import CHAT, HANG, Finished, Lab, RunnerProcess

MakeLab = Callable[[str], Lab]

WAITS = "cat gate"
"""A command that ends when the test opens the lab's fifo ``gate``."""


def script(command: str, extra: str = "run_in_background: true", *, then: str = "- text: It is ready.") -> str:
    """Return a script of an agent that starts a command, says so, and answers once when it is woken."""
    return f"""
        conversations:
          main:
            replies:
              - tools: [{{name: Bash, input: {{command: {json.dumps(command)}, {extra}}}}}]
              - text: It runs.
              {then}
    """


def begin(lab: Lab, *args: str) -> RunnerProcess:
    """Start a run with stdin at its end, and wait for the result of its first turn."""
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash", *args)
    runner.close_stdin()
    runner.until(protocol.Result)
    return runner


def tasks(done: Finished) -> list[protocol.BackgroundTaskData]:
    return [event.data for event in done.of(protocol.BackgroundTask)]


def test_a_run_waits_for_a_command_in_the_background_and_for_the_turn_that_it_wakes(make_lab: MakeLab) -> None:
    lab = make_lab(script(WAITS))
    os.mkfifo(lab.cwd / "gate")
    runner = begin(lab)
    (lab.cwd / "gate").write_text("built\n")
    done = runner.finish()
    assert (done.exit_code, done.one(protocol.End).data.unfinished) == (0, [])
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]], ["agent.execute", [CHAT]]]
    assert [result.data.result for result in done.of(protocol.Result)] == ["It runs.", "It is ready."]
    began, ended = tasks(done)
    use = done.one(protocol.ToolUse)
    assert began == protocol.BackgroundTaskData(
        task_id=began.task_id, kind="local_bash", state="running", description=WAITS, tool_use_id=use.data.id
    )
    assert (ended.task_id, ended.state, ended.exit_code) == (began.task_id, "completed", 0)
    assert [event.span_id for event in done.of(protocol.BackgroundTask)] == [use.span_id] * 2
    bash = done.span("execute_tool Bash")
    first, second = sorted((span for span in done.spans if span.name == "agent.execute"), key=lambda span: span.start)
    assert first.end < bash.end <= second.start
    assert bash.attributes["tool.background"] is True
    assert bash.attributes["process.exit.code"] == 0
    assert abs(bash.attributes["tool.execution_ms"] - bash.ms) < 1


def test_a_command_that_fails_in_the_background_is_a_failed_call(make_lab: MakeLab) -> None:
    lab = make_lab(script(f"{WAITS}; exit 3"))
    os.mkfifo(lab.cwd / "gate")
    runner = begin(lab)
    (lab.cwd / "gate").write_text("broken\n")
    done = runner.finish()
    assert done.exit_code == 0
    assert [(task.state, task.exit_code) for task in tasks(done)] == [("running", None), ("failed", 3)]
    bash = done.span("execute_tool Bash")
    assert (bash.attributes["error.type"], bash.message) == ("tool_error", "Bash: failed in the background")
    assert bash.attributes["process.exit.code"] == 3


def test_a_command_that_is_moved_to_the_background_at_its_timeout_is_waited_for(make_lab: MakeLab) -> None:
    lab = make_lab(script(WAITS, "timeout: 500"))
    os.mkfifo(lab.cwd / "gate")
    runner = begin(lab)
    (lab.cwd / "gate").write_text("late\n")
    done = runner.finish()
    assert done.exit_code == 0
    assert [task.state for task in tasks(done)] == ["running", "completed"]
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]], ["agent.execute", [CHAT]]]


def test_a_command_that_never_ends_is_ended_after_the_timeout_and_named(make_lab: MakeLab) -> None:
    lab = make_lab(script(HANG, then=""))
    up = lab.fifo()
    runner = begin(lab, "--background-timeout", "0.5")
    pid = int(up.read())
    done = runner.finish()
    end = done.one(protocol.End).data
    assert (done.exit_code, end.reason, end.unfinished) == (0, "completed", [HANG])
    assert [task.state for task in tasks(done)] == ["running", "stopped"]
    assert [log.data.text for log in done.of(protocol.Log)] == [
        f"ended unfinished, as it still ran in the background 0.5 s after the last turn: {HANG}"
    ]
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash !timeout"], [CHAT]]]
    assert not os.path.exists(f"/proc/{pid}")


def test_an_interrupt_between_turns_stops_what_runs_in_the_background(make_lab: MakeLab) -> None:
    lab = make_lab(script(HANG, then=""))
    up = lab.fifo()
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    runner.until(protocol.Result)
    pid = int(up.read())
    runner.send(protocol.Interrupt())
    runner.until(protocol.BackgroundTask, lambda task: task.data.state == "stopped")
    done = runner.finish()
    assert (done.exit_code, done.one(protocol.End).data.unfinished) == (0, [])
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash !cancelled"], [CHAT]]]
    assert not os.path.exists(f"/proc/{pid}")


def test_a_heartbeat_tells_a_long_silence_from_a_dead_runner(make_lab: MakeLab) -> None:
    lab = make_lab(script(WAITS, "timeout: 60000", then=""))
    os.mkfifo(lab.cwd / "gate")
    journal = lab.root / "journal"
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash", "--heartbeat", "0.2", "--journal", str(journal))
    use = runner.until(protocol.ToolUse)
    beats = [runner.until(protocol.Heartbeat) for _ in range(2)]
    (lab.cwd / "gate").write_text("done\n")
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    assert [beat.data.tool_use_ids for beat in beats] == [[use.data.id]] * 2
    assert 200 <= beats[0].data.silent_ms < beats[1].data.silent_ms
    before = [event.seq for event in done.events[: done.events.index(beats[0])] if event.seq is not None]
    assert [beat.data.last_seq for beat in beats] == [before[-1]] * 2
    assert b'"type":"heartbeat"' not in journal.read_bytes()


def test_a_prompt_begins_a_turn_while_a_command_runs_in_the_background(make_lab: MakeLab) -> None:
    lab = make_lab(script(WAITS, then="- text: Hello.\n              - text: It is ready."))
    os.mkfifo(lab.cwd / "gate")
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    runner.until(protocol.Result)
    runner.send(protocol.Prompt(text="hello"))
    runner.until(protocol.Result)
    (lab.cwd / "gate").write_text("built\n")
    done = runner.finish()
    assert [result.data.result for result in done.of(protocol.Result)] == ["It runs.", "Hello.", "It is ready."]
    assert done.tree[0] == ["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]


def test_a_prompt_waits_for_the_turn_that_an_ended_command_wakes(make_lab: MakeLab) -> None:
    lab = make_lab(f"""
        conversations:
          main:
            replies:
              - tools: [{{name: Bash, input: {{command: {WAITS}, run_in_background: true}}}}]
              - {{text: It runs on and on., chunk: 1, pace: 0.1}}
              - text: It is ready.
              - text: Hello.
    """)
    os.mkfifo(lab.cwd / "gate")
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    runner.until(protocol.TextDelta)
    runner.send(protocol.Prompt(text="hello"))
    (lab.cwd / "gate").write_text("built\n")
    runner.until(protocol.Result, lambda result: result.data.result == "Hello.")
    done = runner.finish()
    assert [turn.data.prompt_size for turn in done.of(protocol.TurnStart)] == [2, 0, 5]
    texts = [result.data.result for result in done.of(protocol.Result)]
    assert texts == ["It runs on and on.", "It is ready.", "Hello."]


def test_a_signal_ends_the_wait_for_a_command_in_the_background(make_lab: MakeLab) -> None:
    lab = make_lab(script(HANG, then=""))
    up = lab.fifo()
    runner = begin(lab)
    pid = int(up.read())
    runner.process.terminate()
    done = runner.finish()
    end = done.one(protocol.End).data
    assert (done.exit_code, end.reason, end.unfinished) == (143, "terminated", [HANG])
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash !cancelled"], [CHAT]]]
    assert not os.path.exists(f"/proc/{pid}")


def test_stop_ends_a_command_in_the_background_and_names_it(make_lab: MakeLab) -> None:
    lab = make_lab(script(HANG, then=""))
    up = lab.fifo()
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    runner.until(protocol.Result)
    pid = int(up.read())
    runner.send(protocol.Stop())
    done = runner.finish()
    end = done.one(protocol.End).data
    assert (done.exit_code, end.reason, end.unfinished) == (0, "stopped", [HANG])
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash !cancelled"], [CHAT]]]
    assert tasks(done)[-1].state == "stopped"
    assert not os.path.exists(f"/proc/{pid}")

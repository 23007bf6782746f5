"""The host changes and asks a running agent: model, permission mode, tasks, files, MCP servers and context."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_runner.contract import protocol as p
from tests.support.runs import CHAT, MODEL, Lab, RunnerProcess

MakeLab = Callable[[str], Lab]

OTHER = "claude-haiku-4-5"
HELLO = "conversations: {main: {replies: [{text: One.}, {text: Two.}, {text: Three.}]}}"


def asked(runner: RunnerProcess, command: p.AnyControl) -> p.CommandResultData:
    """Send a command and return the data of its result."""
    runner.send(command)
    return runner.until(p.CommandResult).data


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


def write(name: str) -> str:
    return f"{{tools: [{{name: Write, input: {{file_path: {name}, content: {name}}}}}]}}, {{text: Wrote.}}"


def test_a_model_is_used_from_the_next_request_on(make_lab: MakeLab) -> None:
    lab = make_lab(HELLO)
    runner = lab.start("--prompt", "go")
    runner.until(p.Result)
    result = asked(runner, p.SetModel(model=OTHER, command_id="c1", requested_by="ada"))
    assert result == p.CommandResultData(
        command={"type": "set_model", "model": OTHER, "requested_by": "ada"}, command_id="c1"
    )
    runner.send(p.Prompt(text="again"))
    runner.until(p.Result)
    done = runner.finish()
    # The CLI first asks the new model for one token, to see whether it can be used.
    assert [(request.body["model"], request.body["max_tokens"]) for request in lab.model.requests] == [
        (MODEL, 32_000),
        (OTHER, 1),
        (OTHER, 32_000),
    ]
    turns = [span for span in done.spans if span.name == "agent.execute"]
    assert [turn.attributes["gen_ai.request.model"] for turn in turns] == [MODEL, OTHER]
    other = f"chat {OTHER}"
    assert done.tree == [["agent.execute", [CHAT]], [other], ["agent.execute", [other]]]


def test_prompts_and_commands_keep_their_order(make_lab: MakeLab) -> None:
    lab = make_lab(HELLO)
    runner = lab.start("--prompt", "first")
    runner.until(p.Result)  # during a turn commands are carried out at once
    runner.send(p.SetModel(model=OTHER), p.Prompt(text="second"), p.SetModel(model=MODEL), p.Prompt(text="third"))
    for _ in range(2):
        runner.until(p.Result)
    done = runner.finish()
    assert done.exit_code == 0
    turns = [span.attributes["gen_ai.request.model"] for span in done.spans if span.name == "agent.execute"]
    assert turns == [MODEL, OTHER, MODEL]


def test_questions_that_never_end_hold_up_no_prompt_and_no_end(make_lab: MakeLab) -> None:
    lab = make_lab(HELLO)
    runner = lab.start("--prompt", "go")
    runner.until(p.Result)
    stop(runner.cli)
    runner.send(p.GetContextUsage(command_id="c1"), p.Prompt(text="again"))
    resume(runner.cli)
    runner.until(p.Result)
    runner.send(p.Finish(), *(p.GetContextUsage() for _ in range(20)))
    done = runner.finish()
    assert done.exit_code == 0
    assert len(done.of(p.CommandResult)) == 21  # each has an outcome, if only that the run ended


def test_what_is_left_at_the_end_has_an_outcome(make_lab: MakeLab) -> None:
    runner = make_lab(HELLO).start("--prompt", "go")
    runner.until(p.Result)
    stop(runner.cli)
    runner.send(p.SetModel(model=OTHER, command_id="c1"), p.GetMcpStatus(command_id="c2"), p.Stop())
    done = runner.finish()
    outcomes = [(each.data.command_id, each.data.error) for each in done.of(p.CommandResult)]
    assert outcomes == [(key, "the run ended before this was done") for key in ("c1", "c2")]


def test_the_mode_that_an_approval_changes_is_reported(make_lab: MakeLab) -> None:
    lab = make_lab(f"conversations: {{main: {{replies: [{write('a.txt')}, {write('b.txt')}]}}}}")
    runner = lab.start("--prompt", "go")
    request = runner.until(p.ApprovalRequest).data
    runner.send(p.Approval(approval_id=request.approval_id, decision="allow", remember=True))
    assert runner.until(p.AgentChanged).data == p.AgentChangedData(model=MODEL, permission_mode="acceptEdits")
    runner.until(p.Result)
    asked(runner, p.SetModel(model="haiku"))
    runner.send(p.Prompt(text="more"))
    changed = runner.until(p.AgentChanged).data
    assert changed.model is not None and changed.model.startswith("claude-haiku")
    runner.until(p.Result)
    done = runner.finish()
    assert len(done.of(p.ApprovalRequest)) == 1
    turns = [span.attributes["gen_ai.request.model"] for span in done.spans if span.name == "agent.execute"]
    assert turns == [MODEL, changed.model]


def test_a_command_before_the_end_of_the_prompts_is_answered(make_lab: MakeLab) -> None:
    runner = make_lab(HELLO).start()
    runner.send(p.Prompt(text="go"))
    runner.until(p.Result)
    runner.send(p.GetContextUsage(), p.Finish())
    done = runner.finish()
    assert done.exit_code == 0
    value = done.one(p.CommandResult).data.value
    assert value["model"] == MODEL and 0 < value["totalTokens"] < value["maxTokens"]
    assert {"name", "tokens"} <= value["categories"][0].keys()
    assert "gridRows" not in value


def test_the_permission_mode_changes_and_bypassing_is_refused(make_lab: MakeLab) -> None:
    lab = make_lab(f"conversations: {{main: {{replies: [{{text: One.}}, {write('made.txt')}]}}}}")
    runner = lab.start("--prompt", "go")
    runner.until(p.Result)
    refused = asked(runner, p.SetPermissionMode(mode="bypassPermissions"))
    assert refused.error is not None and "Cannot set permission mode to bypassPermissions" in refused.error
    assert asked(runner, p.SetPermissionMode(mode="acceptEdits")).error is None
    runner.send(p.Prompt(text="write"))
    runner.until(p.Result)
    done = runner.finish()
    assert (lab.cwd / "made.txt").read_text() == "made.txt"
    assert not done.of(p.ApprovalRequest)


def test_files_are_rewound_to_a_prompt(make_lab: MakeLab) -> None:
    lab = make_lab(f"conversations: {{main: {{replies: [{write('a.txt')}, {write('b.txt')}]}}}}")
    options = {"enable_file_checkpointing": True, "permission_mode": "acceptEdits"}
    runner = lab.start("--prompt", "go", env={"AGENT_OPTIONS": json.dumps(options)})
    first = runner.until(p.TurnStart).data.user_message_id
    runner.until(p.Result)
    runner.send(p.Prompt(text="more"))
    second = runner.until(p.TurnStart).data.user_message_id
    runner.until(p.Result)
    assert first is not None and second is not None
    assert asked(runner, p.RewindFiles(user_message_id=second)).error is None
    assert (lab.cwd / "a.txt").exists() and not (lab.cwd / "b.txt").exists()
    unknown = asked(runner, p.RewindFiles(user_message_id="11111111-2222-4333-8444-555555555555"))
    assert unknown.error == "No file checkpoint found for this message."
    assert asked(runner, p.RewindFiles(user_message_id=first)).error is None
    assert not (lab.cwd / "a.txt").exists()
    assert runner.finish().exit_code == 0


def test_files_are_not_rewound_while_a_turn_runs(make_lab: MakeLab) -> None:
    lab = make_lab("conversations: {main: {replies: [{tools: [{name: Bash, input: {command: cat gate}}]}, {text: x}]}}")
    os.mkfifo(lab.cwd / "gate")
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    runner.until(p.ToolUse)
    refused = asked(runner, p.RewindFiles(user_message_id="x"))
    assert refused.error == "a turn is running, whose tools may change files: interrupt it first"
    (lab.cwd / "gate").write_text("done\n")
    runner.until(p.Result)
    assert runner.finish().exit_code == 0


def test_a_command_in_the_background_is_stopped_and_no_other_task(make_lab: MakeLab) -> None:
    hang = "cat first; true"
    lab = make_lab(
        f"""
        conversations:
          main:
            replies:
              - tools: [{{name: Bash, input: {{command: {hang}, run_in_background: true, description: hang}}}}]
              - text: It runs.
              - text: Two.
        """
    )
    os.mkfifo(lab.cwd / "first")
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    task = runner.until(p.BackgroundTask).data
    runner.until(p.Result)
    assert asked(runner, p.StopTask(task_id="other")).error == "no task other is running"
    runner.send(p.StopTask(task_id=task.task_id))
    ended = runner.until(p.BackgroundTask).data
    assert (ended.task_id, ended.state) == (task.task_id, "stopped")
    runner.send(p.Prompt(text="again"))
    runner.until(p.Result)
    done = runner.finish()
    assert done.exit_code == 0
    assert [each.data.error for each in done.of(p.CommandResult)] == ["no task other is running", None]
    assert done.tree == [
        ["agent.execute", [CHAT], ["execute_tool Bash !cancelled"], [CHAT]],
        ["agent.execute", [CHAT]],
    ]


SUBAGENT_SCRIPT = """
conversations:
  main:
    replies:
      - tools: [{{name: Agent, input: {{description: dig, prompt: dig deep, subagent_type: general-purpose{extra}}}}}]
      - text: It works.
      - text: Told.
      - text: Again.
  helper:
    when: dig deep
    replies:
      - tools: [{{name: Bash, input: {{command: cat gate}}}}]
      - text: Dug.
"""


def test_after_a_stopped_subagent_the_next_prompt_gets_its_own_answer(make_lab: MakeLab) -> None:
    lab = make_lab(SUBAGENT_SCRIPT.format(extra=", run_in_background: true"))
    os.mkfifo(lab.cwd / "gate")
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    task = runner.until(p.BackgroundTask).data
    runner.until(p.Result)
    refused = asked(runner, p.RewindFiles(user_message_id="x")).error
    assert refused == "a subagent works in the background, whose tools may change files: stop it first"
    assert asked(runner, p.StopTask(task_id=task.task_id)).error is None
    runner.send(p.Prompt(text="again"))
    told, again = runner.until(p.Result).data, runner.until(p.Result).data
    done = runner.finish()
    assert [each.data.prompt_size for each in done.of(p.TurnStart)] == [2, 0, 5]
    assert (told.result, again.result) == ("Told.", "Again.")


def test_a_subagent_of_the_turn_that_is_stopped_is_cancelled(make_lab: MakeLab) -> None:
    lab = make_lab(SUBAGENT_SCRIPT.format(extra=""))
    os.mkfifo(lab.cwd / "gate")
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    task = runner.until(p.SubagentStart).data
    runner.until(p.ToolUse, lambda event: event.data.name == "Bash")
    assert asked(runner, p.StopTask(task_id=str(task.task_id))).error is None
    runner.until(p.Result)
    done = runner.finish()
    assert done.exit_code == 0
    (agent,) = (span for span in done.spans if span.name == "execute_tool Agent")
    assert agent.attributes["error.type"] == "cancelled"


def test_mcp_servers_are_listed_disconnected_and_connected_again(make_lab: MakeLab) -> None:
    program = str(Path(__file__).with_name("stdio_server.py"))
    server = {"command": sys.executable, "args": [program], "env": {"TOKEN": "secret"}}
    lab = make_lab(HELLO)
    runner = lab.start("--prompt", "go", env={"AGENT_OPTIONS": json.dumps({"mcp_servers": {"external": server}})})
    runner.until(p.Result)

    def status() -> Any:
        return asked(runner, p.GetMcpStatus()).value

    assert status() == [{"name": "external", "status": "connected", "error": "", "tools": ["noop"]}]
    assert asked(runner, p.ToggleMcpServer(server_name="external", enabled=False)).error is None
    assert [each["status"] for each in status()] == ["disabled"]
    assert asked(runner, p.ToggleMcpServer(server_name="external", enabled=True)).error is None
    assert [each["status"] for each in status()] == ["connected"]
    assert asked(runner, p.ReconnectMcpServer(server_name="external")).error is None
    unknown = asked(runner, p.ReconnectMcpServer(server_name="other"))
    assert unknown.error == "Server not found: other"
    done = runner.finish()
    assert "secret" not in str(done.events)


def test_a_command_with_a_wrong_value_is_refused(make_lab: MakeLab) -> None:
    runner = make_lab(HELLO).start()
    runner.send_raw(b'{"type": "set_permission_mode", "mode": "yolo"}\n')
    error = runner.until(p.Error).data
    assert error.error_type == "protocol" and "Invalid enum value 'yolo'" in error.message


@pytest.mark.parametrize("kind", [p.SetModel, p.GetContextUsage])
def test_a_repeated_command_is_carried_out_once(make_lab: MakeLab, kind: type[p.SetModel | p.GetContextUsage]) -> None:
    runner = make_lab(HELLO).start("--prompt", "go")
    runner.until(p.Result)
    runner.send(kind(command_id="same"), kind(command_id="same"), p.GetMcpStatus(command_id="last"))
    for _ in range(2):
        runner.until(p.CommandResult)
    runner.send(kind(command_id="same"))  # of a host that has not seen the outcome, which gets it again
    runner.until(p.CommandResult)
    ids = [each.data.command_id for each in runner.finish().of(p.CommandResult)]
    assert ids.count("same") == 2 and ids.count("last") == 1

"""The gateway tells of every model request, also of those that the CLI's messages do not report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from agent_runner._config import Config
from agent_runner._credential import uses_gateway
from agent_runner._privileges import bundled_cli
from agent_runner.contract import protocol
from agent_runner.contract.credentials import PLACEHOLDER
from host_client.scripted_model import parse_script
from tests.support.runs import CHAT, ERROR, Finished, Lab, lab

MakeLab = Callable[[str], Lab]

SEARCH = """
    conversations:
      main:
        replies:
          - tools: [{name: WebSearch, input: {query: weather}}]
          - text: Sunny.
      search:
        when: Perform a web search
        replies: [{text: Nothing found., usage: {input_tokens: 7, output_tokens: 3}}]
"""


def classes(done: Finished) -> list[str]:
    """Return the classes of the requests in their order."""
    return [str(span.attributes["chat.request_class"]) for span in done.spans if span.name.startswith("chat ")]


def test_the_request_of_a_search_stands_below_its_call_and_its_text_is_no_answer(make_lab: MakeLab) -> None:
    done = make_lab(SEARCH).run("--prompt", "go", "--allowed-tools", "WebSearch")
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool WebSearch", [CHAT]], [CHAT]]]
    assert classes(done) == ["main", "auxiliary", "main"]
    (search,) = [s for s in done.spans if s.parent_span_id == done.span("execute_tool WebSearch").span_id]
    assert search.attributes["gen_ai.usage.output_tokens"] == 3
    assert {delta.data.text for delta in done.of(protocol.TextDelta)} == {"Sunny."}


def test_the_requests_of_a_compaction_are_in_its_turn_and_their_text_is_no_answer(make_lab: MakeLab) -> None:
    replies = [{"text": "Hi."}, {"text": "<summary>Greeted.</summary>"}]
    runner = make_lab(json.dumps({"conversations": {"main": {"replies": replies}}})).start()
    for text in ("go", "/compact"):
        runner.send(protocol.Prompt(text=text))
        runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    assert classes(done) == ["main", "compaction"]
    assert done.tree == [["agent.execute", [CHAT]], ["agent.execute", [CHAT]]]
    assert [delta.data.message_id for delta in done.of(protocol.TextDelta)] == [done.one(protocol.Text).data.message_id]


NESTED = {
    "main": {
        "replies": [
            {"tools": [{"name": "Bash", "input": {"command": "CLAUDECODE= %s -p nested </dev/null"}}]},
            {"text": "Done."},
        ]
    },
    "nested": {"when": "nested", "replies": [{"text": "I am another."}]},
}


def test_the_text_of_another_cli_that_a_tool_starts_is_no_answer(make_lab: MakeLab) -> None:
    script = json.dumps({"conversations": NESTED}) % bundled_cli()
    done = make_lab(script).run("--prompt", "go", "--allowed-tools", "Bash")
    assert "I am another." in str(done.one(protocol.ToolResult).data.content)
    assert sorted(classes(done)) == ["main", "main", "tool"]
    assert "".join(delta.data.text for delta in done.of(protocol.TextDelta)) == "Done."


LATER = """
import json, os, time, urllib.request as u
open("up", "w").write("up")
open("go").read()
url = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "tool asks"}]}
headers = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "content-type": "application/json"}
u.urlopen(u.Request(url, json.dumps(body).encode(), headers)).read()
"""


def test_a_request_between_two_turns_is_in_the_trace_and_in_no_turn(make_lab: MakeLab) -> None:
    command = f"python3 - <<'E'\n{LATER}E"
    replies = [
        {"tools": [{"name": "Bash", "input": {"command": command, "run_in_background": True}}]},
        {"text": "It runs."},
        {"text": "It ended."},
    ]
    conversations = {"main": {"replies": replies}, "tool": {"when": "tool asks", "replies": [{"text": "Hi."}]}}
    lab = make_lab(json.dumps({"conversations": conversations}))
    up = lab.fifo()
    os.mkfifo(lab.cwd / "go")
    runner = lab.start("--prompt", "go", "--allowed-tools", "Bash")
    up.read()
    runner.until(protocol.Result)
    (lab.cwd / "go").write_text("go")
    done = runner.finish()
    assert done.exit_code == 0
    (between,) = [span for span in done.spans if span.attributes.get("chat.request_class") == "tool"]
    turns = [span for span in done.spans if span.name == "agent.execute"]
    assert between.parent_span_id == ""
    assert {span.trace_id for span in turns} == {between.trace_id}


# -- where the CLI asks ------------------------------------------------------------------------------

HI = "conversations: {main: {replies: [{text: Hi., tools: [{name: Bash, input: {command: echo one}}]}, {text: Done.}]}}"


def settings(lab: Lab, content: dict[str, object]) -> tuple[str, ...]:
    """Write the project's settings; return the options of a run that reads them."""
    path = lab.cwd / ".claude" / "settings.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return ("--prompt", "go", "--setting-sources", "project", "--allowed-tools", "Bash")


def test_settings_that_send_the_cli_elsewhere_are_reported_and_its_messages_are_traced(make_lab: MakeLab) -> None:
    lab = make_lab(HI)
    options = settings(lab, {"env": {"ANTHROPIC_BASE_URL": lab.model.url}})
    done = lab.run(*options, "--gateway", "on", env={"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"})
    assert done.exit_code == 0
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]]
    (log,) = done.of(protocol.Log)
    assert "do not pass through the gateway, as its settings send them elsewhere" in log.data.text
    turn, first, second = (done.spans[n] for n in (-1, 0, 2))
    assert turn.start <= first.start <= first.end <= second.start <= second.end <= turn.end


def test_a_key_from_the_settings_is_used_without_the_gateway(make_lab: MakeLab) -> None:
    lab = make_lab(HI)
    done = lab.run(*settings(lab, {"apiKeyHelper": "echo sk-ant-helped"}))
    assert done.exit_code == 0
    (log,) = done.of(protocol.Log)
    assert f"the gateway is off, as {lab.cwd}/.claude/settings.json sets apiKeyHelper" in log.data.text
    assert {request.headers["authorization"] for request in lab.model.requests} == {"Bearer sk-ant-helped"}


def refuse(message: str) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"ANTHROPIC_API_KEY": "sk"}, True),
        ({"ANTHROPIC_AUTH_TOKEN": "t"}, True),
        ({"CLAUDE_CODE_OAUTH_TOKEN": "t"}, True),
        ({}, False),
        ({"ANTHROPIC_API_KEY": ""}, False),
        ({"ANTHROPIC_API_KEY": PLACEHOLDER}, False),
        ({"ANTHROPIC_API_KEY": "sk", "CLAUDE_CODE_USE_BEDROCK": "1"}, False),
        ({"ANTHROPIC_API_KEY": "sk", "CLAUDE_CODE_USE_VERTEX": "1"}, False),
        ({"ANTHROPIC_API_KEY": "sk", "CLAUDE_CODE_USE_FOUNDRY": "1"}, False),
    ],
)
def test_auto_keeps_the_key_of_a_variable(environ: dict[str, str], expected: bool) -> None:
    assert uses_gateway(Config(), environ, refuse) is expected
    assert uses_gateway(Config(gateway="on"), environ, refuse)
    assert not uses_gateway(Config(gateway="off"), environ, refuse)


@pytest.mark.parametrize(
    "content",
    [
        '{"apiKeyHelper": "x"}',
        '{"env": {"ANTHROPIC_API_KEY": "sk-other"}}',
        '{"env": {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}}',
        '{"env": {"CLAUDE_CODE_USE_BEDROCK": "1"}}',
    ],
)
@pytest.mark.parametrize("source", ["user", "project", "local"])
def test_auto_leaves_the_key_to_a_cli_whose_settings_name_another(tmp_path: Path, source: str, content: str) -> None:
    names = {"user": "home/settings.json", "project": ".claude/settings.json", "local": ".claude/settings.local.json"}
    path = tmp_path / names[source]
    path.parent.mkdir()
    path.write_text(content)
    environ = {"ANTHROPIC_API_KEY": "sk", "CLAUDE_CONFIG_DIR": str(tmp_path / "home")}
    reported: list[str] = []
    assert not uses_gateway(Config(cwd=str(tmp_path), setting_sources=(source,)), environ, reported.append)
    assert str(path) in reported[0]
    assert uses_gateway(Config(cwd=str(tmp_path)), environ, refuse), "settings that the CLI does not read"


DENY = '{"permissions": {"deny": ["Bash(echo $ANTHROPIC_API_KEY)"]}}'


@pytest.mark.parametrize("content", ["", "[1]", '{"env": 1}', DENY])
def test_auto_keeps_the_key_if_the_settings_say_nothing_about_it(tmp_path: Path, content: str) -> None:
    (tmp_path / ".claude").mkdir()
    (tmp_path / ".claude" / "settings.json").write_text(content)
    config = Config(cwd=str(tmp_path), setting_sources=("project",))
    assert uses_gateway(config, {"ANTHROPIC_API_KEY": "sk"}, refuse)


# -- requests that the CLI abandons ------------------------------------------------------------------

STALLED = "{text: late, first_token_after: 600}"
SHORTEST_SILENCE_MS = 10_000
"""The shortest silence of an answer for which the CLI can be told to abandon a request."""


def test_a_request_that_the_cli_abandons_in_the_middle_of_its_answer_is_a_timeout(make_lab: MakeLab) -> None:
    lab = make_lab(f"conversations: {{main: {{replies: [{STALLED}]}}}}")
    env = {"CLAUDE_ENABLE_BYTE_WATCHDOG": "1", "CLAUDE_BYTE_STREAM_IDLE_TIMEOUT_MS": str(SHORTEST_SILENCE_MS)}
    done = lab.run("--prompt", "go", env=env)
    assert done.exit_code == 0
    # The CLI then asks for the same without a stream.
    assert done.tree == [["agent.execute", [f"{CHAT} !timeout"], [CHAT]]]
    abandoned = next(span for span in done.spans if span.name == CHAT and span.status == ERROR)
    assert abandoned.message == "the CLI waited 10 s for more of the answer"
    assert abandoned.attributes["http.response.status_code"] == 200


def stalled_helper(background: bool, *replies: str) -> str:
    """Return the script of an agent that starts a subagent, whose model request gets no more than a beginning."""
    agent = {"description": "d", "prompt": "helper work", "run_in_background": background}
    first = f"{{tools: [{{name: Agent, input: {json.dumps(agent)}}}]}}"
    main = f"{{replies: [{', '.join((first, *replies))}]}}"
    return f"conversations: {{main: {main}, helper: {{when: helper work, replies: [{STALLED}]}}}}"


def test_a_request_that_is_stopped_is_cancelled_however_long_its_answer_was_silent(tmp_path: Path) -> None:
    stops = ("interrupt", "interrupt between turns", "TaskStop")
    replies = ("{text: It runs.}",)
    with ExitStack() as stack:
        # The three wait for the silence at the same time.
        labs = {
            stop: stack.enter_context(
                lab(tmp_path / stop, stalled_helper(True, *replies) if stop != "interrupt" else stalled_helper(False))
            )
            for stop in stops
        }
        runners = {stop: labs[stop].start("--prompt", "go", "--heartbeat", "0.5") for stop in stops}
        helpers = {stop: runners[stop].until(protocol.SubagentStart).data.task_id for stop in stops}
        for stop in stops[1:]:
            runners[stop].until(protocol.Result)
        for runner in runners.values():
            runner.until(protocol.Heartbeat, lambda beat: beat.data.silent_ms > SHORTEST_SILENCE_MS + 500)
        for stop in stops[:2]:
            runners[stop].send(protocol.Interrupt())
        call = f"{{tools: [{{name: TaskStop, input: {{task_id: {helpers['TaskStop']}}}}}]}}"
        labs["TaskStop"].model.script = parse_script(stalled_helper(True, *replies, call, "{text: Stopped.}"))
        runners["TaskStop"].send(protocol.Prompt(text="stop it"))
        runners["TaskStop"].until(protocol.Result)
        for stop, runner in runners.items():
            spans = runner.finish().spans
            (request,) = [each for each in spans if each.attributes.get("chat.request_class") == "subagent"]
            assert request.attributes["error.type"] == "cancelled", stop
            assert request.attributes["http.response.status_code"] == 200
            assert request.ms > SHORTEST_SILENCE_MS

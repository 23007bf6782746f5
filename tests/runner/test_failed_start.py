"""A run that fails before its first turn leaves that turn's span, which says why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_runner._config import Config
from agent_runner._events import Events
from agent_runner._failed_start import FailedStart
from agent_runner._telemetry import Relay
from agent_runner.contract import protocol
from agent_runner.contract.sanitize import brief
from agent_runner.contract.trace_context import TraceContext
from tests.support.account import need_root
from tests.support.collector import Collector
from tests.support.runs import ERROR, Finished, Lab, SpanView, read_events

MakeLab = Callable[[str], Lab]

NO_REQUEST = "conversations: {main: {replies: []}}"
CALLER = f"00-{'a' * 32}-{'b' * 16}-01"
NO_CONVERSATION = ("--resume", "11111111-2222-3333-4444-555555555555")

BAD_SETTINGS = [
    ("--max-turns", "0"),
    ("--cwd", "/no/such/place"),
    ("--mcp-servers", "lab=no.such:thing"),
    ("--user", "no-such-account"),
    ("--journal", "/no/such/place/journal"),
]


def only_span(done: Finished) -> SpanView:
    """Return the run's only span, after checks that it is the failed first turn's and that the error belongs to it."""
    assert done.tree == [[f"agent.execute !{done.one(protocol.Error).data.error_type}"]]
    (span,) = done.spans
    assert (span.trace_id, span.parent_span_id, span.status) == ("a" * 32, "b" * 16, ERROR)
    assert (span.attributes["agent.turn"], span.attributes["user.id"]) == (1, "ann")
    assert done.one(protocol.Error).span_id == span.span_id
    return span


def fail(lab: Lab, *options: str, **env: str) -> Finished:
    return lab.run("--prompt", "go", "--user-id", "ann", *options, env={"TRACEPARENT": CALLER, **env})


def prompt_in(span: SpanView) -> str | None:
    messages = span.attributes.get("gen_ai.input.messages")
    return json.loads(messages)[0]["parts"][0]["content"] if messages else None


def assert_refused(done: Finished, exit_code: int) -> None:
    error = done.one(protocol.Error).data
    assert (done.exit_code, error.error_type, error.retryable) == (exit_code, "invalid_request", False)
    span = only_span(done)
    assert prompt_in(span) == "go"
    if (
        exit_code == 2 and "Claude Code does not start" not in error.message
    ):  # the value of a bad setting may be a prompt or hold a secret
        assert re.fullmatch(r"(AGENT_[A-Z_]+|--[a-z-]+|the configuration) is not valid", span.message)
    else:
        assert span.message == brief(error.message)


@pytest.mark.parametrize("setting", BAD_SETTINGS, ids=[setting[0] for setting in BAD_SETTINGS])
def test_a_bad_setting_leaves_the_turns_span(make_lab: MakeLab, setting: tuple[str, str]) -> None:
    assert_refused(fail(make_lab(NO_REQUEST), *setting), 2)


def test_bypassing_permissions_as_root_leaves_the_turns_span(make_lab: MakeLab) -> None:
    need_root()
    assert_refused(fail(make_lab(NO_REQUEST), "--permission-mode", "bypassPermissions"), 2)


@pytest.mark.parametrize(("conversation", "exit_code"), [(NO_CONVERSATION[1], 3), ("not-an-id", 2)])
def test_a_conversation_that_does_not_exist_leaves_the_turns_span(
    make_lab: MakeLab, conversation: str, exit_code: int
) -> None:
    assert_refused(fail(make_lab(NO_REQUEST), "--resume", conversation), exit_code)


@pytest.mark.parametrize("content", [None, "echo", "#!/bin/sh\nexit 7\n"], ids=["missing", "no program", "exits"])
def test_a_cli_that_cannot_start_leaves_the_turns_span(make_lab: MakeLab, tmp_path: Path, content: str | None) -> None:
    cli = tmp_path / "cli"
    if content is not None:
        cli.write_text(content)
        cli.chmod(0o755)
    done = fail(make_lab(NO_REQUEST), "--cli-path", str(cli))
    error = done.one(protocol.Error).data
    exits = content is not None and content.startswith("#!")
    assert (done.exit_code, error.error_type, error.retryable) == (3, "cli_crash", exits)
    assert prompt_in(only_span(done)) == "go"


@pytest.mark.parametrize("setting", [("--max-turns", "0"), NO_CONVERSATION, ("--sanitizer", "no.such:thing")])
def test_the_span_goes_to_an_endpoint_where_there_is_one(make_lab: MakeLab, setting: tuple[str, str]) -> None:
    with Collector() as endpoint:
        done = fail(make_lab(NO_REQUEST), *setting, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint.url)
        (span,) = endpoint.spans
    assert (span.name, span.parent_span_id) == ("agent.execute", "b" * 16)
    assert span.attributes["error.type"] == "invalid_request"
    assert done.one(protocol.Error).span_id == span.span_id
    assert done.spans == []


@pytest.mark.parametrize("setting", [("--max-turns", "0"), NO_CONVERSATION])
def test_without_telemetry_the_error_is_the_same_and_there_is_no_span(
    make_lab: MakeLab, setting: tuple[str, str]
) -> None:
    done = fail(make_lab(NO_REQUEST), *setting, OTEL_ENABLED="false")
    assert done.one(protocol.Error).data.error_type == "invalid_request"
    assert done.types[-2:] == ["error", "end"]
    assert done.spans == []


@pytest.mark.parametrize(
    "setting", [("--content", "non"), ("--contnt", "none"), ("--content",), ("--sanitizer", "no.such:thing")]
)
def test_a_prompt_stays_out_of_the_span_if_the_setting_for_it_cannot_be_read(
    make_lab: MakeLab, setting: tuple[str, ...]
) -> None:
    done = fail(make_lab(NO_REQUEST), *setting, AGENT_PROMPT="go", AGENT_USER_ID="ann")
    assert prompt_in(only_span(done)) is None


def test_a_prompt_command_puts_the_span_under_its_own_caller(make_lab: MakeLab) -> None:
    runner = make_lab(NO_REQUEST).start(*NO_CONVERSATION, env={"TRACEPARENT": CALLER})
    runner.send(protocol.Prompt(text="hello", traceparent=f"00-{'c' * 32}-{'d' * 16}-01"))
    runner.until(protocol.End)
    (span,) = runner.finish().spans
    assert (span.trace_id, span.parent_span_id, prompt_in(span)) == ("c" * 32, "d" * 16, "hello")


def test_a_missing_package_leaves_the_turns_span() -> None:
    lines: list[bytes] = []

    class Kept:
        def put(self, line: bytes, offset: int | None, *, live: bool = False) -> None:
            lines.append(line)

    context = TraceContext("a" * 32, "b" * 16)
    events = Events(Kept(), None, context)
    failed = FailedStart(Config(prompt="go", user_id="ann"), events, Relay({}, events.emit), context)
    code = failed.not_installed(ModuleNotFoundError("No module named 'claude_agent_sdk'", name="claude_agent_sdk"))
    done = Finished(read_events(b"".join(lines)), code, "")
    error = done.one(protocol.Error).data
    assert (code, error.error_type, error.retryable) == (3, "internal", False)
    assert prompt_in(only_span(done)) == "go"

"""Today's runner accepts the variables, command lines and commands of a host of f6f5305."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from host_client import events as p
from tests.compat.recordings import Json, Recording, load
from tests.compat.sandboxes import SCRIPT, connect, make, recorded, start
from tests.compat.scenarios import SCENARIOS
from tests.support.hosts import e2b_lab
from tests.support.runs import (
    WAIT_SECONDS,
    Finished,
    Lab,
    RunnerProcess,
    SpanView,
    any_tree,
    clean_environment,
    spans_in,
)

MakeLab = Callable[[str], Lab]

RUN = ("tools", "decisions", "interrupted", "two_turns", "untraced")
"""Recorded runs to repeat; together they use every command of the contract except `stop`, and most options."""

CHECKS = ("Python", "msgspec", "claude-agent-sdk", "opentelemetry-sdk", "Claude CLI", "Journals")
"""Checks that f6f5305's doctor made on every machine."""


def lead(lab: Lab, recording: Recording) -> Finished:
    """Start the runner like the recorded host and send its commands, each after the event that caused it."""
    environment = recording.about["environment"]
    here = {"ANTHROPIC_BASE_URL": lab.model.url, "AGENT_CWD": str(lab.cwd), "AGENT_JOURNAL": str(lab.root / "journal")}
    kept = {name: value for name, value in environment.items() if name not in here}
    assert recording.about["arguments"] == ["run"]
    runner = lab.start(env={**kept, **here})
    asked: dict[str, str] = {}
    for number, step in enumerate(step for step in recording.steps if step.is_command):
        _await_cause(runner, step.value, is_first=number == 0, asked=asked)
        line = step.line
        for old, new in zip(_asked_ids(recording), asked.values(), strict=False):
            line = line.replace(old, new)
        runner.send_raw(f"{line}\n".encode())
    return runner.finish()


def _await_cause(runner: RunnerProcess, command: Json, *, is_first: bool, asked: dict[str, str]) -> None:
    """Wait for the event that causes the recorded command."""
    match command["type"]:
        case "approval":
            approval = runner.until(p.ApprovalRequest)
            asked[approval.data.approval_id] = approval.data.approval_id
        case "answer":
            question = runner.until(p.QuestionRequest)
            asked[question.data.question_id] = question.data.question_id
        case "interrupt":
            runner.until(p.ToolUse)
        case "finish":
            runner.until(p.Result)
        case _ if not is_first:
            runner.until(p.Result)
        case _:
            pass


def _asked_ids(recording: Recording) -> list[str]:
    """Return the ids of the recorded approval and question requests in order."""
    found = [event["data"] for event in recording.events if event["type"].endswith("_request")]
    return [data.get("approval_id") or data["question_id"] for data in found]


def recorded_spans(events: Sequence[Json]) -> list[SpanView]:
    told = [event["data"]["otlp"] for event in events if event["type"] == "telemetry"]
    return [span for otlp in told for span in spans_in(base64.b64decode(otlp))]


def types(events: Sequence[Any]) -> list[str]:
    """Return the types of events without those whose place depends on timing, and without those that are new."""
    return [kind for kind in events if kind not in ("telemetry", "text_delta", "log", "subagent_start")]


def old_tree(spans: Sequence[SpanView]) -> list[Any]:
    """Return the tree of spans as f6f5305's runner had it.

    It had no spans of subagents, and named those of model requests after the model that answered.
    """
    return _lifted(any_tree(spans))


def _lifted(nodes: list[Any]) -> list[Any]:
    lifted: list[Any] = []
    for label, *children in nodes:
        below = _lifted(children)
        label = "chat" if label.startswith("chat ") else label
        lifted += below if label.startswith("invoke_agent ") else [[label, *below]]
    return lifted


def results(events: Sequence[Json]) -> list[Json]:
    """Return the result of each turn without fields that depend on time or chance; dollars exact to 1e-9.

    f6f5305 did not round ``total_cost_usd``.
    """
    names = ("turn", "result", "is_error", "subtype", "cost_usd", "total_cost_usd", "num_turns", "error_type")
    data = [event["data"] for event in events if event["type"] == "result"]
    return [
        {name: each.get(name) for name in names} | {"total_cost_usd": round(each["total_cost_usd"], 9)} for each in data
    ]


@pytest.mark.parametrize("name", RUN)
def test_a_run_led_by_an_old_host_comes_to_what_it_came_to(make_lab: MakeLab, name: str) -> None:
    recording = load(name)
    lab = make_lab(SCENARIOS[name].script)
    done = lead(lab, recording)
    events: list[Json] = [json.loads(p.encode(event)) for event in done.events]
    expected = recording.events
    assert types([event["type"] for event in events]) == types([event["type"] for event in expected])
    assert results(events) == results(expected)
    assert done.exit_code == recording.about["exit_code"]
    assert done.of(p.Error) == []
    assert old_tree(done.spans) == old_tree(recorded_spans(expected))
    _check_attributes(done.spans, recorded_spans(expected))


def _check_attributes(spans: list[SpanView], expected: list[SpanView]) -> None:
    """Check that spans have the same names, traces and identities, and that no attribute name is missing.

    The spans of subagents are new, and an attribute has a later name.
    """
    spans = [span for span in spans if not span.name.startswith("invoke_agent ")]
    ours = ("user.id", "tenant.id", "session.id", "org", "region", "gen_ai.operation.name", "gen_ai.tool.name")

    def about(span: SpanView) -> tuple[Any, ...]:
        return span.name, span.trace_id, span.tracestate, *(span.attributes.get(name) for name in ours)

    assert sorted(map(about, spans), key=repr) == sorted(map(about, expected), key=repr)
    missing = {name for span in expected for name in span.attributes} - {n for span in spans for n in span.attributes}
    assert missing <= {"gen_ai.usage.cache_creation.input_tokens"}


def test_the_journal_is_read_by_the_command_line_of_an_old_host(make_lab: MakeLab) -> None:
    lab = make_lab(SCENARIOS["untraced"].script)
    lead(lab, load("untraced"))
    journal = lab.root / "journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    args = ("attach", "--after", "3", "--journal", str(journal))
    attached = lab.popen(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr = attached.communicate(timeout=WAIT_SECONDS)
    assert (attached.returncode, stderr) == (0, b"")
    assert stdout == b"".join(lines[3:])
    missing = lab.popen("attach", "--after", "0", "--journal", str(journal.with_name("none")), stderr=subprocess.PIPE)
    assert missing.wait(WAIT_SECONDS) == 2


def test_an_old_host_runs_a_whole_session_in_a_template_of_today() -> None:
    session = recorded()
    with e2b_lab(SCRIPT) as lab:
        sandbox = connect(lab, make(lab, session["other"]))
        said: list[str] = []
        for process in session["processes"]:
            if not process["stdin"]:  # creates directories only; runs no code of the runner
                continue
            handle = start(lab, sandbox, process)
            if process["received"]:
                sandbox.commands.send_stdin(handle.pid, process["received"])
            said.append("".join(stdout or "" for stdout, _, _ in handle))
        sandbox.kill()
    ran, attached = ([json.loads(line) for line in text.splitlines()] for text in said)
    then = [json.loads(line) for line in session["journal"]["text"].splitlines()]
    assert types([event["type"] for event in ran]) == types([event["type"] for event in then])
    assert results(ran) == results(then)
    assert attached == [event for event in ran if event.get("seq", 0) > 5]
    assert old_tree(recorded_spans(ran)) == old_tree(recorded_spans(then))


def test_the_doctor_looks_at_what_it_looked_at(tmp_path: Path) -> None:
    # `doctor --image`, which a template's build runs, is tested in tests/template.
    command = [sys.executable, "-I", "-m", "agent_runner", "doctor"]
    env = clean_environment(tmp_path)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    lines = [re.fullmatch(r"(\S) ([^:]+): .+", line) for line in done.stdout.splitlines()]
    assert None not in lines, done.stdout
    found = {line[2]: line[1] for line in lines if line is not None}
    assert set(CHECKS) <= found.keys()
    assert done.returncode == int("✗" in found.values())

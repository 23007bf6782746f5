"""Today's host lists, sweeps, resumes, streams and takes over sandboxes in E2B that a host of f6f5305 made."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from host_client import AgentOptions, Whereabouts, events, open_session, take_over
from host_client.telemetry import TelemetryConfig, initialize_telemetry
from tests.compat.canonical import CONVENTIONS
from tests.compat.files import PLAYED, read_json
from tests.compat.playing import Collected, spans_of
from tests.compat.recordings import Json, Recording, load
from tests.compat.sandboxes import SCRIPT, connect, leave_paused, make, recorded, start
from tests.e2e.test_e2b_commands import host_client
from tests.support.e2b import Ending
from tests.support.hosts import E2BLab, e2b_lab
from tests.support.runs import WAIT_SECONDS
from tests.telemetry.receiver import WAIT_SECONDS as DELIVERY_SECONDS

ROOT = Path(__file__).resolve().parents[2]
NOBODY_ASKS = "conversations: {main: {replies: []}}"
OPTIONS = AgentOptions(user_id="ada", tenant_id="acme", allowed_tools=("Bash",), attributes={"org": "acme"})


def test_an_old_paused_session_is_listed_and_resumed_in_its_trace(tmp_path: Path) -> None:
    session = recorded()
    with e2b_lab(SCRIPT) as lab:
        sandbox_id = leave_paused(lab, session)
        (listed,) = map(json.loads, host_client(lab, tmp_path, "sandboxes", "list", "--json").stdout.splitlines())
        done = host_client(lab, tmp_path, "resume", session["session_id"][:8], "two", "--end", "--approvals", "auto")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Second." in done.stdout
        assert lab.e2b.sandbox(sandbox_id).state == "gone"
        asked = json.dumps(lab.model.requests[-1].body["messages"])
    expected = {"sandbox_id": sandbox_id, "state": "paused", "session_id": session["session_id"], "user_id": "ada"}
    expected |= {"tenant_id": "acme", "keep": "pause", "prompt": "one", "host": None, "ends_at": None}
    assert {name: listed[name] for name in expected} == expected
    assert re.findall(r"trace ([0-9a-f]{32})", done.stdout)[0] == session["root"]["trace_id"]
    assert "First." in asked
    assert "kept" in asked


def test_old_sandboxes_are_swept_when_their_hosts_are_gone_and_left_when_not(tmp_path: Path) -> None:
    session = recorded()
    with e2b_lab(NOBODY_ASKS) as lab:
        # A host renews a sandbox's life of 300 s every 100 s, so one with 60 s left has no living host.
        alive, abandoned = (make(lab, {**session["other"], "timeout": left}) for left in (300, 60))
        kept = make(lab, {**session["kept"], "timeout": 60})
        listed = [
            json.loads(line) for line in host_client(lab, tmp_path, "sandboxes", "list", "--json").stdout.splitlines()
        ]
        assert {each["sandbox_id"]: each["host"] for each in listed} == {
            alive: "alive",
            abandoned: "gone",
            kept: "gone",
        }
        swept = host_client(lab, tmp_path, "sandboxes", "sweep")
        assert (swept.returncode, swept.stdout) == (0, f"{abandoned} removed\n")
        for each in (alive, kept):
            lab.e2b.lose(each)


def test_todays_host_notes_on_a_sandbox_what_an_old_one_looks_for() -> None:
    session = recorded()
    with e2b_lab(SCRIPT) as lab:
        asyncio.run(_run(lab))
        (body,) = [each.json() for each in lab.e2b.requests if each.line == "POST /v2/sandboxes"]
    then = session["kept"]
    about = ("templateID", "timeout", "autoPause", "autoResume", "envVars")
    assert {name: body.get(name) for name in about} == {name: then.get(name) for name in about}
    assert then["metadata"].keys() - body["metadata"].keys() == set()
    steady = (
        "sandspan",
        "user.id",
        "tenant.id",
        "prompt",
        "team",
        "sandspan.timeout",
        "sandspan.keys",
        "sandspan.keep",
    )
    assert {name: body["metadata"][name] for name in steady} == {name: then["metadata"][name] for name in steady}
    for name in ("session.id", "sandspan.run_id", "trace_id", "traceparent", "sandspan.pid", "sandspan.host"):
        assert shape(body["metadata"][name]) == shape(then["metadata"][name])


def shape(value: str) -> str:
    """Replace each word by ``x``, so that values of the same format are equal."""
    return re.sub(r"[0-9A-Za-z_.]+", "x", value).replace("x-x-x/", "x/").replace("x-x/", "x/")


async def _run(lab: E2BLab) -> None:
    sandbox = lab.sandbox(pause=True, metadata={"team": "blue"}, envs={"PLAIN": "yes"})
    async with open_session("one", OPTIONS, sandbox=sandbox, environ=lab.environ) as session:
        await session.finish()
        async for _ in session:
            pass


# -- the runner of an old template ------------------------------------------------------------------------


@contextmanager
def old_template(recording: Recording, tmp_path: Path) -> Generator[E2BLab]:
    """Serve a stand-in of E2B whose template contains a runner that replays a recording."""
    python = tmp_path / "python"
    command = shlex.join((sys.executable, "-m", "tests.compat.old_runner", recording.name))
    python.write_text(f'#!/bin/sh\ncd {shlex.quote(str(ROOT))} && exec {command} "$@"\n')
    python.chmod(0o755)
    with e2b_lab(NOBODY_ASKS, python=str(python)) as lab:
        yield lab


@pytest.mark.parametrize(("name", "ending"), [("subagents", None), ("tools", Ending.RESET)])
def test_a_session_in_an_old_template_is_streamed_also_where_its_stream_is_cut(
    tmp_path: Path, name: str, ending: Ending | None
) -> None:
    recording, collected = load(name), Collected()
    telemetry = initialize_telemetry(
        TelemetryConfig(exporters=(), custom_exporters=[collected], conventions=CONVENTIONS)
    )

    async def run(lab: E2BLab) -> list[Json]:
        seen: list[Json] = []
        about: Any = {"session_id": recording.about["session_id"], "root": recording.root, "telemetry": telemetry}
        opening = open_session(recording.prompt, recording.options, sandbox=lab.sandbox(), environ=lab.environ, **about)
        async with asyncio.timeout(WAIT_SECONDS), opening as session:
            async for event in session:
                seen.append(json.loads(events.encode(event)))
                if isinstance(event, events.ToolUse) and ending is not None:
                    lab.e2b.cut_streams(ending)
                if isinstance(event, events.Result):
                    await session.finish()
        assert (session.exit_code, session.failure) == (recording.about["exit_code"], None)
        return seen

    with old_template(recording, tmp_path) as lab:
        seen = asyncio.run(run(lab))
    assert telemetry.shutdown(DELIVERY_SECONDS)
    assert [event for event in seen if "seq" in event] == [step.value for step in recording.journal]
    expected = {
        key: span for key, span in read_json(PLAYED)["runs"][name]["spans"].items() if span["name"] != "sandbox.create"
    }
    spans = {key: span for key, span in spans_of(recording, collected).items() if span["name"] != "sandbox.create"}
    assert spans == expected


def test_a_session_in_an_old_template_is_taken_over_from_its_old_host(tmp_path: Path) -> None:
    recording, session = load("two_turns"), recorded()
    seen_seq = next(event["seq"] for event in recording.events if event["type"] == "result")
    (runner,) = [each for each in session["processes"] if each["args"][-1].endswith(" run")]
    with old_template(recording, tmp_path) as lab:
        sandbox = connect(lab, make(lab, session["other"]))
        handle = start(lab, sandbox, runner)
        sandbox.commands.send_stdin(handle.pid, runner["received"].splitlines(keepends=True)[0])
        read_until(handle, seen_seq)
        told: Json = {**session["whereabouts"], "process_id": str(handle.pid)}
        assert told["info"]["journal"] == runner["envs"]["AGENT_JOURNAL"]
        told["info"] = {**told["info"], "id": sandbox.sandbox_id}
        told["trace_ids"] = [recording.root.trace_id]
        rest = asyncio.run(_take_over(lab, recording, msgspec.convert(told, Whereabouts), seen_seq))
        assert lab.e2b.sandbox(sandbox.sandbox_id).state == "gone"
    assert rest == [step.value for step in recording.journal if step.seq > seen_seq]


def read_until(handle: Any, seq: int) -> None:
    """Read a runner's output up to an event, as its old host did, and disconnect."""
    text = ""
    for stdout, _, _ in handle:
        text += stdout or ""
        if any(json.loads(line).get("seq") == seq for line in text.splitlines(keepends=True) if line.endswith("\n")):
            break
    handle.disconnect()


async def _take_over(lab: E2BLab, recording: Recording, told: Whereabouts, seen_seq: int) -> list[Json]:
    rest: list[Json] = []
    about: Any = {"session_id": recording.about["session_id"], "root": recording.root, "seen_seq": seen_seq}
    opening = take_over(told, recording.options, sandbox=lab.sandbox(), environ=lab.environ, **about)
    async with asyncio.timeout(WAIT_SECONDS), opening as session:
        for command in recording.commands[1:2]:
            await session.send(command["text"], traceparent=command["traceparent"], tracestate=command["tracestate"])
        async for event in session:
            rest.append(json.loads(events.encode(event)))
            if isinstance(event, events.Result):
                await session.finish()
    assert (session.exit_code, session.failure) == (0, None)
    return [event for event in rest if "seq" in event]

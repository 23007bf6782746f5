"""The host withstands a hostile program in place of the runner, which the real runner cannot be made to be."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import resource
import sys
from collections.abc import Mapping

import pytest
from rich.console import Console

from agent_runner.contract import otlp, readable
from agent_runner.contract import protocol as p
from agent_runner.contract.oom import oom_kills
from agent_runner.contract.spans import Span
from host_client import LocalSandbox, Session, open_session
from host_client.cli._render import Renderer, approval_card
from host_client.sandbox.local import LocalProcess
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.export.console import TraceTree, otlp_json
from tests.support.hosts import numbered, views
from tests.support.told_sandbox import ToldSandbox

pytestmark = pytest.mark.anyio

HEAD = """
import json, os, signal, sys, time
TRACE = os.environ["TRACEPARENT"].split("-")[1]
ID = {"v": 1, "ts": 1.0, "trace_id": TRACE, "span_id": "b" * 16}
def say(type, seq, about={}, **data):
    os.write(1, json.dumps({"type": type, "seq": seq, **ID, **about, "data": data}).encode() + b"\\n")
"""


class TakenOver(LocalSandbox):
    """A local sandbox that runs a hostile program in place of the runner."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self._program = HEAD + program

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> LocalProcess:
        program = self._program if args[0] == "run" else "raise SystemExit(3)"
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, **env},
            start_new_session=True,
        )
        started = LocalProcess(process, oom_kills())
        self._processes.append(started)
        return started


async def everything(session: Session) -> list[p.AnyEvent]:
    async with asyncio.timeout(60):
        return [event async for event in session]


async def test_a_flood_waits_for_its_reader_and_fills_no_memory() -> None:
    program = """
for n in range(1, 30_001):
    say("log", n, stream="stderr", text="x" * 5000)
say("end", 30_001, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}) as session:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        first = await anext(aiter(session))
        rest = 0
        async with asyncio.timeout(60):
            async for event in session:
                rest = event.seq or rest
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert (first.seq, rest) == (1, 30_001)
    assert grown < 80, f"{grown:.0f} MB more, for 150 MB of events"


async def test_what_is_no_event_is_told_a_hundred_times_and_then_only_counted() -> None:
    program = """
for n in range(5000):
    os.write(1, b"rubbish\\n")
say("log", 1, stream="runner", text="still here")
say("end", 2, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}) as session:
        events = await everything(session)
    assert sum(isinstance(event, p.Error) for event in events) == 100
    assert numbered(events) == [1, 2]


async def test_an_endless_line_is_not_held() -> None:
    program = """
for n in range(64):
    os.write(1, b"x" * 1_000_000)
os.write(1, b"\\n")
say("end", 1, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}) as session:
        events = await everything(session)
    (error, end) = events
    assert isinstance(error, p.Error)
    assert "a line of 64000000 bytes" in error.data.message
    assert isinstance(end, p.End)


async def test_forged_telemetry_reaches_no_exporter() -> None:
    program = """
say("telemetry", 1, otlp="bm90IG90bHA=")
say("telemetry", 2, otlp="%%%")
say("end", 3, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}) as session:
        events = await everything(session)
    assert [event.type for event in events] == ["error", "telemetry", "error", "telemetry", "end"]
    assert {span.name for span in session.trace.kept} == {"agent.session", "sandbox.create", "sandbox.cleanup"}


async def test_openings_of_another_trace_are_not_rebuilt() -> None:
    program = """
for n in range(1, 50):
    say("tool_use", n, {"trace_id": "a" * 32}, id=str(n), name="Bash", input={})
say("end", 50, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}) as session:
        await everything(session)
    assert len(session.trace.kept) == 3


async def test_a_flood_of_approvals_is_not_answered_without_end() -> None:
    program = """
for n in range(1, 3001):
    say("approval_request", n, approval_id=str(n), tool_use_id="t", tool_name="Bash", input={}, input_sha256="",
        expires_at=0.0)
say("end", 3001, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}) as session:
        events = await everything(session)
        assert len(session.waiting) == 1000
    assert len(events) == 3001


async def test_nothing_counts_after_an_end_and_a_runner_that_will_not_go_is_killed() -> None:
    program = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
say("end", 1, reason="completed", exit_code=0)
say("end", 2, reason="failed", exit_code=3)
time.sleep(600)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}, stop_timeout=0.3) as session:
        events = await everything(session)
    assert numbered(events) == [1]
    assert session.exit_code == 0


async def test_a_runner_that_will_not_end_is_stopped_within_its_time() -> None:
    program = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
say("log", 1, stream="runner", text="ready")
time.sleep(600)
"""
    async with asyncio.timeout(30):
        async with open_session("go", sandbox=TakenOver(program), environ={}, stop_timeout=0.3) as session:
            first = await anext(aiter(session))
    assert first.seq == 1


async def test_a_sandbox_is_removed_also_if_the_request_to_kill_its_runner_gets_no_answer() -> None:
    sandbox = ToldSandbox("0" * 32)
    sandbox.stops, sandbox.is_stuck = False, True
    async with asyncio.timeout(30):
        async with open_session("go", sandbox=sandbox, environ={}, stop_timeout=0.05) as session:
            await anext(aiter(session))
    assert (sandbox.closed, session.left_behind) == (1, None)


@pytest.mark.parametrize(
    "forged",
    ["'ts': 1e300", "'ts': -5", "'ts': 1e18", "'span_id': 'zz'", "'parent_span_id': 'zz'", "'trace_id': 'A' * 32"],
)
async def test_a_forged_envelope_is_told_and_what_follows_arrives(forged: str) -> None:
    program = f"""
say("turn_start", 1, {{{forged}}}, turn=1, prompt_size=1)
say("log", 1, stream="runner", text="good")
say("end", 2, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}) as session:
        events = await everything(session)
    assert [event.type for event in events] == ["error", "log", "end"]
    assert otlp_json(session.trace.kept)


async def test_a_forged_chain_and_a_forged_circle_of_spans_are_shown_for_what_they_are() -> None:
    program = """
for n in range(1, 1500):
    say("tool_use", n, {"span_id": f"{n + 1:016x}", "parent_span_id": f"{n:016x}"}, id=str(n), name="Bash", input={})
for n, parent in ((1500, 1501), (1501, 1500)):
    ids = {"span_id": f"{n + 9000:016x}", "parent_span_id": f"{parent + 9000:016x}"}
    say("tool_use", n, ids, id=str(n), name="Round", input={})
say("end", 1502, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}) as session:
        await everything(session)
    out = io.StringIO()
    Console(file=out, width=300).print(TraceTree(session.trace.kept))
    assert len(out.getvalue().splitlines()) == 1 + 1501 + 3


async def test_huge_names_are_cut_and_fill_no_memory() -> None:
    program = """
for n in range(1, 61):
    say("tool_use", n, {"span_id": f"{n:016x}"}, id="x" * 1_000_000, name="y" * 4_000_000, input={})
say("end", 61, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}) as session:
        async for _ in session:
            pass
    assert max(len(span.name) for span in session.trace.kept) < 300
    assert len(str([span.attributes for span in session.trace.kept])) < 100_000


async def test_a_relayed_span_cannot_say_whose_it_is_nor_take_the_hosts_place() -> None:
    forged = Span("agent.session", "@" * 32, "#" * 16, None, 5, end=9)
    forged.attributes = {"user.id": "victim", "tenant.id": "victim", "session.id": "victim", "agent.cost_usd": 1e6}
    program = f"""
import base64
parent = os.environ["TRACEPARENT"].split("-")[2]
blob = base64.b64decode({base64.b64encode(_encoded(forged)).decode()!r})
for seq, span_id in ((1, parent), (2, "c" * 16), (3, "c" * 16)):
    raw = blob.replace(b"T" * 16, bytes.fromhex(TRACE)).replace(b"S" * 8, bytes.fromhex(span_id))
    say("telemetry", seq, otlp=base64.b64encode(raw).decode())
say("end", 4, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}) as session:
        events = await everything(session)
    assert sum(isinstance(event, p.Error) for event in events) == 2
    relayed = [span for span in views(session.trace.kept) if span.span_id == "c" * 16]
    assert [set(span.attributes) & {"user.id", "tenant.id"} for span in relayed] == [set()]
    assert relayed[0].attributes["session.id"] == session.id


def _encoded(span: Span) -> bytes:
    """Encode a span with placeholder bytes for its ids."""
    span.trace_id, span.span_id = (b"T" * 16).hex(), (b"S" * 8).hex()
    return otlp.encode([span], readable.resource("test"))


async def test_an_approval_is_bound_to_the_input_that_was_shown() -> None:
    program = """
say("approval_request", 1, approval_id="a", tool_use_id="t", tool_name="Bash", input={"command": "ls"},
    input_sha256="f" * 64, expires_at=9e9)
answer = json.loads(next(line for line in iter(sys.stdin.readline, "") if "approval" in line))
say("log", 2, stream="runner", text=json.dumps(answer))
say("end", 3, reason="completed", exit_code=0)
"""
    async with open_session("go", sandbox=TakenOver(program), environ={}, approvals="auto") as session:
        (log,) = [event for event in await everything(session) if isinstance(event, p.Log)]
    assert '"input_sha256": "' + "f" * 64 in log.data.text


def test_nothing_from_a_sandbox_reaches_the_terminal_raw() -> None:
    evil = "\x1b]52;c;evil\x07\u202e"
    data: list[p.EventData] = [
        p.StartData(
            session_id=evil, model=evil, tools=[], cwd=evil, permission_mode=evil, resumed=False, runner_version=evil
        ),
        p.TextDeltaData(text=evil),
        p.TextData(text=evil),
        p.ThinkingData(text=evil),
        p.ToolUseData(id="t", name=evil, input={"command": evil, evil: evil}),
        p.ToolResultData(tool_use_id="t", content=evil, is_error=False, duration_ms=1.0, bytes=1),
        p.ApprovalResolvedData(approval_id="a", tool_use_id="t", decision="allow", wait_ms=1.0, decided_by=evil),
        p.QuestionResolvedData(question_id="q", answers={evil: evil}, decision="answered", wait_ms=1.0),
        p.ErrorData(error_type="internal", message=evil),
        p.LogData(stream="stderr", text=evil),
    ]
    out = io.StringIO()
    console = Console(file=out, width=200)
    calls = ToolCalls()
    renderer = Renderer(console, calls)
    for n, each in enumerate(data, 1):
        event = p.event_of(each, seq=n, ts=1.0, trace_id="a" * 32, span_id="b" * 16)
        calls.observe(event)
        renderer.show(event)
    request = p.ApprovalRequestData(
        approval_id="a",
        tool_use_id="t",
        tool_name=evil,
        input={evil: evil},
        input_sha256="",
        expires_at=1.0,
        reason=evil,
        suggestions=[{"rules": [{"toolName": evil, "ruleContent": evil}]}],
    )
    console.print(approval_card(request))
    span = Span(evil, "a" * 32, "b" * 16, None, 5, end=9, attributes={"approval.decision": evil})
    span.attributes["error.type"], span.error_type = evil, "internal"
    console.print(TraceTree([readable.readable(span, readable.resource("test"))]))
    assert not set(out.getvalue()) & set(evil) - set("]52;cevil")

"""The host's side of a trace: checks of relayed spans, spans rebuilt after a runner's death, and time summaries."""

from __future__ import annotations

import base64
import io
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from rich.console import Console

from agent_runner.contract import otlp, readable
from agent_runner.contract import protocol as p
from agent_runner.contract.otlp_messages import readable as from_otlp
from agent_runner.contract.spans import Attributes, Span, Spans
from agent_runner.contract.trace_context import TraceContext
from host_client.telemetry import Orphans, Root, SessionTrace, Telemetry, Who, root_of
from host_client.telemetry.batch import Batch
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.export.console import TreeExporter, otlp_json
from host_client.telemetry.metrics.observer import Metrics
from host_client.telemetry.relay.decoding import decode
from host_client.telemetry.trace.summary import summarize
from tests.support.hosts import views
from tests.support.metrics import Kept

TRACE = "a" * 32
SECOND = 1_000_000_000
ROOT = Root(trace_id=TRACE, span_id="f" * 16, parent_span_id=None, tracestate="", start=0)


class Clock:
    """A clock in seconds that a test sets; it returns nanoseconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> int:
        return int(self.now * SECOND)


class Scene:
    """A session's spans with times in seconds that a test chooses."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.spans = Spans({}, clock=self.clock)
        self.root = self.spans.open_root("agent.session", TraceContext(TRACE, ""), {})

    def span(
        self, name: str, start: float, end: float, parent: Span | None = None, about: Attributes | None = None
    ) -> Span:
        span = self.spans.open_child(name, parent or self.root, about or {}, start=int(start * SECOND))
        self.spans.close(span, end=int(end * SECOND))
        return span

    def close(self, end: float) -> list[ReadableSpan]:
        self.spans.close(self.root, end=int(end * SECOND))
        resource = readable.resource("test")
        return [readable.readable(span, resource) for span in self.spans.take_ended()]


def relayed(*spans: Span) -> str:
    return base64.b64encode(otlp.encode(spans, readable.resource("test"))).decode()


def ended_span(trace_id: str = TRACE) -> Span:
    span = Span("execute_tool Bash", trace_id, "1" * 16, "2" * 16, 5, end=9)
    span.attributes = {"user.id": "mallory", "tool.input_size": 3, "ok": True, "ratio": 0.5, "names": ("a", "b")}
    span.add_event("api_retry", 7, {"retry.attempt": 1})
    return span


def test_a_relayed_span_arrives_as_it_was_but_for_who_it_is_for() -> None:
    request = decode(relayed(ended_span()), trace_ids=frozenset({TRACE}), common={"user.id": "ada"})
    (view,) = views(from_otlp(request.SerializeToString()))
    assert (view.name, view.trace_id, view.span_id, view.parent_span_id) == (
        "execute_tool Bash",
        TRACE,
        "1" * 16,
        "2" * 16,
    )
    assert (view.start, view.end, view.kind) == (5, 9, 1)
    assert view.attributes == {"user.id": "ada", "tool.input_size": 3, "ok": True, "ratio": 0.5, "names": ["a", "b"]}
    assert view.events == [("api_retry", {"retry.attempt": 1})]


@pytest.mark.parametrize("payload", ["%%%", "aGVsbG8gd29ybGQ=", relayed(ended_span("f" * 32))])
def test_telemetry_that_is_not_this_sessions_is_refused(payload: str) -> None:
    with pytest.raises(ValueError, match="telemetry"):
        decode(payload, trace_ids=frozenset({TRACE}), common={})


def event(data: p.EventData, seq: int, span_id: str, ts: float, parent: str | None = None) -> p.AnyEvent:
    return p.event_of(data, seq=seq, ts=ts, trace_id=TRACE, span_id=span_id, parent_span_id=parent)


def test_what_a_dead_runner_left_is_rebuilt_from_its_events() -> None:
    turn, done, stuck, asked = "1" * 16, "2" * 16, "3" * 16, "4" * 16
    orphans = Orphans({"user.id": "ada"}, ToolCalls())
    for each in (
        event(p.TurnStartData(turn=1, prompt_size=2), 1, turn, 1.0, "0" * 15 + "1"),
        event(p.ToolUseData(id="t1", name="Bash", input={}), 2, done, 2.0, turn),
        event(
            p.ToolResultData(
                tool_use_id="t1",
                content="",
                is_error=True,
                duration_ms=500.0,
                bytes=0,
                error_type="permission_denied",
                denied_by="rule",
            ),
            3,
            done,
            2.5,
        ),
        event(p.ToolUseData(id="t2", name="Bash", input={"command": "x"}), 4, stuck, 3.0, turn),
        event(
            p.ApprovalRequestData(
                approval_id="a", tool_use_id="t2", tool_name="Bash", input={}, input_sha256="", expires_at=9.0
            ),
            5,
            asked,
            3.5,
            stuck,
        ),
    ):
        orphans.observe(each)
    rebuilt = {span.span_id: span for span in orphans.take("out_of_memory", "killed", 10 * SECOND)}
    assert {key: (span.start / SECOND, (span.end or 0) / SECOND, span.error_type) for key, span in rebuilt.items()} == {
        turn: (1.0, 10.0, "out_of_memory"),
        done: (2.0, 2.5, "permission_denied"),
        stuck: (3.0, 10.0, "out_of_memory"),
        asked: (3.5, 10.0, "out_of_memory"),
    }
    parents = {key: span.parent_span_id for key, span in rebuilt.items()}
    assert parents == {turn: "0" * 15 + "1", done: turn, stuck: turn, asked: stuck}
    assert all(span.attributes["user.id"] == "ada" for span in rebuilt.values())
    denied = {
        key: span.attributes["tool.denied_by"] for key, span in rebuilt.items() if "tool.denied_by" in span.attributes
    }
    assert denied == {done: "rule"}


def test_of_many_calls_those_whose_spans_did_not_arrive_are_rebuilt() -> None:
    turn, number = "1" * 16, 400
    orphans = Orphans({}, ToolCalls())
    orphans.observe(event(p.TurnStartData(turn=1, prompt_size=2), 1, turn, 1.0))
    for seq in range(number):
        call = p.ToolUseData(id=f"t{seq}", name="Bash", input={})
        orphans.observe(event(call, seq, f"{seq + 16:016x}", 2.0, turn))
        orphans.observe(event(p.TextDeltaData(text="…"), seq, turn, 2.0))
    orphans.arrived({f"{seq + 16:016x}" for seq in range(0, number, 2)})
    left = {span.span_id for span in orphans.take("cancelled", "", SECOND)}
    assert left == {turn, *(f"{seq + 16:016x}" for seq in range(1, number, 2))}


def test_a_call_in_the_background_is_rebuilt_to_the_end_of_its_task() -> None:
    turn, failed, stuck = "1" * 16, "2" * 16, "3" * 16
    orphans = Orphans({}, ToolCalls())
    orphans.observe(event(p.TurnStartData(turn=1, prompt_size=2), 1, turn, 1.0))
    task: dict[str, Any] = {"kind": "local_bash", "description": "make"}
    for span_id in (failed, stuck):
        result = p.ToolResultData(tool_use_id=span_id, content="", is_error=False, duration_ms=5.0, bytes=0)
        for data in (
            p.ToolUseData(id=span_id, name="Bash", input={}),
            p.BackgroundTaskData(**task, task_id=span_id, tool_use_id=span_id, state="running"),
            result,
        ):
            orphans.observe(event(data, 2, span_id, 2.0, turn if isinstance(data, p.ToolUseData) else None))
    ended = p.BackgroundTaskData(**task, task_id=failed, tool_use_id=failed, state="failed", exit_code=3)
    orphans.observe(event(ended, 8, failed, 5.0))
    rebuilt = {span.span_id: span for span in orphans.take("out_of_memory", "killed", 10 * SECOND)}
    assert {key: ((span.end or 0) / SECOND, span.error_type) for key, span in rebuilt.items()} == {
        turn: (10.0, "out_of_memory"),
        failed: (5.0, "tool_error"),
        stuck: (10.0, "out_of_memory"),
    }
    assert rebuilt[failed].attributes["process.exit.code"] == 3
    assert rebuilt[stuck].attributes["tool.background"] is True


def test_a_call_whose_approval_arrived_alone_is_rebuilt_with_its_wait() -> None:
    turn, call, asked = "1" * 16, "2" * 16, "3" * 16
    calls = ToolCalls()
    orphans = Orphans({}, calls)
    about: dict[str, Any] = {"approval_id": "a", "tool_use_id": "t", "tool_name": "Bash", "input": {}}
    for each in (
        event(p.TurnStartData(turn=1, prompt_size=2), 1, turn, 1.0),
        event(p.ToolUseData(id="t", name="Bash", input={}), 2, call, 2.0, turn),
        event(p.ApprovalRequestData(**about, input_sha256="", expires_at=9.0), 3, asked, 2.0, call),
        event(p.ApprovalResolvedData(approval_id="a", tool_use_id="t", decision="allow", wait_ms=300.0), 4, asked, 2.3),
        event(p.ToolResultData(tool_use_id="t", content="", is_error=False, duration_ms=5e2, bytes=0), 5, call, 2.5),
    ):
        calls.observe(each)
        orphans.observe(each)
    orphans.arrived({asked})
    rebuilt = {span.span_id: span for span in orphans.take("internal", "", 10 * SECOND)}
    assert rebuilt.keys() == {turn, call}
    assert rebuilt[call].attributes["tool.approval_wait_ms"] == 300.0


def test_who_decided_is_cleaned_unless_the_host_named_them() -> None:
    kept = Kept()
    telemetry = Telemetry(observers=[Metrics([kept])])
    trace = SessionTrace(telemetry, {}, ROOT, Who(session_id="s"))
    trace.tell("ann@example.org")
    for seq, by in enumerate(("ann@example.org", "bob@example.org", "sk-ant-api03-abcdefghijkl\r\n", None), 1):
        data = p.ApprovalResolvedData(approval_id="a", tool_use_id="t", decision="deny", decided_by=by, wait_ms=1.0)
        trace.observe(event(data, seq, "1" * 16, 1.0))
    trace.close(None, "")
    assert telemetry.shutdown()
    assert kept.values_of("decided_by") == {"ann@example.org", "[redacted]"}


def test_what_is_rebuilt_from_forged_events_is_cleaned_too() -> None:
    trace = SessionTrace(Telemetry(), {"user.id": "ada"}, ROOT, Who(session_id="s"))
    secret = "sk-ant-api03-abcdefghijkl\r\n"
    trace.observe(event(p.ToolUseData(id=secret, name=secret, input={}), 1, "1" * 16, 1.0))
    trace.end_orphans("internal", secret)
    (span,) = views(trace.kept)
    assert (span.name, span.attributes["gen_ai.tool.call.id"]) == ("execute_tool [redacted] ", "[redacted] ")
    assert span.attributes["user.id"] == "ada"


def test_a_span_that_arrived_is_not_rebuilt() -> None:
    root = Root(trace_id=TRACE, span_id="a" * 16, parent_span_id=None, tracestate="", start=SECOND)
    trace = SessionTrace(Telemetry(), {}, root, Who(session_id="s"))
    trace.observe(event(p.ToolUseData(id="t", name="Bash", input={}), 1, "1" * 16, 2.0, "2" * 16))
    assert trace.observe(event(p.TelemetryData(otlp=relayed(ended_span())), 2, "0" * 16, 3.0)) is None
    trace.end_orphans("sandbox", "gone")
    trace.close(None, "")
    assert [span.name for span in trace.kept] == ["execute_tool Bash", "agent.session"]


def of_a_process(*spans: Span) -> str:
    """Return a relayed event with spans that a program in the sandbox has exported."""
    request = ExportTraceServiceRequest.FromString(otlp.encode(spans, readable.resource("test")))
    request.resource_spans[0].scope_spans[0].scope.name = "app"
    return base64.b64encode(request.SerializeToString()).decode()


def test_a_programs_span_cannot_take_the_place_of_the_runners() -> None:
    trace = SessionTrace(Telemetry(), {}, ROOT, Who(session_id="s"))
    forged = Span("app", TRACE, "1" * 16, "2" * 16, 5, end=9)
    trace.observe(event(p.ToolUseData(id="t", name="Bash", input={}), 1, "1" * 16, 2.0, "2" * 16))
    assert trace.observe(event(p.TelemetryData(otlp=of_a_process(forged)), 2, "0" * 16, 3.0)) is None
    assert trace.observe(event(p.TelemetryData(otlp=relayed(ended_span())), 3, "0" * 16, 3.0)) is None
    trace.end_orphans("sandbox", "gone")
    trace.close(None, "")
    assert [span.name for span in trace.kept] == ["app", "execute_tool Bash", "agent.session"]


def test_many_spans_of_programs_leave_room_for_the_runners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("host_client.telemetry.trace.session_trace.MAX_RELAYED", 2)
    trace = SessionTrace(Telemetry(), {}, ROOT, Who(session_id="s"))
    programs = [Span(f"app {number}", TRACE, f"{number:016x}", "2" * 16, 5, end=9) for number in (3, 4, 5)]
    problem = trace.observe(event(p.TelemetryData(otlp=of_a_process(*programs)), 1, "0" * 16, 3.0))
    assert problem == "the processes of tools have sent 2 spans; further ones are not accepted"
    assert trace.observe(event(p.TelemetryData(otlp=relayed(ended_span())), 2, "0" * 16, 3.0)) is None
    assert [span.name for span in trace.kept] == ["app 3", "app 4", "execute_tool Bash"]


def test_a_programs_span_is_no_turn_no_request_and_no_cost() -> None:
    trace = SessionTrace(Telemetry(), {}, ROOT, Who(session_id="s"))
    turn = Span("agent.execute", TRACE, "3" * 16, "2" * 16, 5, end=9)
    turn.attributes = {
        "gen_ai.input.messages": "forged",
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.input_tokens": 10**9,
        "llm.token_count.total": 10**9,
    }
    assert trace.observe(event(p.TelemetryData(otlp=of_a_process(turn)), 1, "0" * 16, 3.0)) is None
    trace.close(None, "")
    (program, session) = views(trace.kept)
    assert program.attributes == {"gen_ai.input.messages": "forged"}
    assert "gen_ai.input.messages" not in session.attributes
    assert summarize(trace.kept).input_tokens == 0


class Noting(Telemetry):
    """Telemetry that records the number of spans and bytes of each relayed batch."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[int, int]] = []

    def export(self, spans: Batch, *, replayed: bool = False) -> None:
        self.noted.append((spans.spans, len(spans.body)))


def test_telemetry_of_no_span_goes_nowhere_and_spans_count_by_what_the_host_makes_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("host_client.telemetry.trace.session_trace.MAX_KEPT_BYTES", 5_000)
    telemetry = Noting()
    trace = SessionTrace(telemetry, {"region": "x" * 4_000}, ROOT, Who(session_id="s"))
    sent = [relayed(ended_span()), relayed(ended_span()), relayed(), base64.b64encode(b"\x0a\x00" * 9).decode()]
    other = ended_span()
    other.span_id = "3" * 16
    problems = [trace.observe(event(p.TelemetryData(otlp=each), 1, "0" * 16, 1.0)) for each in (*sent, relayed(other))]
    assert problems == [None, "spans with the id of an earlier span are left out: 1", None, None, None]
    assert [spans for spans, _ in telemetry.noted] == [1, 1]
    assert all(size > 4_000 for _, size in telemetry.noted)
    assert len(trace.kept) == 1, "a second is more than may be kept"


def test_who_fails_to_take_the_hosts_own_spans_is_counted_and_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def full(_: bytes) -> None:
        raise OSError("no room")

    telemetry = Telemetry()
    trace = SessionTrace(telemetry, {}, root_of(), Who(session_id="s"), full)
    trace.close(None, "")
    assert [span.name for span in trace.kept] == ["agent.session"]
    assert telemetry.lost == {"fault of on_own_spans": 1}
    assert "no room" in caplog.text


@pytest.mark.parametrize(("flags", "told"), [("00", "01"), ("02", "03")])
def test_the_runner_is_told_the_random_flag_of_the_callers_trace(flags: str, told: str) -> None:
    root = root_of(f"00-{TRACE}-{'e' * 16}-{flags}")
    kept = msgspec.json.decode(msgspec.json.encode(root), type=Root)
    trace = SessionTrace(Telemetry(), {}, kept, Who(session_id="s"))
    assert trace.context.traceparent == f"00-{TRACE}-{root.span_id}-{told}"


def test_the_hosts_spans_go_on_in_another_process_and_what_is_no_span_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    root, who = root_of(), Who(session_id="s")
    dead = SessionTrace(Telemetry(), {}, root, who)
    with dead.span("sandbox.create"):
        pass
    trace = SessionTrace(Telemetry(), {}, root, who)
    for request in (dead.own, dead.own, b"no OTLP", b""):
        trace.replay_own(request)
    trace.close(None, "")
    assert [span.name for span in trace.kept] == ["sandbox.create", "agent.session"]
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("ends", "end", "error"),
    [
        ((), 10.0, "out_of_memory"),
        ((("result", None, 5.0),), 5.0, None),
        ((("result", "tool_error", 5.0),), 5.0, "tool_error"),
        ((("task", "running", 4.0), ("result", None, 5.0)), 10.0, "out_of_memory"),
        ((("task", "running", 4.0), ("result", None, 5.0), ("task", "completed", 6.0)), 6.0, None),
        ((("task", "running", 4.0), ("result", None, 5.0), ("task", "stopped", 6.0)), 6.0, "cancelled"),
    ],
)
def test_a_subagent_that_a_dead_runner_left_ends_with_its_call(
    ends: tuple[tuple[str, Any, float], ...], end: float, error: str | None
) -> None:
    turn, call, subagent = "1" * 16, "2" * 16, "3" * 16
    orphans = Orphans({}, ToolCalls())
    orphans.observe(event(p.ToolUseData(id="t", name="Agent", input={}), 1, call, 2.0, turn))
    orphans.observe(event(p.SubagentStartData(tool_use_id="t", agent_name="Explore"), 2, subagent, 3.0, call))
    for kind, outcome, at in ends:
        if kind == "result":
            data: p.EventData = p.ToolResultData(
                tool_use_id="t", content="", is_error=bool(outcome), duration_ms=1.0, bytes=0, error_type=outcome
            )
        else:
            data = p.BackgroundTaskData(
                task_id="a", kind="local_agent", state=outcome, description="d", tool_use_id="t"
            )
        orphans.observe(event(data, 3, call, at))
    rebuilt = {span.name: span for span in orphans.take("out_of_memory", "killed", 10 * SECOND)}
    for name, span_id, parent in (
        ("execute_tool Agent", call, turn),
        ("invoke_agent Explore", subagent, call),
    ):
        span = rebuilt[name]
        assert (span.span_id, span.parent_span_id, (span.end or 0) / SECOND) == (span_id, parent, end)
        assert span.error_type == error
    about = rebuilt["invoke_agent Explore"].attributes
    assert (about["gen_ai.operation.name"], about["gen_ai.agent.name"]) == ("invoke_agent", "Explore")
    assert list(orphans.take("internal", "", 1)) == []


def test_forged_subagents_fill_no_memory() -> None:
    orphans = Orphans({}, ToolCalls())
    for number in range(1000):
        began = p.SubagentStartData(tool_use_id="t", agent_name="Explore")
        orphans.observe(event(began, number, "3" * 16, 3.0, f"{number + 16:016x}"))
    assert len(orphans._subagents) == 1  # pyright: ignore[reportPrivateUsage]
    assert [span.parent_span_id for span in orphans.take("internal", "", SECOND)] == [f"{16:016x}"]


def test_a_subagent_that_has_arrived_is_not_rebuilt() -> None:
    orphans = Orphans({}, ToolCalls())
    orphans.observe(event(p.ToolUseData(id="t", name="Agent", input={}), 1, "2" * 16, 2.0, "1" * 16))
    orphans.observe(event(p.SubagentStartData(tool_use_id="t", agent_name="Explore"), 2, "3" * 16, 3.0, "2" * 16))
    orphans.arrived(["3" * 16])
    assert [span.name for span in orphans.take("internal", "", SECOND)] == ["execute_tool Agent"]


def test_every_moment_counts_once() -> None:
    scene = Scene()
    scene.span("chat m", 0.0, 2.0, about={"gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 3})
    tool = scene.span("execute_tool Bash", 2.0, 8.0)
    scene.span("agent.approval", 3.0, 6.0, tool)
    agent = scene.span("execute_tool Agent", 2.0, 9.0)
    subagent = scene.span("invoke_agent Explore", 2.0, 9.0, agent)
    scene.span("chat m", 4.0, 5.0, subagent)
    summary = summarize(scene.close(10.0))
    # Model 0-2 and 4-5; tool 2-3 and 6-8; waiting 3-4 and 5-6; other 8-10.
    assert (summary.model, summary.tools, summary.waiting, summary.other) == (3.0, 3.0, 2.0, 2.0)
    assert (summary.total, summary.input_tokens, summary.output_tokens) == (10.0, 10, 3)
    assert (summary.tool_calls, summary.approvals) == (2, 1)


def test_the_console_exporter_prints_a_tree_when_the_session_has_ended() -> None:
    scene, out = Scene(), io.StringIO()
    exporter = TreeExporter(Console(file=out, width=100))
    tool = scene.span("execute_tool Bash", 1.0, 2.5, about={"tool.approval_wait_ms": 500.0, "tool.execution_ms": 900})
    scene.span("agent.approval", 1.0, 1.5, tool, {"approval.decision": "allow", "approval.decided_by": "ada"})
    spans = scene.close(3.0)
    exporter.export(spans[:-1])
    assert out.getvalue() == ""
    exporter.export(spans[-1:])
    assert [line.rstrip() for line in out.getvalue().splitlines()] == [
        f"trace {TRACE}",
        "└── agent.session                              3.00 s",
        "    └── execute_tool Bash                      1.50 s  waited 500 ms, ran 900 ms",
        "        └── agent.approval                     500 ms  allow by ada",
    ]


def test_otlp_json_has_ids_in_hex() -> None:
    (span,) = otlp_json(Scene().close(3.0))["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert (span["traceId"], len(span["spanId"]), span["endTimeUnixNano"]) == (TRACE, 16, str(3 * SECOND))

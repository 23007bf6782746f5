"""Spans of processes get their place below the calls of a run, in whatever order they come."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent_runner import _process_spans
from agent_runner._callers import Caller, comparable
from agent_runner._foreign_spans import PROTOBUF, ForeignSpan, read_spans
from agent_runner._process_spans import SETTLE_NS, ProcessSpans
from agent_runner._state import ToolCall
from agent_runner.contract.spans import Span
from tests.support.runs import SpanView, spans_in

CLI = "com.anthropic.claude_code.tracing"
CONVERSATION = "c-1"
SECOND = 10**9


def id_of(name: str) -> str:
    """Return the span id of a name, which has at most 8 characters."""
    return name.encode().ljust(8, b".").hex()


def as_read(request: ExportTraceServiceRequest) -> list[ForeignSpan]:
    return read_spans(request.SerializeToString(), b"", PROTOBUF, 10**9)


class Run:
    """A run with calls, and the spans that were sent."""

    def __init__(self) -> None:
        self.now = 100 * SECOND
        self.sent: list[SpanView] = []
        self.requests = 0
        self.common = {"gen_ai.conversation.id": CONVERSATION, "user.id": "ann"}
        self.processes = ProcessSpans(self.common, (), self.send, lambda: self.now)
        self.turn = Span("agent.execute", "a" * 32, id_of("turn"), None, 1 * SECOND, tracestate="v=1")
        self.processes.begin_turn(self.turn)

    def send(self, otlp: bytes, spans: int) -> None:
        views = list(spans_in(otlp))
        assert len(views) == spans
        self.sent += views
        self.requests += 1

    def call(self, name: str, start: float, end: float | None = None, *, tool: str = "Bash", trace: str = "a") -> Span:
        """Begin a call of a tool, whose command is its name."""
        span = Span(f"execute_tool {tool}", trace * 32, id_of(name), self.turn.span_id, int(start * SECOND))
        span.end = None if end is None else int(end * SECOND)
        self.processes.begin_call(f"toolu_{name}", ToolCall(span, tool, {"command": name}))
        return span

    def receive(self, *spans: tuple[str, str, float], scope: str = "app", caller: Caller | None = None) -> None:
        """Receive spans, each as its name, the name of its parent and its start in seconds."""
        request = ExportTraceServiceRequest()
        of_scope = request.resource_spans.add().scope_spans.add()
        of_scope.scope.name = scope
        for name, parent, start in spans:
            span = of_scope.spans.add(
                name=name,
                trace_id=b"t" * 16,
                span_id=bytes.fromhex(id_of(name)),
                parent_span_id=bytes.fromhex(id_of(parent)) if parent else b"",
                start_time_unix_nano=int(start * SECOND),
            )
            span.attributes.add(key="user.id").value.string_value = "mallory"
            span.attributes.add(key="langfuse.user.id").value.string_value = "mallory"
            span.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = 10**9
        self.processes.receive(as_read(request), caller)

    def cli(self, name: str, of: str, *, what: str = "claude_code.tool.execution", session: str = CONVERSATION) -> None:
        """Receive a span of the CLI for a call."""
        request = ExportTraceServiceRequest()
        of_scope = request.resource_spans.add().scope_spans.add()
        of_scope.scope.name = CLI
        span = of_scope.spans.add(name=what, span_id=bytes.fromhex(id_of(name)), start_time_unix_nano=2 * SECOND)
        span.attributes.add(key="session.id").value.string_value = session
        span.attributes.add(key="gen_ai.tool.call.id").value.string_value = f"toolu_{of}"
        self.processes.receive(as_read(request))

    @property
    def parents(self) -> dict[str, str]:
        """Return the names of the parents of the spans that were sent."""
        return {span.name: bytes.fromhex(span.parent_span_id).decode().rstrip(".") for span in self.sent}


@pytest.fixture
def run() -> Run:
    return Run()


def test_children_come_before_their_parents_and_those_before_the_clis_span(run: Run) -> None:
    run.call("make", 2, trace="b")
    run.receive(("leaf", "branch", 3.2))
    run.receive(("branch", "root", 3.1), ("root", "X", 3))
    assert run.sent == []
    run.cli("X", "make")
    assert run.parents == {"root": "make", "branch": "root", "leaf": "branch"}
    assert {span.trace_id for span in run.sent} == {"b" * 32}
    assert [span.attributes for span in run.sent] == [run.common] * 3
    run.receive(("late", "branch", 9), ("later", "X", 9))
    assert run.parents["late"] == "branch"
    assert run.parents["later"] == "make"


def test_a_span_that_is_sent_again_is_left_out(run: Run) -> None:
    run.call("make", 2)
    run.receive(("root", "X", 3))
    run.receive(("root", "X", 3))
    run.cli("X", "make")
    run.receive(("root", "X", 3))
    assert [span.name for span in run.sent] == ["root"]


def test_spans_of_another_cli_that_a_tool_started_are_passed_on(run: Run) -> None:
    run.call("claude", 2)
    run.cli("inner", "of another", session="c-2")
    run.cli("X", "claude")
    run.processes.finish()
    assert [span.name for span in run.sent] == ["claude_code.tool.execution"]


def test_spans_of_the_cli_for_which_the_run_has_none_stand_below_the_runs(run: Run) -> None:
    run.call("make", 2)
    run.cli("turn1", "none", what="claude_code.interaction")
    run.cli("X", "make", what="claude_code.tool")
    run.receive(("hook", "X", 3), ("compact", "turn1", 3), scope=CLI)
    assert run.parents == {"hook": "make", "compact": "turn"}


def test_a_parent_that_never_comes_is_replaced_by_the_call_that_ran_then(run: Run) -> None:
    run.call("first", 2, 4)
    run.call("read", 4.9, 9, tool="Read")
    run.call("second", 5, 8)
    run.receive(("a", "killed1", 3), ("b", "killed2", 6), ("c", "a", 3.5))
    run.receive(("d", "killed3", 50))
    run.processes.finish()
    assert run.parents == {"a": "first", "b": "second", "c": "a", "d": "turn"}


def test_it_is_replaced_some_time_after_the_end_of_that_call(run: Run) -> None:
    call = run.call("make", 2)
    run.receive(("a", "killed", 3))
    call.end = run.now
    run.now += SETTLE_NS
    run.receive(("b", "killed2", 3))
    assert run.sent == []
    run.now += SECOND + 1
    run.receive(("c", "killed3", 3))
    assert run.parents == {"a": "make", "b": "make", "c": "make"}


def test_the_process_shows_its_call_if_several_run(run: Run) -> None:
    run.call("make all", 2)
    run.call("make", 3)
    run.call("other", 4)
    all_ = Caller(None, (comparable("python app.py"), comparable("/bin/bash -c eval 'make' \\''all'")))
    run.receive(("a", "killed1", 5), caller=all_)
    run.receive(("b", "", 5), caller=all_)
    run.receive(("c", "", 5), caller=Caller(None, (comparable("/bin/bash -c something else"),)))
    run.receive(("d", "killed2", 5), caller=Caller(bytes.fromhex(id_of("X")), ()))
    run.cli("X", "make")
    run.receive(("e", "", 5), caller=Caller(bytes.fromhex(id_of("X")), ()))
    run.processes.finish()
    assert run.parents == {"a": "make all", "b": "make all", "c": "other", "d": "make", "e": "make"}


def test_spans_that_name_each_other_as_parents_are_sent_once(run: Run) -> None:
    run.call("make", 2)
    run.receive(("a", "b", 3), ("b", "a", 3), ("self", "self", 3))
    run.processes.finish()
    assert sorted(run.parents) == ["a", "b", "self"]
    assert run.parents["self"] == "make"
    assert "make" in (run.parents["a"], run.parents["b"])


def chain(length: int) -> Iterable[tuple[str, str, float]]:
    return ((f"s{number}", f"s{number - 1}" if number else "X", 3) for number in range(length, -1, -1))


def test_a_chain_of_any_length_has_its_order(run: Run) -> None:
    run.call("make", 2)
    run.receive(*chain(1500))
    run.cli("X", "make")
    assert run.parents == {"s0": "make", **{f"s{number}": f"s{number - 1}" for number in range(1, 1501)}}
    assert run.requests == -(-1501 // 64)


def test_more_than_the_limit_are_counted_and_left_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process_spans, "MAX_SPANS", 10)
    run.call("make", 2)
    run.cli("X", "make")
    run.receive(*((f"s{number}", "X", 3) for number in range(25)))
    assert len(run.sent) == 10
    assert run.processes.left_out == 15


def test_a_program_that_ignores_its_traceparent_waits_for_the_span_in_it(run: Run) -> None:
    """Two calls of the same command run at a time, which only TRACEPARENT tells apart."""
    run.call("same1", 2)
    run.call("same2", 2.1)
    lines = (comparable("/bin/bash -c same"),)
    run.receive(("a", "", 5), ("b", "a", 5), caller=Caller(bytes.fromhex(id_of("X1")), lines))
    run.receive(("c", "", 5), caller=Caller(bytes.fromhex(id_of("X2")), lines))
    assert run.sent == []
    run.cli("X2", "same2")
    run.cli("X1", "same1")
    assert run.parents == {"a": "same1", "b": "a", "c": "same2"}


def test_a_process_cannot_take_the_id_of_a_span_of_the_run(run: Run) -> None:
    run.call("make", 2)
    run.cli("X", "make")
    run.receive(("turn", "X", 3), ("make", "X", 3), ("other", "X", 3))
    assert [span.name for span in run.sent] == ["other"]


def test_after_a_new_session_of_the_cli_its_earlier_spans_are_still_merged(run: Run) -> None:
    run.call("make", 2)
    run.receive(("a", "X", 3))
    run.common["gen_ai.conversation.id"] = "c-2"
    run.cli("X", "make")
    assert run.parents == {"a": "make"}
    assert run.sent[0].attributes["gen_ai.conversation.id"] == "c-2"


def test_a_group_that_waits_is_searched_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request of another process would else search the calls for each span that waits."""
    searched: list[int] = []
    monkeypatch.setattr(ProcessSpans, "_call_at", lambda _self, time: searched.append(time))  # pyright: ignore
    run.receive(*((f"s{number}", f"p{number % 3}", 3) for number in range(30)))
    run.now += 2 * SECOND
    run.receive()
    assert len(searched) == 3


def test_more_than_may_wait_get_their_likely_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process_spans, "MAX_WAITING_BYTES", 5)
    run.call("make", 2)
    run.receive(*((f"s{number}", f"missing{number}"[:8], 3) for number in range(10)))
    assert set(run.parents.values()) == {"make"}
    assert len(run.sent) == 10


def test_without_a_turn_nothing_can_be_placed() -> None:
    run = Run()
    processes = ProcessSpans(run.common, (), run.send, lambda: 0)  # the test's own class
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.add(span_id=b"12345678", trace_id=b"t" * 16)
    processes.receive(as_read(request))
    assert (run.sent, processes.left_out) == ([], 1)

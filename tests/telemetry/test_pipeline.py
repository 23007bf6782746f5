"""The pipeline: each trace by its decision, nobody waits for anybody, and what is lost is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from agent_runner import protocol as p
from host_client.telemetry import Telemetry, Who, pipeline
from host_client.telemetry.sampling import SamplingConfig

LOW, HIGH = "0" * 31 + "1", "0" * 16 + "f" * 16
"""Trace ids that the ratio keeps first and last."""

ADA = Who(session_id="s", user_id="ada")
LIMIT = 10.0


def span(name: str, trace_id: str, *, error: bool = False) -> ReadableSpan:
    context = SpanContext(int(trace_id, 16), 1, is_remote=False, trace_flags=TraceFlags(1))
    return ReadableSpan(name, context, start_time=1, end_time=2, status=Status(StatusCode(2 if error else 0)))


def names(request: bytes) -> list[str]:
    read = ExportTraceServiceRequest.FromString(request)
    return [span.name for resource in read.resource_spans for scope in resource.scope_spans for span in scope.spans]


@dataclass
class Recorder:
    """An outbox that notes what it is told."""

    held: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    sent: list[str] = field(default_factory=list[str])
    delivers: bool = True
    before: Callable[[], None] = lambda: None

    def hold(self, trace_id: str, request: bytes, spans: int) -> None:
        self.before()
        self.held.setdefault(trace_id, []).extend(names(request))

    def release(self, trace_id: str) -> None:
        self.sent += self.held.pop(trace_id)

    def discard(self, trace_id: str) -> None:
        del self.held[trace_id]

    def deliver(self, request: bytes, spans: int) -> None:
        self.before()
        assert len(names(request)) == spans
        self.sent += names(request)

    def flush(self, timeout: float) -> bool:
        return self.delivers

    def close(self, timeout: float) -> bool:
        return self.delivers

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        return {"recorder": {"exported": len(self.sent)}}


@dataclass
class Watcher:
    """An observer that notes what it sees, or fails."""

    seen: list[object] = field(default_factory=list[object])
    fails: bool = False

    def _note(self, what: object) -> None:
        if self.fails:
            raise ValueError("the observer's own fault")
        self.seen.append(what)

    def begin(self, who: Who) -> None:
        self._note(("begin", who))

    def observe(self, event: p.AnyEvent, who: Who) -> None:
        self._note((event.type, who))

    def observe_span(self, span: ReadableSpan) -> None:
        self._note(span.name)

    def end(self, who: Who) -> None:
        self._note(("end", who))

    def close(self, timeout: float) -> bool:
        return True


def test_a_trace_that_is_kept_for_sure_is_sent_as_it_comes() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sampling=SamplingConfig(rate=0.1))
    telemetry.begin(LOW, ADA)
    telemetry.export([span("a", LOW)])
    assert telemetry.flush(LIMIT)
    assert outbox.sent == ["a"]
    telemetry.end((LOW,), ADA)
    assert telemetry.shutdown(LIMIT)
    assert outbox.held == {}


def test_one_that_may_be_dropped_is_held_until_its_session_ends() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sampling=SamplingConfig(rate=0.0))
    telemetry.begin(HIGH, ADA)
    telemetry.export([span("a", HIGH)])
    telemetry.export([span("b", HIGH)])
    assert telemetry.flush(LIMIT)
    assert (outbox.held, outbox.sent) == ({HIGH: ["a", "b"]}, [])
    telemetry.end((HIGH,), ADA)
    assert telemetry.shutdown(LIMIT)
    assert (outbox.held, outbox.sent) == ({}, [])


def test_an_error_sends_what_was_held_first_and_then_itself() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sampling=SamplingConfig(rate=0.0))
    telemetry.begin(HIGH, ADA)
    for each in (span("a", HIGH), span("b", HIGH, error=True), span("c", HIGH)):
        telemetry.export([each])
    telemetry.end((HIGH,), ADA)
    assert telemetry.shutdown(LIMIT)
    assert (outbox.held, outbox.sent) == ({}, ["a", "b", "c"])


def test_a_session_in_two_traces_decides_each_by_itself() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sampling=SamplingConfig(rate=0.1))
    telemetry.begin(HIGH, ADA)
    telemetry.join(LOW, ADA)
    telemetry.export([span("a", HIGH), span("b", LOW)])
    telemetry.end((HIGH, LOW), ADA)
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == ["b"]


def test_observers_see_what_is_dropped_too() -> None:
    outbox, watcher = Recorder(), Watcher()
    telemetry = Telemetry(outbox, (watcher,), sampling=SamplingConfig(rate=0.0))
    telemetry.begin(HIGH, ADA)
    event = p.Log(v=1, ts=1.0, trace_id=HIGH, span_id="1" * 16, data=p.LogData(stream="runner", text="x"))
    telemetry.observe(event, ADA)
    telemetry.export([span("a", HIGH)])
    telemetry.end((HIGH,), ADA)
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == []
    assert watcher.seen == [("begin", ADA), ("log", ADA), "a", ("end", ADA)]


def test_an_observer_that_fails_takes_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    outbox, watcher = Recorder(), Watcher()
    telemetry = Telemetry(outbox, (Watcher(fails=True), watcher))
    telemetry.begin(LOW, ADA)
    telemetry.export([span("a", LOW)])
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == ["a"]
    assert watcher.seen == [("begin", ADA), "a"]
    assert telemetry.counts()["pipeline"] == {"dropped: fault of Watcher": 2}
    assert "the observer's own fault" in caplog.text


def test_a_part_that_hangs_holds_nobody_up_and_what_does_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_QUEUED", 10)
    go_on = threading.Event()
    outbox = Recorder(before=lambda: assert_set(go_on))
    telemetry = Telemetry(outbox)
    telemetry.begin(LOW, ADA)
    for number in range(20):
        telemetry.export([span(str(number), LOW)] * 2)
    lost = telemetry.lost["span: queue full"]
    assert 2 * 8 <= lost <= 2 * 12
    assert not telemetry.flush(0.01)
    go_on.set()
    assert telemetry.shutdown(LIMIT)
    assert len(outbox.sent) + lost == 40


def test_what_waits_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_QUEUED_BYTES", 1000)
    go_on = threading.Event()
    outbox = Recorder(before=lambda: assert_set(go_on))
    telemetry = Telemetry(outbox)
    telemetry.begin(LOW, ADA)
    for number in range(20):
        telemetry.export([span(str(number), LOW)], size=300)
    lost = telemetry.lost["span: queue full"]
    assert 16 <= lost <= 17
    go_on.set()
    assert telemetry.flush(LIMIT)
    telemetry.export([span("again", LOW)], size=900)
    assert telemetry.shutdown(LIMIT)
    assert len(outbox.sent) + lost == 21


def test_what_a_shutdown_does_not_wait_for_is_counted() -> None:
    go_on = threading.Event()
    telemetry = Telemetry(Recorder(before=lambda: assert_set(go_on)))
    telemetry.begin(LOW, ADA)
    for _ in range(20):
        telemetry.export([span("a", LOW)] * 2)
    assert not telemetry.shutdown(0.01)
    go_on.set()
    assert telemetry.lost["span: shutdown"] >= 36
    assert not telemetry.shutdown(LIMIT), "the answer stays the same"


def test_the_end_of_all_decides_what_waits() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sampling=SamplingConfig(rate=0.0))
    telemetry.begin(HIGH, ADA)
    telemetry.export([span("a", HIGH)])
    assert telemetry.shutdown(LIMIT)
    assert (outbox.held, outbox.sent) == ({}, [])


def test_a_result_has_room_where_others_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_QUEUED", 10)
    go_on = threading.Event()
    watcher = Watcher()
    telemetry = Telemetry(Recorder(before=lambda: assert_set(go_on)), (watcher,))
    telemetry.begin(LOW, ADA)
    for _ in range(20):
        telemetry.export([span("a", LOW)])
    log = p.LogData(stream="runner", text="x")
    telemetry.observe(p.Log(v=1, ts=1.0, trace_id=LOW, span_id="1" * 16, data=log), ADA)
    telemetry.observe(p.Result(v=1, ts=1.0, trace_id=LOW, span_id="1" * 16, data=RESULT), ADA)
    telemetry.end((LOW,), ADA)
    go_on.set()
    assert telemetry.shutdown(LIMIT)
    assert watcher.seen[-2:] == [("result", ADA), ("end", ADA)]
    assert telemetry.lost["event: queue full"] == 1


RESULT = p.ResultData(
    turn=1,
    result="",
    is_error=False,
    subtype="success",
    cost_usd=1.0,
    total_cost_usd=1.0,
    duration_ms=1.0,
    duration_api_ms=1.0,
    num_turns=1,
    usage={},
    model_usage={},
    session_id="s",
)


def assert_set(event: threading.Event) -> None:
    assert event.wait(LIMIT)


def test_what_is_not_delivered_is_told_by_flush_and_shutdown() -> None:
    telemetry = Telemetry(Recorder(delivers=False))
    telemetry.begin(LOW, ADA)
    assert not telemetry.flush(LIMIT)
    assert not telemetry.shutdown(LIMIT)


def test_what_comes_after_the_end_is_counted() -> None:
    telemetry = Telemetry(Recorder())
    telemetry.begin(LOW, ADA)
    assert telemetry.shutdown(LIMIT)
    telemetry.export([span("late", LOW)])
    assert telemetry.counts()["pipeline"] == {"dropped: span: after shutdown": 1}


def test_with_nobody_to_tell_there_is_no_thread() -> None:
    before = threading.active_count()
    telemetry = Telemetry()
    telemetry.begin(LOW, ADA)
    telemetry.export([span("a", LOW)])
    assert threading.active_count() == before
    assert telemetry.flush(LIMIT)
    assert telemetry.shutdown(LIMIT)


def test_a_sanitizer_changes_what_is_sent() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sanitize=lambda given: span(given.name.upper(), LOW))
    telemetry.begin(LOW, ADA)
    telemetry.export([span("a", LOW)])
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == ["A"]

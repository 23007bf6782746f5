"""The pipeline handles each trace by its sampling decision, blocks no caller, and counts losses."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from agent_runner._resource import resource
from agent_runner.contract import otlp
from agent_runner.contract import protocol as p
from agent_runner.contract.spans import Span
from host_client.telemetry import Telemetry, Who
from host_client.telemetry.batch import Batch, EndedSpan
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.export.content import ContentFilter
from host_client.telemetry.export.delivery import Delivery
from host_client.telemetry.export.sender import Counts
from host_client.telemetry.relay.decoding import decode
from host_client.telemetry.tail import pipeline
from host_client.telemetry.tail.sampling import SamplingConfig
from tests.support.metrics import result

LOW, HIGH = "0" * 31 + "1", "0" * 16 + "f" * 16
"""The trace ids that a ratio keeps first and last."""

ADA = Who(session_id="s", user_id="ada")
LIMIT = 10.0


def span(name: str, trace_id: str, *, error: bool = False) -> Span:
    made = Span(name, trace_id, "1".rjust(16, "0"), None, 1, end=2)
    if error:
        made.fail("tool_error")
    return made


def batch(*spans: Span) -> Batch:
    return Batch(otlp.encode(spans, resource("tests", {})), len(spans))


def log(trace_id: str) -> p.Log:
    return p.Log(v=1, ts=1.0, trace_id=trace_id, span_id="1" * 16, data=p.LogData(stream="runner", text="x"))


def names(batches: Sequence[Batch]) -> list[str]:
    found: list[str] = []
    for batch in batches:
        read = ExportTraceServiceRequest.FromString(batch.body)
        of_batch = [span.name for of in read.resource_spans for scope in of.scope_spans for span in scope.spans]
        assert len(of_batch) == batch.spans
        found += of_batch
    return found


def relayed(*called: str, trace_id: str = LOW) -> Batch:
    """Return a batch with spans of these names, as a sandbox relays them."""
    spans = [Span(name, trace_id, f"{number:016x}", None, 1, end=2) for number, name in enumerate(called, 1)]
    event = base64.b64encode(batch(*spans).body).decode()
    request = decode(event, trace_ids=frozenset({trace_id}), common={})
    return Batch(request.SerializeToString(), len(called))


@dataclass
class Recorder(Delivery):
    """A delivery that records the names of held and sent spans."""

    held: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    sent: list[str] = field(default_factory=list[str])
    writes: int = 0
    delivers: bool = True
    broken: bool = False
    before: Callable[[], None] = lambda: None

    def hold(self, trace_id: str, batches: Sequence[Batch]) -> None:
        self.before()
        self.held.setdefault(trace_id, []).extend(names(batches))

    def release(self, trace_id: str) -> None:
        self.sent += self.held.pop(trace_id)

    def discard(self, trace_id: str) -> None:
        del self.held[trace_id]

    def offer(self, batches: Sequence[Batch]) -> None:
        self.before()
        if self.broken:
            raise OSError("the outbox's own fault")
        self.writes += 1
        self.sent += names(batches)

    def flush(self, timeout: float) -> bool:
        return self.delivers

    def close(self, timeout: float) -> bool:
        return self.delivers

    def counts(self) -> dict[str, Counts]:
        return {"recorder": Counts(exported=len(self.sent))}


@dataclass
class Watcher:
    """An observer that records its calls, or raises."""

    seen: list[object] = field(default_factory=list[object])
    fails: bool = False
    before: Callable[[], None] = lambda: None

    def _note(self, what: object) -> None:
        self.before()
        if self.fails:
            raise ValueError("the observer's own fault")
        self.seen.append(what)

    def begin(self, who: Who, calls: ToolCalls) -> None:
        self._note(("begin", who))

    def observe(self, event: p.AnyEvent, who: Who, *, replayed: bool = False) -> None:
        self._note((*(["replayed"] if replayed else []), event.type, who))

    def observe_span(self, span: EndedSpan, *, replayed: bool = False) -> None:
        self._note(("replayed", span.name) if replayed else span.name)

    def end(self, who: Who) -> None:
        self._note(("end", who))

    def flush(self, timeout: float) -> bool:
        return True

    def close(self, timeout: float) -> bool:
        return True


def test_a_trace_that_is_kept_for_sure_is_sent_as_it_comes() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sampling=SamplingConfig(rate=0.1))
    telemetry.begin(LOW, ADA)
    telemetry.export(batch(span("a", LOW)))
    assert telemetry.flush(LIMIT)
    assert outbox.sent == ["a"]
    telemetry.end((LOW,), ADA)
    assert telemetry.shutdown(LIMIT)
    assert outbox.held == {}


def test_one_that_may_be_dropped_is_held_until_its_session_ends() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sampling=SamplingConfig(rate=0.0))
    telemetry.begin(HIGH, ADA)
    telemetry.export(batch(span("a", HIGH)))
    telemetry.export(batch(span("b", HIGH)))
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
        telemetry.export(batch(each))
    telemetry.end((HIGH,), ADA)
    assert telemetry.shutdown(LIMIT)
    assert (outbox.held, outbox.sent) == ({}, ["a", "b", "c"])


def test_a_session_in_two_traces_decides_each_by_itself() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sampling=SamplingConfig(rate=0.1))
    telemetry.begin(HIGH, ADA)
    telemetry.join(LOW, ADA)
    telemetry.export(batch(span("a", HIGH), span("b", LOW)))
    telemetry.end((HIGH, LOW), ADA)
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == ["b"]


def test_observers_see_what_is_dropped_too() -> None:
    outbox, watcher = Recorder(), Watcher()
    telemetry = Telemetry(outbox, (watcher,), sampling=SamplingConfig(rate=0.0))
    telemetry.begin(HIGH, ADA)
    telemetry.observe(log(HIGH), ADA)
    telemetry.export(batch(span("a", HIGH)))
    telemetry.end((HIGH,), ADA)
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == []
    assert watcher.seen == [("begin", ADA), ("log", ADA), "a", ("end", ADA)]


def test_what_another_process_has_observed_is_replayed_and_its_spans_go_out_again() -> None:
    outbox, watcher = Recorder(), Watcher()
    telemetry = Telemetry(outbox, [watcher])
    telemetry.begin(LOW, ADA)
    telemetry.observe(log(LOW), ADA, replayed=True)
    telemetry.export(batch(span("a", LOW)), replayed=True)
    telemetry.export(relayed("b"), replayed=True)
    telemetry.end((LOW,), ADA)
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == ["a", "b"]
    assert watcher.seen == [
        ("begin", ADA),
        ("replayed", "log", ADA),
        ("replayed", "a"),
        ("replayed", "b"),
        ("end", ADA),
    ]


@pytest.mark.parametrize("again", [batch(span("again", HIGH)), relayed("again", trace_id=HIGH)], ids=["own", "relayed"])
def test_a_trace_that_was_taken_over_is_kept_whole_as_what_was_held_of_it_elsewhere_is_sent(
    again: Batch,
) -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sampling=SamplingConfig(rate=0.0))
    telemetry.begin(HIGH, ADA)
    telemetry.export(batch(span("a", HIGH)))
    telemetry.export(again, replayed=True)
    telemetry.export(batch(span("b", HIGH)))
    telemetry.end((HIGH,), ADA)
    assert telemetry.shutdown(LIMIT)
    assert (outbox.held, outbox.sent) == ({}, ["a", "again", "b"])


def test_an_observer_that_fails_takes_nothing_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    outbox, watcher = Recorder(), Watcher()
    telemetry = Telemetry(outbox, (Watcher(fails=True), watcher))
    telemetry.begin(LOW, ADA)
    telemetry.export(batch(span("a", LOW)))
    assert not telemetry.shutdown(LIMIT), "what it did not see is lost"
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
        telemetry.export(batch(*[span(str(number), LOW)] * 2))
    lost = telemetry.lost["span: queue full"]
    assert 2 * 8 <= lost <= 2 * 12
    assert not telemetry.flush(0.01)
    go_on.set()
    assert telemetry.shutdown(LIMIT)
    assert len(outbox.sent) + lost == 40


def test_what_waits_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [relayed(f"{number:02}") for number in range(21)]
    monkeypatch.setattr(pipeline, "MAX_QUEUED_BYTES", 3.5 * len(batches[0].body))
    go_on = threading.Event()
    outbox = Recorder(before=lambda: assert_set(go_on))
    telemetry = Telemetry(outbox)
    telemetry.begin(LOW, ADA)
    for each in batches[:20]:
        telemetry.export(each)
    lost = telemetry.lost["span: queue full"]
    assert 16 <= lost <= 17
    go_on.set()
    assert not telemetry.flush(LIMIT)
    telemetry.export(batches[20])
    assert telemetry.shutdown(LIMIT)
    assert len(outbox.sent) + lost == 21


def test_what_a_shutdown_does_not_wait_for_is_counted() -> None:
    go_on = threading.Event()
    outbox = Recorder(before=lambda: assert_set(go_on))
    telemetry = Telemetry(outbox)
    telemetry.begin(LOW, ADA)
    for _ in range(20):
        telemetry.export(batch(*[span("a", LOW)] * 2))
    before = threading.enumerate()
    assert not telemetry.shutdown(0.01)
    go_on.set()
    for thread in before:
        if thread.name == "sandspan-telemetry":
            thread.join(LIMIT)
    # The spans that the thread was about to write have reached the closed outbox and are counted.
    assert telemetry.lost["span: shutdown"] + len(outbox.sent) == 40
    assert not telemetry.shutdown(LIMIT), "the answer stays the same"


def test_the_end_of_all_decides_what_waits() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, sampling=SamplingConfig(rate=0.0))
    telemetry.begin(HIGH, ADA)
    telemetry.export(batch(span("a", HIGH)))
    assert telemetry.shutdown(LIMIT)
    assert (outbox.held, outbox.sent) == ({}, [])


def test_a_result_has_room_where_others_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "MAX_QUEUED", 10)
    go_on = threading.Event()
    watcher = Watcher()
    telemetry = Telemetry(Recorder(before=lambda: assert_set(go_on)), (watcher,))
    telemetry.begin(LOW, ADA)
    for _ in range(20):
        telemetry.export(batch(span("a", LOW)))
    log = p.LogData(stream="runner", text="x")
    telemetry.observe(p.Log(v=1, ts=1.0, trace_id=LOW, span_id="1" * 16, data=log), ADA)
    telemetry.observe(p.Result(v=1, ts=1.0, trace_id=LOW, span_id="1" * 16, data=result(1.0)), ADA)
    telemetry.end((LOW,), ADA)
    go_on.set()
    assert not telemetry.shutdown(LIMIT)
    assert watcher.seen[-2:] == [("result", ADA), ("end", ADA)]
    assert telemetry.lost["event: queue full"] == 1


def assert_set(event: threading.Event) -> None:
    assert event.wait(LIMIT)


def test_spans_are_written_when_write_says_so() -> None:
    may_write = threading.Event()
    outbox = Recorder(before=lambda: assert_set(may_write), delivers=False)
    telemetry = Telemetry(outbox)
    telemetry.begin(LOW, ADA)
    telemetry.export(batch(span("a", LOW)))
    assert not telemetry.write(0.01)
    may_write.set()
    assert telemetry.write(LIMIT)
    assert outbox.sent == ["a"]
    telemetry.shutdown(LIMIT)


def test_what_is_not_delivered_is_told_by_flush_and_shutdown() -> None:
    telemetry = Telemetry(Recorder(delivers=False))
    telemetry.begin(LOW, ADA)
    assert not telemetry.flush(LIMIT)
    assert not telemetry.shutdown(LIMIT)


def test_what_was_lost_on_the_way_to_the_outbox_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    outbox = Recorder(broken=True)
    telemetry = Telemetry(outbox)
    telemetry.begin(LOW, ADA)
    telemetry.export(batch(span("a", LOW)))
    assert not telemetry.flush(LIMIT)
    assert telemetry.lost == {"fault of the pipeline": 1}
    assert "the outbox's own fault" in caplog.text
    outbox.broken = False
    telemetry.export(batch(span("b", LOW)))
    assert telemetry.flush(LIMIT)
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == ["b"]


@dataclass
class Unclosing(Watcher):
    """An observer whose `close` raises."""

    def close(self, timeout: float) -> bool:
        raise OSError("it cannot be closed")


def test_a_part_that_cannot_be_closed_keeps_no_other_from_its_end_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, [Unclosing(), Unclosing()])
    telemetry.begin(LOW, ADA)
    telemetry.export(batch(span("a", LOW)))
    assert not telemetry.shutdown(LIMIT)
    assert not telemetry.shutdown(LIMIT), "the answer stays the same"
    assert outbox.sent == ["a"]
    assert telemetry.lost == {"fault of Unclosing": 2}
    assert "it cannot be closed" in caplog.text


def test_who_ends_it_while_another_does_gets_the_same_answer() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert_set(go_on)

    telemetry = Telemetry(Recorder(before=wait))
    telemetry.begin(LOW, ADA)
    telemetry.export(batch(span("a", LOW)))
    answers: list[bool] = []
    ending = [threading.Thread(target=lambda: answers.append(telemetry.shutdown(LIMIT))) for _ in range(2)]
    for thread in ending:
        thread.start()
    assert_set(begun)
    assert not telemetry.shutdown(0.01), "the others are not through"
    go_on.set()
    for thread in ending:
        thread.join(LIMIT)
    assert answers == [True, True]


def test_what_is_handed_over_while_it_ends_is_done_or_counted() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox)
    telemetry.begin(LOW, ADA)
    started = threading.Barrier(3)

    def hand_over() -> None:
        started.wait(LIMIT)
        for _ in range(2_000):
            telemetry.export(batch(span("a", LOW)))
            telemetry.counts()

    threads = [threading.Thread(target=hand_over) for _ in range(2)]
    for thread in threads:
        thread.start()
    started.wait(LIMIT)
    telemetry.shutdown(LIMIT)
    for thread in threads:
        thread.join(LIMIT)
    assert len(outbox.sent) + sum(telemetry.lost.values()) == 4_000


def test_what_comes_after_the_end_is_counted() -> None:
    telemetry = Telemetry(Recorder())
    telemetry.begin(LOW, ADA)
    assert telemetry.shutdown(LIMIT)
    telemetry.export(batch(span("late", LOW)))
    assert telemetry.counts()["pipeline"] == {"dropped: span: after shutdown": 1}


def test_with_nobody_to_tell_there_is_no_thread() -> None:
    before = threading.active_count()
    telemetry = Telemetry()
    telemetry.begin(LOW, ADA)
    telemetry.export(batch(span("a", LOW)))
    assert threading.active_count() == before
    assert telemetry.flush(LIMIT)
    assert telemetry.shutdown(LIMIT)


class Upper(ContentFilter):
    """A content filter that sanitizes the span's name, in place of its content."""

    def clean(self, span: trace_pb2.Span) -> None:
        span.name = self.text(span.name)


def test_a_sanitizer_changes_what_is_sent() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, content=Upper(str.upper))
    telemetry.begin(LOW, ADA)
    telemetry.export(batch(span("a", LOW)))
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == ["A"]


def test_what_waits_together_is_written_together() -> None:
    go_on = threading.Event()
    outbox = Recorder()
    telemetry = Telemetry(outbox, (Watcher(before=lambda: assert_set(go_on)),))
    telemetry.begin(LOW, ADA)
    for number in range(20):
        telemetry.export(relayed(str(number)))
    go_on.set()
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == [str(number) for number in range(20)]
    assert outbox.writes <= 2


def test_a_trace_that_is_decided_before_it_was_written_down_never_is_held() -> None:
    go_on = threading.Event()
    outbox = Recorder()
    telemetry = Telemetry(outbox, (Watcher(before=lambda: assert_set(go_on)),), sampling=SamplingConfig(rate=0.0))
    telemetry.begin(LOW, ADA)
    telemetry.begin(HIGH, ADA)
    telemetry.export(batch(span("a", HIGH), span("b", HIGH, error=True)))
    telemetry.export(batch(span("c", LOW)))
    telemetry.end((LOW, HIGH), ADA)
    go_on.set()
    assert telemetry.shutdown(LIMIT)
    assert (outbox.held, outbox.sent) == ({}, ["a", "b"])


def test_an_event_that_is_only_counted_is_seen_by_a_flush() -> None:
    watcher = Watcher()
    telemetry = Telemetry(observers=(watcher,))
    log = p.LogData(stream="runner", text="x")
    telemetry.observe(p.Log(v=1, ts=1.0, trace_id=LOW, span_id="1" * 16, data=log), ADA)
    assert telemetry.flush(LIMIT)
    assert watcher.seen == [("log", ADA)]
    assert telemetry.shutdown(LIMIT)


def test_a_sanitizer_changes_what_was_relayed_too() -> None:
    outbox = Recorder()
    telemetry = Telemetry(outbox, content=Upper(str.upper))
    telemetry.begin(LOW, ADA)
    telemetry.export(relayed("a", "b"))
    assert telemetry.shutdown(LIMIT)
    assert outbox.sent == ["A", "B"]

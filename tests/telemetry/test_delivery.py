"""Delivery to a real receiver that fails: no span is lost, no caller waits, and every outcome is counted."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from email.utils import formatdate
from pathlib import Path
from time import time
from urllib.parse import urlsplit

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from host_client.telemetry.batch import Batch
from host_client.telemetry.export.delivery import Delivery
from host_client.telemetry.export.destinations import Delivered, Destination, Outcome
from host_client.telemetry.export.destinations.custom import Custom
from host_client.telemetry.export.destinations.otlp import otlp
from host_client.telemetry.export.endpoints import Endpoint
from host_client.telemetry.export.sender import HANGS_AFTER, Counts, Sender
from host_client.telemetry.export.spool import Spool
from tests.telemetry.receiver import (
    WAIT_SECONDS,
    Answer,
    Failure,
    Hang,
    Receiver,
    Request,
    Reset,
    batch,
    far_away,
    grpc_receiver,
    http_receiver,
    ids_of,
    nobody,
    partial_success,
)

ROOT = Path(__file__).parents[2]
POISON = "poison"
OUTAGE = [Answer(429), Answer(500), Answer(502), Answer(503), Answer(504), Answer(408), Reset()]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def endpoint(receiver: Receiver, timeout: float = 10.0) -> Endpoint:
    protocol = "grpc" if receiver.url.startswith("grpc") else "http/protobuf"
    return Endpoint(url=f"{receiver.url}/v1/traces", timeout=timeout, protocol=protocol)


def http(receiver: Receiver, name: str = "otlp", timeout: float = 10.0) -> Destination:
    return otlp(name, endpoint(receiver, timeout))


def grpc(receiver: Receiver, timeout: float = 10.0) -> Destination:
    return otlp("otlp", Endpoint(url=receiver.url, timeout=timeout, protocol="grpc"))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with http_receiver() as made:
        yield made


@pytest.fixture
def grpc_server() -> Iterator[Receiver]:
    with grpc_receiver() as made:
        yield made


class Bench:
    """One sender without a thread, with a clock that a test sets."""

    def __init__(self, destination: Destination, directory: Path | None = None) -> None:
        self.clock = Clock()
        self.jitter = 1.0
        self.spool = Spool(directory)
        self.spool.register({"otlp": True})
        self.spool.keep()
        self.sender = Sender(destination, "otlp", self.spool, key="otlp", clock=self.clock, jitter=lambda: self.jitter)

    def put(self, *batches: Batch) -> None:
        self.spool.put(batches, ("otlp",))

    def drain(self) -> float | None:
        """Send until a pause is due or no span is left; return the pause in seconds, or None."""
        while (pause := self.sender.step()) == 0.0:
            pass
        return pause

    def drain_all(self) -> list[float]:
        """Send until no span is left, advancing the clock over pauses; return the pauses in seconds."""
        pauses: list[float] = []
        while (pause := self.drain()) is not None:
            pauses.append(pause)
            self.clock.now += pause
        return pauses

    def close(self) -> None:
        self.sender.close()
        self.spool.close()

    @property
    def counts(self) -> Counts:
        return self.sender.counts(self.spool.waiting()["otlp"], self.spool.dropped().get("otlp", {}))


MakeBench = Callable[..., Bench]


@pytest.fixture
def make_bench() -> Iterator[MakeBench]:
    with ExitStack() as stack:
        yield lambda *given: stack.enter_context(closing(Bench(*given)))


def test_spans_that_wait_go_in_one_request(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(3), batch(2, trace=2), batch(1, trace=3))
    assert bench.drain() is None
    assert len(receiver.requests) == 1
    assert receiver.received == ids_of(batch(3).body, batch(2, trace=2).body, batch(1, trace=3).body)
    assert bench.counts == Counts(exported=6)


def test_what_is_tried_again_is_tried_with_growing_pauses_without_an_end(
    make_bench: MakeBench, receiver: Receiver
) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(1000))
    receiver.script.extend([Answer(503)] * 12)
    assert bench.drain_all() == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64, 64, 64]
    assert receiver.received == ids_of(batch(1000).body)
    assert bench.counts == Counts(exported=1000, retried=12_000, spooled=1000)


def test_after_a_success_pauses_begin_anew(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(1))
    receiver.script.extend([Answer(503), Answer(503), Answer()])
    assert bench.drain_all() == [1, 2]
    receiver.script.extend([Answer(503)])
    bench.put(batch(1))
    assert bench.drain_all() == [1]


def test_pauses_are_spread_over_their_whole_length(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench(http(receiver))
    bench.jitter = 0.25
    bench.put(batch(1))
    receiver.script.extend([Answer(503)] * 3)
    assert bench.drain_all() == [0.25, 0.5, 1]


@pytest.mark.parametrize("failure", OUTAGE, ids=str)
def test_what_may_pass_is_tried_again(make_bench: MakeBench, receiver: Receiver, failure: Answer | Reset) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(2))
    receiver.script.append(failure)
    assert bench.drain_all() == [1]
    assert receiver.received == ids_of(batch(2).body)
    assert bench.counts == Counts(exported=2, retried=2, spooled=2)


def test_a_receiver_that_asks_for_a_minute_is_given_it(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(2))
    receiver.script.append(Answer(429, {"retry-after": "60"}))
    assert bench.drain() == 60
    bench.clock.now += 59
    bench.put(batch(1, trace=2))
    assert bench.drain() == 1
    assert len(receiver.requests) == 1  # no request was sent before the pause was over
    bench.clock.now += 1
    assert bench.drain() is None
    assert bench.counts == Counts(exported=3, retried=2, spooled=2)


def test_a_date_to_come_back_at_is_kept(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(2))
    receiver.script.append(Answer(503, {"retry-after": formatdate(time() + 90, usegmt=True)}))
    (pause,) = bench.drain_all()
    assert 80 < pause <= 90
    assert receiver.received == ids_of(batch(2).body)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_failure_and_not_followed(
    make_bench: MakeBench, receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with http_receiver() as elsewhere:
        bench = make_bench(http(receiver))
        bench.put(batch(1))
        receiver.script.append(Answer(status, {"location": f"{elsewhere.url}/login?token=abc"}))
        assert bench.drain() == 60
        assert bench.counts == Counts(retried=1, spooled=1, waiting=1)
        assert elsewhere.requests == []
        told = f"HTTP {status}, a redirect to {elsewhere.url}/login?…, which is not followed: correct the address"
        assert told in caplog.text
    bench.clock.now += 60
    assert bench.drain() is None
    assert receiver.received == ids_of(batch(1).body)


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_told_once_and_loses_nothing(
    make_bench: MakeBench, receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(3))
    receiver.script.extend([Answer(status)] * 3)
    assert bench.drain_all() == [60, 60, 60]
    why = f"HTTP {status}: the key is missing or wrong"
    warning = f"telemetry for otlp waits in the spool until this is fixed: {why}"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [warning]
    assert bench.counts == Counts(exported=3, retried=9, spooled=3)


def refuse(*poisoned: int, status: int = 400) -> object:
    """Return a behaviour of the receiver that answers requests with one of these spans with an error."""

    def behave(request: Request) -> Answer:
        bad = {int(span.span_id, 16) for span in request.spans} & set(poisoned)
        return Answer(status, {"content-type": "text/plain"}, b"no such thing") if bad else Answer()

    return behave


def test_one_bad_span_is_dropped_and_all_others_arrive(
    make_bench: MakeBench, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(3), batch(100, first=4), batch(28, first=104))
    receiver.behave = refuse(57)  # pyright: ignore[reportAttributeAccessIssue]
    assert bench.drain() is None
    assert ids_of(batch(131).body) - receiver.received == ids_of(batch(1, first=57).body)
    assert receiver.times == 130
    assert bench.counts == Counts(exported=130, dropped={"refused": 1})
    assert "a span for otlp was dropped: HTTP 400; the answer was: no such thing" in caplog.text
    assert len(receiver.requests) < 25


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_destination_that_refuses_everything_keeps_its_spans_until_it_accepts_them(
    make_bench: MakeBench, receiver: Receiver, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    header = {"authorization": "Bearer 9f31c07aa2"}
    bench = make_bench(otlp("otlp", Endpoint(url=f"{receiver.url}/v1/traces", headers=header)))
    number = iter(range(1_000))

    def refuse_all(_: Request) -> Answer:
        # Each answer is different, as those with a request's id are.
        body = f'{{"error": "key 9f31c07aa2 has no project\\n", "request": {next(number)}}}\x1b[2J'
        return Answer(status, {"content-type": "application/json"}, body.encode())

    receiver.behave = refuse_all
    bench.put(batch(3), batch(300, first=4), batch(1, first=304))
    for _ in range(20):
        requests = len(receiver.requests)
        assert bench.drain() is not None
        assert len(receiver.requests) - requests <= 16
        bench.clock.now += 64
    assert (bench.counts.exported, bench.counts.waiting, bench.counts.dropped) == (0, 304, {})
    warnings = [record.getMessage() for record in caplog.records]
    assert 1 <= len(warnings) <= 1 + 20 * 64 / 300, "once in five minutes"
    for warning in warnings:
        assert warning.startswith(f"telemetry for otlp waits in the spool until this is fixed: HTTP {status}")
        assert 'the answer was: {"error": "key [redacted] has no project' in warning
        assert warning.isprintable()
    receiver.behave = lambda _: Answer()
    assert bench.drain() is None
    assert receiver.received == ids_of(batch(304).body)
    assert (receiver.times, bench.counts.exported, bench.counts.dropped) == (304, 304, {})


def test_a_destination_that_begins_to_refuse_everything_in_a_search_loses_nothing(
    make_bench: MakeBench, receiver: Receiver
) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(64))
    receiver.script.extend([Answer(400), Answer(), Answer(400), Answer()])
    receiver.behave = lambda _: Answer(400)
    for _ in range(20):
        assert bench.drain() is not None
        bench.clock.now += 64
    assert (bench.counts.exported, bench.counts.waiting, bench.counts.dropped) == (48, 16, {})
    receiver.behave = lambda _: Answer()
    assert bench.drain() is None
    assert (receiver.received, receiver.times) == (ids_of(batch(64).body), 64)


@pytest.mark.parametrize("place", ["begin", "middle", "end"])
def test_many_bad_spans_in_a_row_are_dropped_as_others_are_accepted(
    make_bench: MakeBench, receiver: Receiver, place: str
) -> None:
    bench, first = make_bench(http(receiver)), {"begin": 1, "middle": 100, "end": 161}[place]
    bad = range(first, first + 40)
    receiver.behave = refuse(*bad)  # pyright: ignore[reportAttributeAccessIssue]
    bench.put(batch(200))
    for more in range(30):
        bench.drain()
        bench.put(batch(2, first=1_000 + 2 * more))
        bench.clock.now += 64
    bench.drain_all()
    good = [batch(200).body, *(batch(2, first=1_000 + 2 * more).body for more in range(30))]
    assert receiver.received == ids_of(*good) - ids_of(batch(40, first=first).body)
    assert (receiver.times, bench.counts.waiting, bench.counts.dropped) == (220, 0, {"refused": 40})


def test_a_bad_span_found_in_an_outage_costs_the_others_nothing(
    make_bench: MakeBench, receiver: Receiver, tmp_path: Path
) -> None:
    bench = make_bench(http(receiver), tmp_path)
    bench.put(batch(16))
    receiver.behave = refuse(5)  # pyright: ignore[reportAttributeAccessIssue]
    receiver.script.extend([Answer(400), Answer(400), Answer(503)])
    assert bench.drain_all() == [1]
    assert receiver.times == 15
    assert bench.counts.dropped == {"refused": 1}
    assert bench.counts.exported == 15


def test_bytes_that_are_no_spans_hold_nobody_up(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench(http(receiver))
    receiver.script.extend([Answer(400)] * 2)
    bench.put(Batch(b"nonsense", 2), batch(2))
    assert bench.drain() is None
    assert receiver.received == ids_of(batch(2).body)
    assert bench.counts == Counts(exported=2, dropped={"unreadable": 2})


def test_what_is_too_large_is_sent_in_parts(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(64))
    receiver.behave = lambda request: Answer(413) if len(request.spans) > 10 else Answer()
    assert bench.drain() is None
    assert receiver.received == ids_of(batch(64).body)
    assert receiver.times == 64
    assert bench.counts == Counts(exported=64)


def test_a_span_that_is_too_large_alone_is_dropped(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(8))
    receiver.behave = refuse(3, status=413)  # pyright: ignore[reportAttributeAccessIssue]
    assert bench.drain() is None
    assert bench.counts == Counts(exported=7, dropped={"too_large": 1})


def test_what_a_partial_success_leaves_out_is_counted_and_told(
    make_bench: MakeBench, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(10))
    receiver.script.append(partial_success(3, "too long ago"))
    assert bench.drain() is None
    assert bench.counts == Counts(exported=7, dropped={"rejected": 3})
    assert "otlp rejected 3 spans: too long ago" in caplog.text


def test_a_partial_success_in_json_is_read_too(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(10))
    body = b'{"partialSuccess": {"rejectedSpans": "4", "errorMessage": "no"}}'
    receiver.script.append(Answer(200, {"content-type": "application/json"}, body))
    assert bench.drain() is None
    assert bench.counts == Counts(exported=6, dropped={"rejected": 4})


def test_a_web_page_is_no_success(make_bench: MakeBench, receiver: Receiver) -> None:
    bench = make_bench(http(receiver))
    bench.put(batch(1))
    receiver.behave = lambda _: Answer(200, {"content-type": "text/html"}, b"<h1>Log in</h1>")
    assert bench.drain() == 60
    assert bench.counts.waiting == 1


def test_a_receiver_that_does_not_answer_is_tried_again(
    make_bench: MakeBench, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(http(receiver, timeout=0.2))
    bench.put(batch(1))
    receiver.script.append(Hang())
    assert bench.drain_all() == [1]
    assert "no answer within 0.2 s" in caplog.text
    assert bench.counts == Counts(exported=1, retried=1, spooled=1)


def test_down_for_a_whole_run_and_back_in_the_next(tmp_path: Path) -> None:
    with nobody() as port:
        address = Endpoint(url=f"http://127.0.0.1:{port}/v1/traces")
        first = Delivery([otlp("otlp", address)], Spool(tmp_path), linger=0, jitter=lambda: 1.0)
        for trace in range(20):
            first.hold(f"{trace:032x}", [batch(3, trace=trace), batch(2, trace=trace, first=4)])
            first.release(f"{trace:032x}")
        assert not first.close(0.2)
        counts = first.counts()["otlp"]
        assert (counts.exported, counts.waiting, counts.dropped) == (0, 100, {})
    with http_receiver(port) as back:
        second = Delivery([otlp("otlp", address)], Spool(tmp_path), linger=0)
        assert second.close(WAIT_SECONDS)
        assert back.received == ids_of(*(batch(5, trace=trace).body for trace in range(20)))
        assert back.times == 100
    assert sorted(path.match("span-records*") and path.suffix for path in tmp_path.iterdir()) == [".lock", ".sqlite"]


def test_back_within_the_run(tmp_path: Path) -> None:
    with nobody() as port:
        address = Endpoint(url=f"http://127.0.0.1:{port}/v1/traces")
        delivery = Delivery([otlp("otlp", address)], Spool(tmp_path), linger=0, jitter=lambda: 0.01)
        delivery.offer([batch(5)])
        assert not delivery.flush(0.2)
    with http_receiver(port) as back:
        assert delivery.flush(WAIT_SECONDS)
        assert back.received == ids_of(batch(5).body)
    assert delivery.close(WAIT_SECONDS)


class Hanging:
    """A destination whose requests hang until the test ends."""

    name = key = "hanging"
    durable = True

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def send(self, request: bytes) -> Outcome:
        self.entered.set()
        self.let_go.wait(WAIT_SECONDS)
        return Delivered()

    def close(self) -> None:
        """Do nothing, as there is no connection."""


class Raising:
    name = key = "raising"
    durable = True

    def send(self, request: bytes) -> Outcome:
        raise RuntimeError("no")

    def close(self) -> None:
        raise RuntimeError("no")


def test_one_that_hangs_or_raises_or_is_down_delays_nobody(receiver: Receiver, tmp_path: Path) -> None:
    hanging = Hanging()
    with nobody() as port:
        down = otlp("down", Endpoint(url=f"http://127.0.0.1:{port}/v1/traces"))
        destinations = [hanging, Raising(), down, http(receiver)]
        delivery = Delivery(destinations, Spool(tmp_path), linger=0, jitter=lambda: 1.0)
        delivery.offer([batch(1)])
        assert hanging.entered.wait(WAIT_SECONDS)
        for trace in range(2, 50):
            delivery.offer([batch(1, trace=trace)])
        receiver.wait_for(lambda: receiver.times == 49)
        assert not delivery.close(0.2)
    counts = delivery.counts()
    assert counts["otlp"].exported == 49
    assert (counts["hanging"].exported, counts["raising"].exported, counts["down"].exported) == (0, 0, 0)
    hanging.let_go.set()
    left = Spool(tmp_path)
    left.register({"hanging": True, "raising": True, down.key: True, "otlp": True})
    left.keep()
    assert left.waiting() == {"hanging": 49, "raising": 49, down.key: 49, "otlp": 0}
    left.close()


def test_one_that_hangs_is_not_waited_for_where_the_next_process_has_its_spans(tmp_path: Path) -> None:
    hanging, clock = Hanging(), Clock()
    delivery = Delivery([hanging], Spool(tmp_path), linger=0, clock=clock)
    delivery.offer([batch(3)])
    assert hanging.entered.wait(WAIT_SECONDS)
    clock.now += HANGS_AFTER
    # Waiting for the destination would deliver the spans.
    assert not delivery.flush(2 * WAIT_SECONDS)
    assert not delivery.close(2 * WAIT_SECONDS)
    assert delivery.counts()["hanging"] == Counts(waiting=3)
    hanging.let_go.set()
    left = Spool(tmp_path)
    left.register({"hanging": True})
    left.keep()
    assert left.waiting() == {"hanging": 3}
    left.close()


class Asked(Spool):
    """A spool that signals when `outlives` was called."""

    def __init__(self) -> None:
        super().__init__(None)
        self.was_asked = threading.Event()

    def outlives(self, destination: str) -> bool:
        answer = super().outlives(destination)
        self.was_asked.set()
        return answer


def test_one_that_hangs_is_waited_for_where_its_spans_would_be_lost() -> None:
    hanging, clock, spool = Hanging(), Clock(), Asked()
    delivery = Delivery([hanging], spool, linger=0, clock=clock)
    delivery.offer([batch(3)])
    assert hanging.entered.wait(WAIT_SECONDS)
    clock.now += HANGS_AFTER
    answers: list[bool] = []
    closing = threading.Thread(target=lambda: answers.append(delivery.close(WAIT_SECONDS)))
    closing.start()
    assert spool.was_asked.wait(WAIT_SECONDS)
    hanging.let_go.set()
    closing.join(WAIT_SECONDS)
    assert answers == [True]


def test_the_end_tries_one_that_fails_again_only_where_its_spans_would_be_lost(
    receiver: Receiver, tmp_path: Path
) -> None:
    for spool, delivered in ((Spool(tmp_path), False), (Spool(None), True)):
        receiver.script.append(Answer(503))
        delivery = Delivery([http(receiver)], spool, linger=0, jitter=lambda: 0.5)
        delivery.offer([batch(3)])
        assert delivery.close(WAIT_SECONDS) is delivered
        counts = delivery.counts()["otlp"]
        assert (counts.exported, counts.waiting, counts.dropped) == ((3, 0, {}) if delivered else (0, 3, {}))


def test_a_flush_that_cannot_succeed_in_time_says_so_at_once(receiver: Receiver) -> None:
    delivery = Delivery([http(receiver)], Spool(None), linger=0)
    receiver.behave = lambda _: Answer(429, {"retry-after": "60"})
    delivery.offer([batch(1)])
    assert not delivery.flush(59)  # waiting would exceed the test's time limit
    assert not delivery.close(5)


def test_a_flush_is_false_where_spans_were_dropped(receiver: Receiver) -> None:
    delivery = Delivery([http(receiver)], Spool(None))
    receiver.behave = refuse(1)  # pyright: ignore[reportAttributeAccessIssue]
    delivery.offer([batch(2)])
    assert not delivery.flush(WAIT_SECONDS)
    delivery.offer([batch(2, trace=2, first=3)])
    assert delivery.flush(WAIT_SECONDS)
    assert delivery.close(WAIT_SECONDS)


def test_destinations_of_one_name_are_told_apart(receiver: Receiver) -> None:
    with http_receiver() as other:
        delivery = Delivery([http(receiver), http(other)], Spool(None))
        delivery.offer([batch(1)])
        assert delivery.close(WAIT_SECONDS)
        assert {name: counts.exported for name, counts in delivery.counts().items()} == {"otlp": 1, "otlp-2": 1}
        assert (receiver.times, other.times) == (1, 1)


def test_an_undecided_trace_is_not_sent_and_a_discarded_one_never(receiver: Receiver, tmp_path: Path) -> None:
    delivery = Delivery([http(receiver)], Spool(tmp_path))
    delivery.hold("a" * 32, [batch(1)])
    delivery.hold("b" * 32, [batch(1, trace=2)])
    assert delivery.flush(WAIT_SECONDS)
    assert receiver.requests == []
    delivery.discard("a" * 32)
    delivery.release("b" * 32)
    assert delivery.close(WAIT_SECONDS)
    assert receiver.received == ids_of(batch(1, trace=2).body)


def test_spans_go_to_the_project_they_are_of_and_to_no_other(receiver: Receiver, tmp_path: Path) -> None:
    of_a, of_b = (
        otlp("otlp", Endpoint(url=f"{receiver.url}/v1/traces", headers={"authorization": who})) for who in "ab"
    )
    receiver.behave = lambda _: Answer(503)
    first = Delivery([of_a], Spool(tmp_path), linger=0, jitter=lambda: 1.0)
    first.offer([batch(1)])
    first.hold("a" * 32, [batch(1, trace=2)])
    assert not first.close(0.2)
    assert first.counts()["otlp"].waiting == 1
    receiver.behave = lambda _: Answer()
    other = Delivery([of_b], Spool(tmp_path), linger=0)
    other.offer([batch(1, trace=3)])
    assert other.flush(WAIT_SECONDS)
    assert receiver.received == ids_of(batch(1, trace=3).body)
    again = otlp("otlp", Endpoint(url=f"{receiver.url}/v1/traces", headers={"authorization": "a"}))
    second = Delivery([again], Spool(tmp_path), linger=0)  # beside the other, which did not lock this file
    assert second.close(WAIT_SECONDS)
    assert receiver.times == 3
    assert other.close(WAIT_SECONDS)
    assert sorted(path.match("span-records*") and path.suffix for path in tmp_path.iterdir()) == [".lock", ".sqlite"]


def test_undecided_spans_that_end_with_the_process_are_told(receiver: Receiver) -> None:
    delivery = Delivery([http(receiver)], Spool(None))
    delivery.hold("a" * 32, [batch(3)])
    assert not delivery.close(WAIT_SECONDS)
    assert delivery.counts()["otlp"] == Counts(dropped={"closed": 3})


def test_undecided_spans_that_the_next_process_gets_are_told(
    receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    delivery = Delivery([http(receiver)], Spool(tmp_path))
    delivery.hold("a" * 32, [batch(3)])
    assert delivery.close(WAIT_SECONDS)
    assert delivery.counts()["otlp"] == Counts(spooled=3)
    assert "3 spans of undecided traces stay" in caplog.text


HOST = """
import sys
from pathlib import Path
from host_client.telemetry.export.delivery import Delivery
from host_client.telemetry.export.destinations.otlp import otlp
from host_client.telemetry.export.endpoints import Endpoint
from host_client.telemetry.export.spool import Spool
from tests.telemetry.receiver import batch

if __name__ == "__main__":
    delivery = Delivery([otlp("otlp", Endpoint(url=sys.argv[1]))], Spool(Path(sys.argv[2])), linger=0)
    for trace in range(int(sys.argv[3]), int(sys.argv[3]) + 100):
        name = f"{trace:032x}"
        delivery.hold(name, [batch(2, trace=trace)])
        if trace % 3:
            delivery.release(name)
    print("ready", flush=True)
    sys.stdin.read()
    sys.exit(not delivery.close(30))
"""


def host(receiver: Receiver, directory: Path, first: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOST, f"{receiver.url}/v1/traces", str(directory), str(first)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_killed_host_with_spans_in_flight_loses_none(receiver: Receiver, tmp_path: Path) -> None:
    receiver.script.append(Hang())
    process = host(receiver, tmp_path)
    receiver.wait_for(lambda: len(receiver.requests) == 1)  # sent, but never answered
    process.kill()
    process.communicate(timeout=WAIT_SECONDS)
    assert receiver.received == set()

    delivery = Delivery([http(receiver)], Spool(tmp_path), linger=0)
    assert delivery.close(WAIT_SECONDS)
    # An undecided trace of a killed host is kept, as its end is unknown.
    assert receiver.received == ids_of(*(batch(2, trace=trace).body for trace in range(1, 101)))
    assert receiver.times == 200
    assert sorted(path.match("span-records*") and path.suffix for path in tmp_path.iterdir()) == [".lock", ".sqlite"]


def test_two_hosts_share_a_directory(receiver: Receiver, tmp_path: Path) -> None:
    hosts = [host(receiver, tmp_path, first) for first in (1, 1001)]
    for process in hosts:
        process.communicate("", timeout=WAIT_SECONDS)
        assert process.returncode == 0
    decided = [trace for trace in (*range(1, 101), *range(1001, 1101)) if trace % 3]
    assert ids_of(*(batch(2, trace=trace).body for trace in decided)) <= receiver.received
    delivery = Delivery([http(receiver)], Spool(tmp_path))
    assert delivery.close(WAIT_SECONDS)
    everything = [*range(1, 101), *range(1001, 1101)]
    assert receiver.received == ids_of(*(batch(2, trace=trace).body for trace in everything))
    assert receiver.times == 400
    assert sorted(path.match("span-records*") and path.suffix for path in tmp_path.iterdir()) == [".lock", ".sqlite"]


def retry_info(seconds: int) -> tuple[tuple[str, str | bytes], ...]:
    from google.protobuf.any_pb2 import Any as Packed
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    info = RetryInfo()
    info.retry_delay.FromSeconds(seconds)
    detail = Packed()
    detail.Pack(info)
    return (("grpc-status-details-bin", Status(code=14, details=[detail]).SerializeToString()),)


def test_grpc_delivers(make_bench: MakeBench, grpc_server: Receiver) -> None:
    address = Endpoint(url=grpc_server.url, protocol="grpc", headers={"Signoz-Ingestion-Key": "k"})
    bench = make_bench(otlp("otlp", address))
    bench.put(batch(3), batch(2, trace=2))
    assert bench.drain() is None
    assert grpc_server.received == ids_of(batch(3).body, batch(2, trace=2).body)
    assert grpc_server.requests[0].headers["signoz-ingestion-key"] == "k"
    assert bench.counts == Counts(exported=5)


@pytest.mark.parametrize(
    ("failure", "pause"),
    [
        (Failure("UNAVAILABLE"), 1),
        (Failure("DEADLINE_EXCEEDED"), 1),
        (Failure("UNAVAILABLE", metadata=retry_info(60)), 60),
        (Failure("RESOURCE_EXHAUSTED", "quota", retry_info(30)), 30),
        (Failure("RESOURCE_EXHAUSTED", "quota"), 1),
        (Failure("UNAUTHENTICATED"), 60),
        (Failure("PERMISSION_DENIED"), 60),
        (Failure("UNIMPLEMENTED"), 60),
    ],
    ids=str,
)
def test_grpc_tries_again(make_bench: MakeBench, grpc_server: Receiver, failure: Failure, pause: float) -> None:
    bench = make_bench(grpc(grpc_server))
    bench.put(batch(2))
    grpc_server.script.append(failure)
    assert bench.drain_all() == [pause]
    assert bench.counts == Counts(exported=2, retried=2, spooled=2)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Failure("INVALID_ARGUMENT", "bad"), "refused"),
        (Failure("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)"), "too_large"),
    ],
    ids=str,
)
def test_grpc_isolates_a_bad_span(make_bench: MakeBench, grpc_server: Receiver, failure: Failure, reason: str) -> None:
    bench = make_bench(grpc(grpc_server))
    bench.put(batch(20))
    grpc_server.behave = lambda request: (
        failure if any(int(span.span_id, 16) == 7 for span in request.spans) else Answer()
    )
    assert bench.drain() is None
    assert grpc_server.times == 19
    assert bench.counts == Counts(exported=19, dropped={reason: 1})


def test_a_grpc_server_that_refuses_everything_keeps_its_spans(
    make_bench: MakeBench, grpc_server: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(grpc(grpc_server))
    bench.put(batch(20))
    grpc_server.behave = lambda _: Failure("INVALID_ARGUMENT", "no such project")
    for _ in range(5):
        assert bench.drain() is not None
        bench.clock.now += 64
    assert (bench.counts.waiting, bench.counts.dropped) == (20, {})
    assert "INVALID_ARGUMENT; the answer was: no such project" in caplog.text
    grpc_server.behave = lambda _: Answer()
    assert bench.drain() is None
    assert grpc_server.times == 20


def test_grpc_reads_a_partial_success(make_bench: MakeBench, grpc_server: Receiver) -> None:
    bench = make_bench(grpc(grpc_server))
    bench.put(batch(5))
    grpc_server.script.append(partial_success(2, "no"))
    assert bench.drain() is None
    assert bench.counts == Counts(exported=3, dropped={"rejected": 2})


def test_grpc_waits_for_a_connection_to_a_server_that_is_far_away(make_bench: MakeBench, grpc_server: Receiver) -> None:
    with far_away(urlsplit(grpc_server.url).port or 0, seconds=0.5) as port:
        bench = make_bench(otlp("otlp", Endpoint(url=f"http://127.0.0.1:{port}", protocol="grpc")))
        bench.put(batch(2))
        assert bench.drain_all() == []
        bench.close()
    assert bench.counts == Counts(exported=2)


def test_grpc_that_hangs_or_is_not_there_is_tried_again(make_bench: MakeBench, grpc_server: Receiver) -> None:
    bench = make_bench(grpc(grpc_server, timeout=1.0))
    bench.put(batch(1))
    grpc_server.script.append(Hang())
    assert bench.drain_all() == [1]
    with nobody() as port:
        bench = make_bench(otlp("otlp", Endpoint(url=f"http://127.0.0.1:{port}", protocol="grpc")))
        bench.put(batch(1))
        assert bench.drain() == 1


class Picky(SpanExporter):
    """An exporter that raises at the span `POISON` and reports a failure for the first other request."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.failing = True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if any(span.name == POISON for span in spans):
            raise KeyError(POISON)
        if self.failing:
            self.failing = False
            return SpanExportResult.FAILURE
        self.seen += [span.name for span in spans]
        return SpanExportResult.SUCCESS


def test_an_exporter_that_reports_a_failure_is_given_the_spans_again(make_bench: MakeBench) -> None:
    exporter = Picky()
    bench = make_bench(Custom(exporter))
    bench.put(batch(2))
    assert bench.drain_all() == [1]
    assert exporter.seen == ["execute_tool Bash"] * 2


def test_an_exporter_that_raises_at_one_span_loses_that_one(
    make_bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Picky()
    exporter.failing = False
    bench = make_bench(Custom(exporter))
    bench.put(batch(2), batch(1, first=3, name=POISON), batch(5, first=4))
    pauses = bench.drain_all()
    assert pauses[:5] == [1, 2, 4, 8, 16]
    assert len(exporter.seen) == 7
    assert bench.counts.dropped == {"refused": 1}
    assert "the exporter raised KeyError('poison')" in caplog.text


class Away(SpanExporter):
    """An exporter that raises while ``is_away`` is set."""

    def __init__(self) -> None:
        self.is_away = True
        self.calls = 0
        self.seen = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.calls += 1
        if self.is_away:
            raise RuntimeError("no connection")
        self.seen += len(spans)
        return SpanExportResult.SUCCESS


def test_an_exporter_that_raises_through_an_outage_loses_nothing(make_bench: MakeBench) -> None:
    exporter = Away()
    bench = make_bench(Custom(exporter))
    bench.put(batch(100), batch(1, first=101), batch(1, first=102))
    pauses: list[float | None] = []
    for _ in range(30):
        pauses.append(bench.drain())
        bench.clock.now += 64
    assert pauses == [1, 2, 4, 8, 16, 32, *[64] * 24]
    assert bench.counts.dropped == {}
    assert bench.counts.waiting == 102
    assert exporter.calls < 30 * 18
    exporter.is_away = False
    bench.drain_all()
    assert bench.counts.exported == exporter.seen == 102
    assert bench.counts.dropped == {}


def test_a_span_that_is_alone_is_tried_without_an_end_and_given_up_when_others_go_through(
    make_bench: MakeBench,
) -> None:
    exporter = Picky()
    exporter.failing = False
    bench = make_bench(Custom(exporter))
    bench.put(batch(1, name=POISON))
    for _ in range(20):
        assert bench.drain() is not None
        bench.clock.now += 64
    assert bench.counts.dropped == {}
    bench.put(batch(500, first=2))
    bench.drain_all()
    assert bench.counts.dropped == {"refused": 1}
    assert len(exporter.seen) == 500


def test_an_exporter_gets_spans_as_they_were_made() -> None:
    exporter = InMemorySpanExporter()
    delivery = Delivery([Custom(exporter, durable=False)], Spool(None))
    delivery.offer([batch(2)])
    assert delivery.close(WAIT_SECONDS)
    first = exporter.get_finished_spans()[0]
    assert first.attributes == {"user.id": "ann", "gen_ai.operation.name": "execute_tool", "number": 1}
    assert first.resource.attributes["service.name"] == "tests"

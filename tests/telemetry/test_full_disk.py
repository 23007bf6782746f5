"""On a full disk `flush` and `shutdown` return what is true, and each span and turn is delivered, stored or counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_runner.contract import protocol as p
from host_client.telemetry import Telemetry, TelemetryConfig, Who, initialize_telemetry
from host_client.telemetry.costs.report import add_up
from host_client.telemetry.export.endpoints import Endpoint
from tests.support.disks import resize, small_disk
from tests.support.metrics import event, result
from tests.telemetry.receiver import WAIT_SECONDS, Answer, Receiver, batch, http_receiver, ids_of

SESSIONS, SPANS = 100, 10
NOT_WRITTEN = "dropped: turn: not in the ledger"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with http_receiver() as made:
        yield made


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "200k") as place:
        yield place


def telemetry_on(disk: Path, receiver: Receiver) -> Telemetry:
    to = Endpoint(url=f"{receiver.url}/v1/traces")
    config = TelemetryConfig(exporters=("otlp",), otlp=to, spool_directory=disk / "spool", ledger=disk / "ledger")
    return initialize_telemetry(config)


def spans_of_session(number: int) -> bytes:
    return batch(SPANS, trace=number, first=number * SPANS).body


def observe_sessions(telemetry: Telemetry) -> None:
    """Hand over the spans and the turn of each session."""
    for number in range(1, SESSIONS + 1):
        trace_id, who = f"{number:032x}", Who(session_id=f"s-{number}")
        telemetry.begin(trace_id, who)
        telemetry.export(batch(SPANS, trace=number, first=number * SPANS))
        ended = event(result(0.01), f"{number:016x}")
        assert isinstance(ended, p.Result)
        telemetry.observe(ended, who)
        telemetry.end((trace_id,), who)


def test_a_flush_is_true_only_when_the_costs_are_written_too(disk: Path, receiver: Receiver) -> None:
    telemetry = telemetry_on(disk, receiver)
    observe_sessions(telemetry)
    receiver.wait_for(lambda: receiver.times == SESSIONS * SPANS)
    assert not telemetry.flush(0.2), "the costs wait in memory"
    resize(disk, "10m")
    assert telemetry.flush(WAIT_SECONDS)
    assert add_up([disk / "ledger"], [])[1].turns == SESSIONS
    assert telemetry.shutdown(WAIT_SECONDS)
    assert set(telemetry.counts()) == {"otlp"}


def test_a_shutdown_counts_what_the_disk_did_not_take_and_the_next_process_sends_the_rest(
    disk: Path, receiver: Receiver
) -> None:
    receiver.behave = lambda _: Answer(503)
    telemetry = telemetry_on(disk, receiver)
    observe_sessions(telemetry)
    assert not telemetry.shutdown(2.0)
    counts = telemetry.counts()
    stored = counts["otlp"]["waiting"]
    assert counts["otlp"]["dropped: closed"] == SESSIONS * SPANS - stored > 0
    assert counts["pipeline"] == {NOT_WRITTEN: SESSIONS - add_up([disk / "ledger"], [])[1].turns}
    assert counts["pipeline"][NOT_WRITTEN] > 0

    resize(disk, "10m")
    receiver.behave = lambda _: Answer()
    following = telemetry_on(disk, receiver)
    assert following.flush(WAIT_SECONDS)
    assert following.shutdown(WAIT_SECONDS)
    assert receiver.times == len(receiver.received) == stored
    assert receiver.received <= ids_of(*map(spans_of_session, range(1, SESSIONS + 1)))

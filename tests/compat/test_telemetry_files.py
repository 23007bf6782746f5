"""Today's code delivers spools of f6f5305, sums its ledgers, and writes to both."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent_runner.contract import protocol as p
from host_client.telemetry import TelemetryConfig, Who, initialize_telemetry
from tests.compat.canonical import Json
from tests.compat.costs import COSTS_BY, costs, event_of
from tests.compat.files import COSTS, DELIVERED, LEDGER, SPOOL, read_json, unpack
from tests.compat.spools import delivered_of
from tests.support.metrics import result
from tests.telemetry.receiver import WAIT_SECONDS

ADA = Who(session_id="s-1", user_id="ada", tenant_id="acme", tier="pro")


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Copy the recorded spool, which a process that ended and a killed process with an undecided trace have left."""
    return unpack(SPOOL, tmp_path / "spool")


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Copy the recorded ledger, which a killed process has left."""
    return unpack(LEDGER, tmp_path) / "ledger"


def test_what_waits_in_an_old_spool_is_delivered_to_each_of_its_destinations(spool: Path) -> None:
    delivered = delivered_of(spool)
    expected = read_json(DELIVERED)
    assert {name: sorted(spans) for name, spans in delivered.items()} == {
        name: sorted(spans) for name, spans in expected.items()
    }
    for name, spans in expected.items():
        for span_id, span in spans.items():
            assert delivered[name][span_id] == span, name
    assert list(spool.glob("*.db")) == []


def test_what_is_for_a_destination_that_this_process_has_not_waits_on(spool: Path) -> None:
    expected = {name: sorted(spans) for name, spans in read_json(DELIVERED).items()}
    for name in expected:
        assert {name: sorted(spans) for name, spans in delivered_of(spool, name).items()} == {name: expected[name]}
    assert list(spool.glob("*.db")) == []


@pytest.mark.parametrize("by", COSTS_BY)
def test_an_old_ledger_is_summed_as_it_was(ledger: Path, by: str) -> None:
    assert costs(ledger, by) == read_json(COSTS)[by]


def test_an_old_ledger_is_summed_from_a_day_on(ledger: Path) -> None:
    of_days = {row["day"]: row["cost_nano_usd"] for row in read_json(COSTS)["day"]["rows"]}
    first, *later = sorted(of_days)
    assert costs(ledger, "day", "--since", later[0])["total"]["cost_nano_usd"] == sum(of_days.values()) - of_days[first]


def test_a_turn_that_is_in_an_old_ledger_counts_once_and_a_new_one_is_added(ledger: Path) -> None:
    before = {row["user"]: row["cost_nano_usd"] for row in read_json(COSTS)["user"]["rows"]}
    telemetry = initialize_telemetry(TelemetryConfig(exporters=(), ledger=ledger))
    known = event_of(result(0.4), 0)
    new = event_of(result(0.25, turn=3), 99)
    telemetry.begin(known.trace_id, ADA)
    for event in (known, new):
        assert isinstance(event, p.Result)
        telemetry.observe(event, ADA)
    telemetry.end([known.trace_id], ADA)
    assert telemetry.shutdown(WAIT_SECONDS)
    after = {row["user"]: row["cost_nano_usd"] for row in costs(ledger, "user")["rows"]}
    assert after == {**before, "ada": before["ada"] + 250_000_000}


def test_a_turn_that_an_old_ledger_estimates_is_replaced_by_its_result(ledger: Path) -> None:
    (estimated,) = [row for row in read_json(COSTS)["user"]["rows"] if row["estimated_turns"]]
    assert estimated["user"] == "dora"
    (turn,) = [span for span in read_json(DELIVERED)["otlp"].values() if is_turn_of("dora", span)]
    about = dict(turn["attributes"])
    telemetry = initialize_telemetry(TelemetryConfig(exporters=(), ledger=ledger))
    who = Who(session_id=about["session.id"]["string_value"], user_id="dora", tenant_id="acme")
    trace_id, span_id = turn["trace_id"], turn["span_id"]
    late = p.event_of(result(0.75), seq=9, ts=1_796_000_000.0, trace_id=trace_id, span_id=span_id)
    telemetry.begin(trace_id, who)
    telemetry.observe(late, who)
    telemetry.end([trace_id], who)
    assert telemetry.shutdown(WAIT_SECONDS)
    (row,) = [row for row in costs(ledger, "user")["rows"] if row["user"] == "dora"]
    assert (row["turns"], row["cost_nano_usd"], row["estimated_turns"]) == (1, 750_000_000, 0)


def is_turn_of(user: str, span: Json) -> bool:
    return span["name"] == "agent.execute" and ["user.id", {"string_value": user}] in span["attributes"]

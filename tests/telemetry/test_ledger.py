"""The ledger: every turn once, sums exact, several writers, and a file that fails stops nobody."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner import protocol as p
from host_client.telemetry import Who
from host_client.telemetry.ledger import BY, Ledger, LedgerError, Total
from host_client.telemetry.turns import MAX_COST_USD, Turn, turn_of
from tests.support.metrics import event, result

ADA = Who(session_id="s-1", user_id="ada", tenant_id="acme", tier="pro")
BOB = Who(session_id="s-2", user_id="bob", tenant_id="acme")
NOBODY = Who(session_id="s-3")
WAIT_SECONDS = 60.0


def span_id(number: int) -> str:
    return f"{number:016x}"


def told(data: p.ResultData, number: int) -> p.Result:
    """Return the end of a turn, with a span of its own."""
    ended = event(data, span_id(number))
    assert isinstance(ended, p.Result)
    return ended


def costs(totals: Sequence[Total]) -> dict[str | None, int]:
    return {total.key: total.nano_usd for total in totals}


def noted(path: Path, *turns: tuple[Who, p.ResultData]) -> Ledger:
    """Write turns, each with a span of its own, and close."""
    ledger = Ledger(path)
    for number, (who, data) in enumerate(turns):
        ledger.record(told(data, number), who)
    assert ledger.close(1.0)
    return ledger


# -- sums ---------------------------------------------------------------------------------------------


def test_a_turn_belongs_to_its_user_tenant_models_and_day(tmp_path: Path) -> None:
    used = {"dear": {"costUSD": 0.03, "inputTokens": 7}, "cheap": {"costUSD": 0.01, "cacheReadInputTokens": 9}}
    ledger = noted(
        tmp_path / "ledger",
        (ADA, result(0.04, turn_model_usage=used)),
        (BOB, result(0.5, usage={"input_tokens": 3, "output_tokens": 4})),
        (NOBODY, result(0.001)),
    )
    assert ledger.totals("user") == [
        Total("bob", 1, 500_000_000, 3, 4, 0, 0),
        Total("ada", 1, 40_000_000, 7, 0, 9, 0),
        Total(None, 1, 1_000_000, 0, 0, 0, 0),
    ]
    assert costs(ledger.totals("tenant")) == {"acme": 540_000_000, None: 1_000_000}
    assert costs(ledger.totals("model")) == {"unknown": 501_000_000, "dear": 30_000_000, "cheap": 10_000_000}
    assert [total.turns for total in ledger.totals("model")] == [2, 1, 1]
    assert ledger.total() == Total(None, 3, 541_000_000, 10, 4, 9, 0)


def test_days_are_those_of_utc_by_the_hosts_clock(tmp_path: Path) -> None:
    moments = [datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)]
    clock = iter([moment.timestamp() for moment in moments])
    ledger = Ledger(tmp_path / "ledger", clock=lambda: next(clock))
    for number in range(2):
        ledger.record(told(result(0.5 + number), number), ADA)
    assert costs(ledger.totals("day")) == {"2026-11-23": 500_000_000, "2026-11-24": 1_500_000_000}
    assert costs(ledger.totals("day", moments[1].timestamp())) == {"2026-11-24": 1_500_000_000}
    assert ledger.total(moments[1].timestamp()).turns == 1
    assert ledger.close(1.0)


def test_a_turn_that_is_told_again_counts_once_also_in_another_process(tmp_path: Path) -> None:
    for _ in range(3):
        ledger = Ledger(tmp_path / "ledger")
        for _ in range(2):
            ledger.record(told(result(0.25), 1), ADA)
        assert ledger.close(1.0)
    assert Ledger(tmp_path / "ledger").total().nano_usd == 250_000_000


def test_turns_of_equal_number_in_two_runs_of_a_session_are_two(tmp_path: Path) -> None:
    ledger = noted(tmp_path / "ledger", (ADA, result(0.25, turn=1)), (ADA, result(0.25, turn=1)))
    assert ledger.total().turns == 2


@given(st.lists(st.integers(min_value=0, max_value=10**12), min_size=1, max_size=30))
def test_sums_are_exact_to_the_billionth(amounts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = noted(Path(folder) / "ledger", *[(ADA, result(nano / 1e9)) for nano in amounts])
        for by in BY:
            assert sum(total.nano_usd for total in ledger.totals(by)) == sum(amounts)


USAGE = st.dictionaries(
    st.text(max_size=5), st.fixed_dictionaries({"costUSD": st.floats(allow_nan=False)}), max_size=30
)


@given(st.floats(min_value=0, max_value=MAX_COST_USD), USAGE)
def test_whatever_the_models_are_told_to_cost_their_parts_add_up_to_the_turn(
    cost: float, used: dict[str, dict[str, float]]
) -> None:
    turn = turn_of(result(cost, turn_model_usage=used), "m")
    assert sum(part.nano for part in turn.parts) == turn.nano == round(cost * 1e9)
    assert all(part.nano >= 0 for part in turn.parts)
    assert len({part.model for part in turn.parts}) == len(turn.parts)


def split(cost: float, **of_model: float) -> Turn:
    return turn_of(result(cost, turn_model_usage={name: {"costUSD": usd} for name, usd in of_model.items()}), "main")


def test_what_rounding_left_over_goes_to_the_dearest_model() -> None:
    turn = split(1.000000001, a=0.9, b=0.1)
    assert ({part.model: part.nano for part in turn.parts}, turn.agrees) == ({"a": 900_000_001, "b": 100_000_000}, True)


def test_what_no_model_accounts_for_is_the_sessions_models() -> None:
    turn = split(1.0, a=0.25)
    assert ({part.model: part.nano for part in turn.parts}, turn.agrees) == (
        {"a": 250_000_000, "main": 750_000_000},
        False,
    )


def test_models_that_cost_more_than_the_turn_are_not_believed() -> None:
    turn = split(1.0, a=2.0)
    assert ({part.model: part.nano for part in turn.parts}, turn.agrees) == ({"a": 0, "main": 10**9}, False)


# -- several at once ------------------------------------------------------------------------------------


def write_many(path: str, process: int, turns: int) -> None:
    ledger = Ledger(Path(path))
    who = Who(session_id=f"s-{process}", user_id=f"u-{process}")
    for number in range(turns):
        ledger.record(told(result(0.01), number), who)
    assert ledger.close(WAIT_SECONDS)


def test_several_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_many, args=(str(tmp_path / "ledger"), n, 50)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(WAIT_SECONDS)
    assert [process.exitcode for process in processes] == [0] * 4
    assert costs(Ledger(tmp_path / "ledger").totals("user")) == {f"u-{number}": 500_000_000 for number in range(4)}


WRITER = """
import sys
from pathlib import Path
from host_client.telemetry import Who
from host_client.telemetry.ledger import Ledger
from tests.telemetry.test_ledger import result, told

ledger = Ledger(Path(sys.argv[1]))
for number in range(100_000):
    ledger.record(told(result(0.01), number), Who(session_id="s", user_id="ada"))
    print(number, flush=True)
"""


def test_a_host_that_is_killed_leaves_every_turn_that_it_wrote(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "ledger")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2]) as process:
        assert process.stdout is not None
        written = [process.stdout.readline() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        written += process.stdout.read().split(b"\n")
    turns = Ledger(tmp_path / "ledger").total().turns
    assert turns >= len([line for line in written if line.strip()])


# -- files that fail ------------------------------------------------------------------------------------


def in_the_way(path: Path) -> None:
    path.mkdir()


def corrupt(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def torn(path: Path) -> None:
    noted(path, *[(ADA, result(turn=number)) for number in range(200)])
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def of_another(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")
    connection.close()


def of_a_newer_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


@pytest.mark.parametrize("spoil", [in_the_way, corrupt, torn, of_another, of_a_newer_version])
def test_a_file_that_cannot_be_written_is_told_once_and_counted(
    spoil: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger"
    spoil(path)
    ledger = Ledger(path)
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            ledger.record(told(result(), 1000 + number), ADA)
        assert not ledger.close(0.2)
    assert ledger.lost == 5
    assert len(caplog.records) == 2  # that it waits, that it is lost
    assert all(str(path) in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("spoil", [in_the_way, corrupt, of_another, of_a_newer_version])
def test_a_file_that_cannot_be_read_is_one_clear_error(spoil: Any, tmp_path: Path) -> None:
    spoil(tmp_path / "ledger")
    with pytest.raises(LedgerError, match="ledger"):
        Ledger(tmp_path / "ledger").totals("user")


def test_what_waited_is_written_when_the_file_can_be(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    in_the_way(path)
    ledger = Ledger(path)
    for number in range(5):
        ledger.record(told(result(0.01), number), ADA)
    path.rmdir()
    assert ledger.close(WAIT_SECONDS)
    assert ledger.total().nano_usd == 50_000_000


def test_a_ledger_that_another_process_holds_is_waited_for_within_the_time_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host_client.telemetry.ledger.BUSY_SECONDS", 0.05)
    path = tmp_path / "ledger"
    noted(path, (ADA, result()))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    ledger = Ledger(path)
    ledger.record(told(result(), 1), ADA)
    assert not ledger.close(0.3)
    holder.close()
    assert ledger.lost == 1


def test_a_cost_that_is_none_is_not_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for number, cost in enumerate((-1.0, 1e300, 0.5)):
        ledger.record(told(result(cost), number), ADA)
    assert not ledger.close(1.0)
    assert (ledger.lost, ledger.total().nano_usd) == (2, 500_000_000)


def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "sandspan" / "ledger"
    ledger = Ledger(path)
    ledger.record(told(result(), 1), ADA)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("ledger", "ledger-wal", "ledger-shm"), 0o600)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert ledger.close(1.0)


def test_reading_makes_no_file(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "ledger").totals("user") == []
    assert os.listdir(tmp_path) == []

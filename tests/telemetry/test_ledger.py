"""The ledger records every turn once, sums exactly, accepts several writers, and tolerates failing files."""

from __future__ import annotations

import base64
import logging
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner._resource import resource
from agent_runner.contract import otlp
from agent_runner.contract import protocol as p
from agent_runner.contract.spans import Span
from host_client.telemetry import Telemetry, Who
from host_client.telemetry.batch import Batch, EndedSpan
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.costs import _ledger_file as ledger_file
from host_client.telemetry.costs.ledger import Ledger, LedgerError
from host_client.telemetry.costs.report import BY, Selection, Total, add_up
from host_client.telemetry.relay.decoding import decode
from host_client.telemetry.turns import MAX_COST_USD, MAX_MODELS, UNKNOWN, TurnCost, request_of, turn_of
from tests.support.metrics import event, result
from tests.support.tables import ROOT

ADA = Who(session_id="s-1", user_id="ada", tenant_id="acme", tier="pro")
BOB = Who(session_id="s-2", user_id="bob", tenant_id="acme")
NOBODY = Who(session_id="s-3")
TRACE = "1" * 32
WAIT_SECONDS = 60.0


def span_id(number: int) -> str:
    return f"{number:016x}"


def told(data: p.ResultData, number: int) -> p.Result:
    """Return the result of a turn whose span has this number."""
    ended = event(data, span_id(number))
    assert isinstance(ended, p.Result)
    return ended


def rows_of(ledger: Ledger, by: str, since: float = 0.0) -> list[Total]:
    return add_up([ledger.path], [by], Selection(since))[0]


def sum_of(ledger: Ledger, since: float = 0.0) -> Total:
    return add_up([ledger.path], [], Selection(since))[1]


def costs(rows: Sequence[Total]) -> dict[str | None, int]:
    return {row.keys[0]: row.nano_usd for row in rows}


def noted(path: Path, *turns: tuple[Who, p.ResultData]) -> Ledger:
    """Return a closed ledger with the given turns, each with a span of its own."""
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
    assert rows_of(ledger, "user") == [
        Total(("bob",), 1, 500_000_000, 3, 4, 0, 0),
        Total(("ada",), 1, 40_000_000, 7, 0, 9, 0),
        Total((None,), 1, 1_000_000, 0, 0, 0, 0),
    ]
    assert costs(rows_of(ledger, "tenant")) == {"acme": 540_000_000, None: 1_000_000}
    assert costs(rows_of(ledger, "model")) == {"unknown": 501_000_000, "dear": 30_000_000, "cheap": 10_000_000}
    assert [total.turns for total in rows_of(ledger, "model")] == [2, 1, 1]
    assert sum_of(ledger) == Total((), 3, 541_000_000, 10, 4, 9, 0)


def test_days_are_those_of_utc_by_the_hosts_clock(tmp_path: Path) -> None:
    moments = [datetime(2026, 11, 23, 23, 59, 59, tzinfo=UTC), datetime(2026, 11, 24, tzinfo=UTC)]
    clock = iter([moment.timestamp() for moment in moments])
    ledger = Ledger(tmp_path / "ledger", clock=lambda: next(clock))
    for number in range(2):
        ledger.record(told(result(0.5 + number), number), ADA)
    assert costs(rows_of(ledger, "day")) == {"2026-11-23": 500_000_000, "2026-11-24": 1_500_000_000}
    assert costs(rows_of(ledger, "day", moments[1].timestamp())) == {"2026-11-24": 1_500_000_000}
    assert sum_of(ledger, moments[1].timestamp()).turns == 1
    assert ledger.close(1.0)


def test_a_turn_that_is_told_again_counts_once_also_in_another_process(tmp_path: Path) -> None:
    for _ in range(3):
        ledger = Ledger(tmp_path / "ledger")
        for _ in range(2):
            ledger.record(told(result(0.25), 1), ADA)
        assert ledger.close(1.0)
    assert sum_of(Ledger(tmp_path / "ledger")).nano_usd == 250_000_000


def test_turns_of_equal_number_in_two_runs_of_a_session_are_two(tmp_path: Path) -> None:
    ledger = noted(tmp_path / "ledger", (ADA, result(0.25, turn=1)), (ADA, result(0.25, turn=1)))
    assert sum_of(ledger).turns == 2


@given(st.lists(st.integers(min_value=0, max_value=10**12), min_size=1, max_size=30))
def test_sums_are_exact_to_the_billionth(amounts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ledger = noted(Path(folder) / "ledger", *[(ADA, result(nano / 1e9)) for nano in amounts])
        for by in BY:
            assert sum(total.nano_usd for total in rows_of(ledger, by)) == sum(amounts)


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


def split(cost: float, **of_model: float) -> TurnCost:
    return turn_of(result(cost, turn_model_usage={name: {"costUSD": usd} for name, usd in of_model.items()}), "main")


def test_what_rounding_left_over_goes_to_the_dearest_model() -> None:
    turn = split(1.000000001, a=0.9, b=0.1)
    assert {part.model: part.nano for part in turn.parts} == {"a": 900_000_001, "b": 100_000_000}


def test_what_no_model_accounts_for_is_the_sessions_models() -> None:
    turn = split(1.0, a=0.25)
    assert {part.model: part.nano for part in turn.parts} == {"a": 250_000_000, "main": 750_000_000}


def test_models_that_cost_more_than_the_turn_are_not_believed() -> None:
    turn = split(1.0, a=2.0)
    assert {part.model: part.nano for part in turn.parts} == {"a": 0, "main": 10**9}


def test_forged_costs_overflow_no_sum(tmp_path: Path) -> None:
    # The sum exceeds 2**63 - 1 billionths, at which SQLite's own sum fails.
    count = 93_000
    path = tmp_path / "ledger"
    noted(path, (ADA, result(MAX_COST_USD)), (BOB, result(0.000000001)))
    with sqlite3.connect(path) as connection:
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO turns"
            " SELECT i + 10, ended_at, session, 'x' || i, trace, turn, user, tenant, tier, error_type, nano_usd,"
            " 0, NULL FROM n, turns WHERE id = 1",
            (count - 1,),
        )
        connection.execute("INSERT INTO parts SELECT id, 'm', nano_usd, 1, 1, 1, 1 FROM turns WHERE id > 10")
    connection.close()
    forged = count * round(MAX_COST_USD * 1e9)
    assert forged > 2**63
    assert costs(rows_of(Ledger(path), "user")) == {"ada": forged, "bob": 1}
    assert sum_of(Ledger(path)).nano_usd == forged + 1


# -- turns without a result -----------------------------------------------------------------------------

OPUS: Mapping[str, Any] = {"gen_ai.response.model": "claude-opus-4-5", "gen_ai.usage.input_tokens": 1000}
OPUS_NANO = 1000 * 5 * 1000
"""Price of the request in billionths of a dollar, at five dollars per million tokens."""


def chat(parent: int, about: Mapping[str, Any] = OPUS, session: str = ADA.session_id) -> EndedSpan:
    """Return the ended span of a model request below the span with this number."""
    attributes = {"gen_ai.operation.name": "chat", "session.id": session, **about}
    return EndedSpan("chat", attributes, f"{parent:016x}", 0, 0)


def requests_of(turn: int) -> Batch:
    """Return a batch with the span of a turn's only model request, as a sandbox relays it."""
    span = Span("chat", TRACE, span_id(turn + 100), span_id(turn), 1, end=2)
    span.attributes = {"gen_ai.operation.name": "chat", **OPUS}
    body = base64.b64encode(otlp.encode([span], resource("tests", {}))).decode()
    request = decode(body, trace_ids=frozenset({TRACE}), common={"session.id": ADA.session_id})
    return Batch(request.SerializeToString(), 1)


def begun(number: int, parent: int | None = None) -> p.AnyEvent:
    """Return the start of a turn, or, with a parent, the start of a tool call."""
    data = p.TurnStartData(turn=1, prompt_size=1) if parent is None else p.ToolUseData(id="t", name="Agent", input={})
    above = span_id(parent) if parent is not None else None
    return p.event_of(data, seq=1, ts=1.0, trace_id=TRACE, span_id=span_id(number), parent_span_id=above)


def killed(path: Path) -> Ledger:
    """Return the ledger of a session whose only turn has two model requests, one in a subagent, and no result."""
    ledger, calls = Ledger(path), ToolCalls()
    ledger.begin(ADA, calls)
    ledger.observe(begun(7), ADA)
    calls.observe(begun(8, parent=7))
    for parent in (7, 8, 99):  # no turn or call has span 99
        ledger.observe_span(chat(parent))
    ledger.end(ADA)
    return ledger


def test_a_turn_that_never_told_its_cost_is_estimated_when_its_session_ends(tmp_path: Path) -> None:
    ledger = killed(tmp_path / "ledger")
    assert sum_of(ledger) == Total((), 1, 2 * OPUS_NANO, 2000, 0, 0, 0, 1, 2 * OPUS_NANO)
    assert costs(rows_of(ledger, "model")) == {"claude-opus-4-5": 2 * OPUS_NANO}
    assert costs(rows_of(ledger, "user")) == {"ada": 2 * OPUS_NANO}
    ledger.end(ADA)
    assert ledger.close(1.0)
    assert sum_of(ledger).turns == 1


def test_a_result_that_comes_later_takes_the_place_of_the_estimate_and_nothing_else_does(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    assert killed(path).close(1.0)
    assert killed(path).close(1.0)  # as another process that replays the journal
    assert sum_of(Ledger(path)).nano_usd == 2 * OPUS_NANO
    noted_later = Ledger(path)
    for cost in (0.5, 0.7):
        noted_later.record(told(result(cost), 7), ADA)
    assert noted_later.close(1.0)
    assert killed(path).close(1.0)
    assert sum_of(Ledger(path)) == Total((), 1, 500_000_000, 0, 0, 0, 0)


def test_a_lost_turn_with_an_estimate_and_a_result_is_reported_as_one(tmp_path: Path) -> None:
    ledger, reported = Ledger(tmp_path), list[tuple[str, int]]()  # a directory, which cannot be written
    ledger.report_loss = lambda reason, turns: reported.append((reason, turns))
    ledger.observe(begun(7), ADA)
    ledger.observe_span(chat(7))
    ledger.observe(told(result(0.25), 7), ADA)
    assert not ledger.flush(0.01)
    assert not ledger.close(0.1)
    assert reported == [("turn: not in the ledger", ledger.lost)] == [("turn: not in the ledger", 1)]


def test_what_an_unfinished_turn_has_spent_is_in_the_file_before_it_ends(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.observe(begun(7), ADA)
    for requests in (1, 2):
        ledger.observe_span(chat(7))
        # A second ledger reads the file, as a killed process would leave it.
        total = sum_of(Ledger(tmp_path / "ledger"))
        assert (total.estimated_turns, total.estimated_nano_usd) == (1, requests * OPUS_NANO)
    ledger.observe(told(result(0.25), 7), ADA)
    ledger.end(ADA)
    assert sum_of(ledger) == Total((), 1, 250_000_000, 0, 0, 0, 0)
    assert ledger.close(1.0)


def test_a_higher_estimate_takes_the_place_of_a_lower_one(tmp_path: Path) -> None:
    for requests in (2, 3, 1):
        ledger = Ledger(tmp_path / "ledger")
        ledger.observe(begun(7), ADA)
        for _ in range(requests):
            ledger.observe_span(chat(7))
        ledger.end(ADA)
        assert ledger.close(1.0)
    assert sum_of(Ledger(tmp_path / "ledger")) == Total((), 1, 3 * OPUS_NANO, 3000, 0, 0, 0, 1, 3 * OPUS_NANO)


def test_what_a_killed_host_did_not_write_is_written_by_the_one_that_took_over_and_what_it_did_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger"
    assert sum_of(noted(path, (ADA, result(0.25)))).turns == 1  # its turn has span 0
    ledger = Ledger(path)
    telemetry = Telemetry(observers=[ledger])
    for each in (told(result(0.25), 0), told(result(0.5), 1), begun(7)):
        telemetry.observe(each, ADA, replayed=True)
    telemetry.export(requests_of(7), replayed=True)
    telemetry.end((TRACE,), ADA)
    assert telemetry.shutdown(WAIT_SECONDS)
    assert sum_of(ledger) == Total((), 3, 750_000_000 + OPUS_NANO, 1000, 0, 0, 0, 1, OPUS_NANO)


def test_a_turn_with_a_result_or_without_a_request_is_not_estimated(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.observe(begun(7), ADA)
    ledger.observe_span(chat(7))
    ledger.observe(told(result(0.25), 7), ADA)
    ledger.observe_span(chat(7))
    ledger.observe(begun(8), ADA)
    ledger.observe_span(chat(8, session="another"))
    ledger.end(ADA)
    assert sum_of(ledger) == Total((), 1, 250_000_000, 0, 0, 0, 0)
    assert ledger.close(1.0)


def test_a_request_without_a_list_price_is_estimated_by_its_tokens_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.observe(begun(7), ADA)
    for number in range(100):
        about = {"gen_ai.request.model": f"m-{number}", "gen_ai.usage.output_tokens": 3}
        ledger.observe_span(chat(7, about))
    ledger.observe_span(chat(7, {**OPUS, "gen_ai.usage.cache_read.input_tokens": 10**18}))  # an impossible number
    ledger.end(ADA)
    assert (sum_of(ledger).nano_usd, sum_of(ledger).output_tokens) == (OPUS_NANO, 300)
    assert len(rows_of(ledger, "model")) == MAX_MODELS + 1
    assert ledger.close(1.0)


def test_an_estimate_is_of_all_requests_of_its_turn_however_many(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.observe(begun(6), ADA)
    ledger.observe_span(chat(6))
    ledger.observe(told(result(0.25), 6), ADA)
    ledger.observe(begun(7), ADA)
    requests = 200
    for _ in range(requests):
        ledger.observe_span(chat(7))
    ledger.end(ADA)
    assert sum_of(ledger).estimated_nano_usd == requests * OPUS_NANO
    assert ledger.close(1.0)


def test_an_estimate_that_no_turn_costs_is_not_believed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.observe(begun(7), ADA)
    for _ in range(3):
        ledger.observe_span(chat(7, {**OPUS, "gen_ai.usage.output_tokens": 3 * 10**9}))
    ledger.end(ADA)
    assert not ledger.close(1.0)
    assert (ledger.lost, sum_of(ledger).turns) == (1, 0)


# -- versions -------------------------------------------------------------------------------------------

VERSION_1 = """
CREATE TABLE turns (id INTEGER PRIMARY KEY, ended_at REAL NOT NULL, session TEXT NOT NULL, span TEXT NOT NULL,
    trace TEXT NOT NULL, turn INTEGER NOT NULL, user TEXT, tenant TEXT, tier TEXT, error_type TEXT,
    nano_usd INTEGER NOT NULL, UNIQUE (session, trace, span));
CREATE INDEX turns_ended_at ON turns (ended_at);
CREATE TABLE parts (turn_id INTEGER NOT NULL REFERENCES turns (id), model TEXT NOT NULL, nano_usd INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, cache_read_tokens INTEGER NOT NULL,
    cache_creation_tokens INTEGER NOT NULL, PRIMARY KEY (turn_id, model)) WITHOUT ROWID;
INSERT INTO turns VALUES (1, 1.0, 's-1', '0000000000000001', '11111111111111111111111111111111', 1, 'ada', 'acme',
    NULL, NULL, 250000000);
INSERT INTO parts VALUES (1, 'm', 250000000, 1, 2, 3, 4);
PRAGMA user_version = 1;
"""


def of_version_1(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(VERSION_1)
    connection.close()


def test_a_file_of_version_1_is_read_as_it_is_and_upgraded_when_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    of_version_1(path)
    before = Total(("ada",), 1, 250_000_000, 1, 2, 3, 4)
    assert rows_of(Ledger(path), "user") == [before]
    ledger = Ledger(path)
    ledger.record(told(result(0.5), 1), ADA)  # already recorded in version 1
    ledger.record(told(result(0.5), 2), BOB)
    assert ledger.close(1.0)
    assert rows_of(Ledger(path), "user") == [Total(("bob",), 1, 500_000_000, 0, 0, 0, 0), before]
    assert killed(path).close(1.0)
    assert sum_of(Ledger(path)).estimated_turns == 1


def test_a_host_of_version_1_that_has_the_file_open_goes_on_writing(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    of_version_1(path)
    older = sqlite3.connect(path, isolation_level=None)
    assert older.execute("SELECT COUNT(*) FROM turns").fetchone() == (1,)
    noted(path, (BOB, result(0.5)))
    older.execute("INSERT INTO turns (ended_at, session, span, trace, turn, nano_usd) VALUES (1, 's', 'x', 't', 1, 7)")
    older.execute("INSERT INTO parts VALUES (last_insert_rowid(), 'm', 7, 0, 0, 0, 0)")
    older.close()
    assert sum_of(Ledger(path)).nano_usd == 750_000_007


# -- several writers ------------------------------------------------------------------------------------


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
    assert costs(rows_of(Ledger(tmp_path / "ledger"), "user")) == {f"u-{number}": 500_000_000 for number in range(4)}


WRITER = """
import sys
from pathlib import Path
from host_client.telemetry import Who
from host_client.telemetry.costs.ledger import Ledger
from tests.telemetry.test_ledger import result, told

ledger = Ledger(Path(sys.argv[1]))
for number in range(100_000):
    ledger.record(told(result(0.01), number), Who(session_id="s", user_id="ada"))
    print(number, flush=True)
"""


def test_a_host_that_is_killed_leaves_every_turn_that_it_wrote(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "ledger")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        written = [process.stdout.readline() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        written += process.stdout.read().split(b"\n")
    turns = sum_of(Ledger(tmp_path / "ledger")).turns
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
    assert len(caplog.records) == 2  # the costs wait in memory; the costs are lost
    assert all(str(path) in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("spoil", [in_the_way, corrupt, of_another, of_a_newer_version])
def test_a_file_that_cannot_be_read_is_one_clear_error(spoil: Any, tmp_path: Path) -> None:
    spoil(tmp_path / "ledger")
    with pytest.raises(LedgerError, match="ledger"):
        rows_of(Ledger(tmp_path / "ledger"), "user")


def test_what_waited_is_written_when_the_file_can_be(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    in_the_way(path)
    ledger = Ledger(path)
    for number in range(5):
        ledger.record(told(result(0.01), number), ADA)
    path.rmdir()
    assert ledger.close(WAIT_SECONDS)
    assert sum_of(ledger).nano_usd == 50_000_000


@pytest.fixture
def held(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Hold an exclusive lock on the ledger, as another process could; yield the connection."""
    noted(tmp_path / "ledger", (ADA, result(0.01)))
    holder = sqlite3.connect(tmp_path / "ledger", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    yield holder
    holder.close()


def test_a_ledger_that_another_process_holds_is_waited_for_within_the_time_given(
    tmp_path: Path, held: sqlite3.Connection
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.record(told(result(), 1), ADA)
    assert not ledger.close(0.3)
    assert ledger.lost == 1


def test_a_report_neither_waits_for_writers_nor_blocks_them(
    tmp_path: Path, held: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host_client.telemetry.costs.report.BUSY_SECONDS", 0.0)
    assert sum_of(Ledger(tmp_path / "ledger")).turns == 1


def test_that_another_process_writes_for_a_moment_is_no_warning(
    tmp_path: Path, held: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.record(told(result(0.01), 1), ADA)
    held.execute("ROLLBACK")
    assert ledger.close(WAIT_SECONDS)
    assert (sum_of(ledger).turns, caplog.records) == (2, [])


def test_a_ledger_that_another_process_holds_holds_no_spans_up_and_is_written_later(
    tmp_path: Path, held: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("host_client.telemetry.costs.report.BUSY_SECONDS", 2 * WAIT_SECONDS)
    written = threading.Event()
    monkeypatch.setattr("host_client.telemetry.costs.ledger.write", then(written.set, ledger_file.write))
    ledger, observed = Ledger(tmp_path / "ledger"), threading.Semaphore(0)
    monkeypatch.setattr(ledger, "observe", then(observed.release, ledger.observe))
    telemetry = Telemetry(observers=[ledger])
    for number in range(1, 4):
        telemetry.observe(told(result(0.01), number), ADA)
        assert observed.acquire(timeout=WAIT_SECONDS), "the pipeline waits for a lock"
    assert not telemetry.flush(0.01)
    assert not written.is_set()
    held.execute("ROLLBACK")
    assert written.wait(WAIT_SECONDS)
    assert sum_of(ledger).nano_usd == 40_000_000
    telemetry.observe(told(result(0.01), 4), ADA)
    assert telemetry.shutdown(WAIT_SECONDS)
    assert (sum_of(ledger).nano_usd, ledger.lost) == (50_000_000, 0)


def then(tell: Callable[[], object], call: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls ``call`` and then ``tell``."""

    def both(*args: Any, **options: Any) -> None:
        call(*args, **options)
        tell()

    return both


class Disk:
    """Limits each SQLite file to a number of pages, beyond which its disk counts as full."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._connect = sqlite3.connect

    def connect(self, *args: Any, **options: Any) -> sqlite3.Connection:
        connection = self._connect(*args, **options)
        connection.execute(f"PRAGMA max_page_count = {self.pages}")
        return connection


def test_on_a_full_disk_what_was_written_stays_and_the_rest_waits_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Disk(pages=12)
    monkeypatch.setattr("sqlite3.connect", disk.connect)
    ledger = Ledger(tmp_path / "ledger")
    for number in range(500):
        ledger.record(told(result(0.01), number), ADA)
    before = sum_of(ledger).turns
    assert 0 < before < 500
    assert [record.getMessage() for record in caplog.records] == [
        f"costs cannot be written to {tmp_path / 'ledger'}, and wait in memory: database or disk is full"
    ]
    disk.pages = 10_000
    assert ledger.close(WAIT_SECONDS)
    assert (sum_of(ledger).turns, sum_of(ledger).nano_usd) == (500, 5_000_000_000)


def test_on_a_disk_that_stays_full_what_is_lost_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqlite3.connect", Disk(pages=12).connect)
    ledger = Ledger(tmp_path / "ledger")
    for number in range(500):
        ledger.record(told(result(0.01), number), ADA)
    assert not ledger.close(0.2)
    total = sum_of(ledger)
    assert (total.turns + ledger.lost, total.nano_usd) == (500, total.turns * 10_000_000)


NO_LARGER = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
from host_client.telemetry.costs.ledger import Ledger
from tests.telemetry.test_ledger import ADA, result, told

ledger = Ledger(Path(sys.argv[1]))
for number in range(200):
    ledger.record(told(result(0.01), number), ADA)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert ledger.close(60.0), ledger.lost
"""


def test_a_file_that_may_grow_no_further_is_written_when_it_may(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_LARGER, str(tmp_path / "ledger")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=WAIT_SECONDS, check=False, text=True)
    assert (done.returncode, done.stderr.count("costs cannot be written")) == (0, 1), done.stderr
    assert sum_of(Ledger(tmp_path / "ledger")).turns == 200


def test_a_cost_that_is_none_is_not_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    for number, cost in enumerate((-1.0, 1e300, 0.5)):
        ledger.record(told(result(cost), number), ADA)
    assert not ledger.close(1.0)
    assert (ledger.lost, sum_of(ledger).nano_usd) == (2, 500_000_000)


@pytest.mark.parametrize("turn", [2**64 - 1, -(2**63)])
def test_a_forged_number_of_a_turn_holds_up_no_other(turn: int, tmp_path: Path) -> None:
    ledger = noted(tmp_path / "ledger", (ADA, result(0.5, turn=turn)), (BOB, result(0.25)))
    assert costs(rows_of(ledger, "user")) == {"ada": 500_000_000, "bob": 250_000_000}


def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "sandspan" / "ledger"
    ledger = Ledger(path)
    ledger.record(told(result(), 1), ADA)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("ledger", "ledger-wal", "ledger-shm"), 0o600)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert ledger.close(1.0)


def test_reading_makes_no_file(tmp_path: Path) -> None:
    assert rows_of(Ledger(tmp_path / "ledger"), "user") == []
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("said", "kept"), [("m" * 100_000, "m" * 128), (("m" * 1000,) * 128, UNKNOWN), ("", UNKNOWN), (7, UNKNOWN)]
)
def test_odd_attributes_of_a_request_are_not_believed(said: object, kept: str) -> None:
    odd = {"gen_ai.usage.input_tokens": ("x" * 1000,) * 128, "gen_ai.usage.output_tokens": 3}
    model, usage = request_of({"gen_ai.response.model": said, **odd})
    assert (model, usage["input_tokens"], usage["output_tokens"]) == (kept, 0, 3)

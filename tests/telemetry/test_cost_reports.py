"""Reports of costs: groupings, filters, periods, several ledgers, other prices, and the forms of the output."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from agent_runner.contract import protocol as p
from host_client import AgentOptions
from host_client.cli.app import app
from host_client.client.options import who_of
from host_client.telemetry import Who
from host_client.telemetry.costs.ledger import Ledger
from host_client.telemetry.costs.report import Selection, Total, add_up
from tests.support.metrics import event, result

SONNET, HAIKU = "claude-sonnet-4-5-20250929", "claude-haiku-4-5"


def at(*moment: int) -> float:
    """Return the seconds from the epoch to a moment in UTC."""
    return datetime(*moment, tzinfo=UTC).timestamp()  # pyright: ignore[reportArgumentType] - year, month, day and hour


def who(user: str | None, tenant: str | None = None, **attributes: str) -> Who:
    return who_of(AgentOptions(user_id=user, tenant_id=tenant, attributes=attributes), f"session of {user}")


def write(path: Path, *turns: tuple[float, Who, p.ResultData]) -> Path:
    """Write a ledger with turns that ended at the given times, each with a span of its own."""
    moments = iter([moment for moment, _, _ in turns])
    ledger = Ledger(path, clock=lambda: next(moments))
    for number, (_, owner, data) in enumerate(turns):
        ended = event(data, f"{number:016x}")
        assert isinstance(ended, p.Result)
        ledger.record(ended, owner)
    assert ledger.close(1.0)
    return path


def used(**usd: float) -> p.ResultData:
    """Return the result of a turn of sonnet, haiku or both, with 1,000 tokens of each kind for each model."""
    tokens = dict.fromkeys(("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens"), 1000)
    models = {SONNET if name == "sonnet" else HAIKU: {**tokens, "costUSD": cost} for name, cost in usd.items()}
    return result(sum(usd.values()), turn_model_usage=models)


@pytest.fixture
def bill(tmp_path: Path) -> Path:
    """Return a ledger of three months."""
    return write(
        tmp_path / "ledger.sqlite",
        (at(2026, 10, 31, 23), who("ada", "acme", team="search"), used(sonnet=1.0)),
        (at(2026, 11, 1), who("ada", "acme", team="search"), used(sonnet=2.0, haiku=0.5)),
        (at(2026, 11, 30, 23), who("bob", "acme", team="café"), used(haiku=4.0)),
        (at(2026, 11, 30, 23), who("eve", "umbrella"), result(8.0, is_error=True, error_type="rate_limit")),
        (at(2026, 12, 1), who(None), used(sonnet=16.0)),
    )


def run(ledger: Path, *options: str) -> Result:
    return CliRunner(env={"SANDSPAN_LEDGER": str(ledger)}).invoke(app, ["costs", *options])


def output(ledger: Path, *options: str) -> dict[str, Any]:
    done = run(ledger, "--json", *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def usd(ledger: Path, *options: str) -> list[tuple[Any, ...]]:
    """Return the keys and the cost of each row, after a check that the rows add up to the total."""
    told = output(ledger, *options)
    keys: list[str] = [told["by"]] if isinstance(told["by"], str) else told["by"]
    assert sum(row["cost_nano_usd"] for row in told["rows"]) == told["total"]["cost_nano_usd"]
    return [(*(row[key] for key in keys), row["cost_usd"]) for row in told["rows"]]


def test_two_keys_give_a_row_for_each_pair_below_the_dearest_first_key(bill: Path) -> None:
    assert usd(bill, "--by", "tenant", "--by", "user", "--to", "2026-11-30") == [
        ("umbrella", "eve", 8.0),
        ("acme", "bob", 4.0),
        ("acme", "ada", 3.5),
    ]
    assert usd(bill, "--by", "month", "--by", "model") == [
        ("2026-10", SONNET, 1.0),
        ("2026-11", "unknown", 8.0),
        ("2026-11", HAIKU, 4.5),
        ("2026-11", SONNET, 2.0),
        ("2026-12", SONNET, 16.0),
    ]


def test_a_month_and_days_are_those_of_utc_and_the_last_day_is_included(bill: Path) -> None:
    november = [("eve", 8.0), ("bob", 4.0), ("ada", 2.5)]
    assert usd(bill, "--month", "2026-11") == november
    assert usd(bill, "--from", "2026-11-01", "--to", "2026-11-30") == november
    assert usd(bill, "--since", "2026-11-01T01:00:00+01:00", "--to", "2026-11-30T23:00:00") == [("ada", 2.5)]
    told = output(bill, "--month", "2026-11")
    assert (told["from"], told["to"]) == ("2026-11-01T00:00:00+00:00", "2026-12-01T00:00:00+00:00")
    shown = run(bill, "--month", "2026-11", "--by", "day").stdout
    assert "day (UTC)" in shown
    assert "from 2026-11-01 00:00:00 UTC\nbefore 2026-12-01 00:00:00 UTC" in shown


def test_filters_select_turns_and_an_empty_one_those_without(bill: Path) -> None:
    assert usd(bill, "--user", "ada", "--user", "bob") == [("bob", 4.0), ("ada", 3.5)]
    assert usd(bill, "--tenant", "acme", "--model", HAIKU) == [("bob", 4.0), ("ada", 0.5)]
    assert usd(bill, "--tenant", "") == [(None, 16.0)]
    assert usd(bill, "--attribute", "team=café", "--attribute", "team=search") == [("bob", 4.0), ("ada", 3.5)]
    assert usd(bill, "--attribute", "team=", "--by", "tenant") == [(None, 16.0), ("umbrella", 8.0)]
    assert usd(bill, "--by", "attribute:team") == [(None, 24.0), ("café", 4.0), ("search", 3.5)]


def test_what_failed_turns_cost_is_shown_by_error_too(bill: Path) -> None:
    total = output(bill)["total"]
    assert (total["failed_turns"], total["failed_nano_usd"]) == (1, 8_000_000_000)
    assert usd(bill, "--by", "error") == [(None, 23.5), ("rate_limit", 8.0)]
    heading, *rows = run(bill).stdout.splitlines()
    assert heading.split()[:4] == ["user", "turns", "cost", "failed"]
    assert [row.split()[:4] for row in rows if "eve" in row] == [["eve", "1", "$8.0000", "$8.0000"]]


def test_rounded_amounts_add_up_to_the_total_shown(tmp_path: Path) -> None:
    for cost, decimals in ((0.33333, 4), (33.33333, 2)):
        path = write(tmp_path / f"{cost}", *((1.0, who(user), result(cost)) for user in ("ada", "bob", "eve", "dan")))
        *rows, total = [line.split()[2] for line in run(path).stdout.splitlines()[1:] if "$" in line]
        amounts = [Decimal(amount.lstrip("$")) for amount in (*rows, total)]
        assert sum(amounts[:-1]) == amounts[-1] == round(Decimal(str(cost)) * 4, decimals)


def test_csv_has_exact_amounts_and_no_formula(tmp_path: Path) -> None:
    path = write(tmp_path / "ledger", (1.0, who('=HYPERLINK("x")', "a,b"), result(0.000000001)))
    lines = list(csv.DictReader(io.StringIO(run(path, "--csv", "--by", "tenant", "--by", "user").stdout)))
    assert [(line["tenant"], line["user"], line["cost_usd"]) for line in lines] == [
        ("a,b", """'=HYPERLINK("x")""", "0.000000001")
    ]
    assert run(path, "--csv", "--user", "nobody").stdout.startswith("user,turns,cost_usd,")


def test_names_that_look_like_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "ledger", (1.0, who("[/red]:smile:"), result(0.5)))
    assert "[/red]:smile:" in run(path).stdout


# -- several ledgers ------------------------------------------------------------------------------------


def test_a_turn_in_several_ledgers_counts_once_in_the_month_of_its_first_report(tmp_path: Path) -> None:
    """A session that was taken over is in the ledgers of both machines, whose clocks differ."""
    both = used(sonnet=1.0)
    first = write(tmp_path / "a.sqlite", (at(2026, 10, 31, 23), who("ada"), both))
    second = write(tmp_path / "b.sqlite", (at(2026, 11, 1), who("ada"), both), (at(2026, 11, 2), who("bob"), both))
    for paths in permutations([first, second]):
        assert add_up(paths, ["month"])[0] == [
            Total(("2026-10",), 1, 10**9, 1000, 1000, 1000, 1000),
            Total(("2026-11",), 1, 10**9, 1000, 1000, 1000, 1000),
        ]


def estimate(path: Path, ended_at: float, nano_usd: int) -> Path:
    """Make the ledger's only turn an estimate."""
    write(path, (ended_at, who("ada"), used(sonnet=nano_usd / 1e9)))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE turns SET estimated = 1")
    connection.close()
    return path


def test_a_report_in_one_ledger_replaces_the_estimates_in_others_also_of_another_month(tmp_path: Path) -> None:
    low = estimate(tmp_path / "low.sqlite", at(2026, 10, 31), 1_000_000)
    high = estimate(tmp_path / "high.sqlite", at(2026, 10, 31), 2_000_000)
    reported = write(tmp_path / "reported.sqlite", (at(2026, 11, 1), who("ada"), used(sonnet=0.001)))
    for paths in permutations([low, high]):
        assert add_up(paths, [])[1].estimated_nano_usd == 2_000_000
    for paths in permutations([low, high, reported]):
        assert add_up(paths, [], Selection(end=at(2026, 11, 1)))[1].turns == 0
        assert add_up(paths, [])[1] == Total((), 1, 1_000_000, 1000, 1000, 1000, 1000)


def test_ledgers_are_given_as_files_and_directories_and_older_ones_are_read_beside_newer_ones(
    bill: Path, tmp_path: Path
) -> None:
    (tmp_path / "hosts" / "a").mkdir(parents=True)
    older = write(tmp_path / "hosts" / "a" / "ledger.sqlite", (at(2026, 11, 5), who("zoe", "acme"), used(haiku=32.0)))
    with sqlite3.connect(older) as connection:
        connection.execute("ALTER TABLE turns DROP COLUMN attributes")
    connection.close()
    before = older.read_bytes()
    merged = ("--ledger", str(bill), "--ledger", str(tmp_path / "hosts"), "--ledger", str(bill))
    assert usd(bill, *merged, "--by", "tenant") == [("acme", 39.5), (None, 16.0), ("umbrella", 8.0)]
    assert usd(bill, *merged, "--by", "attribute:team")[0] == (None, 56.0)
    assert older.read_bytes() == before
    store = tmp_path / "hosts" / "store.sqlite"
    with sqlite3.connect(store) as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")
    connection.close()
    refused = run(bill, *merged)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert f"{store} is not a ledger of costs" in refused.stderr


# -- other prices ---------------------------------------------------------------------------------------

PRICES = """
[claude-sonnet-4]
input = 99
output = 99
cache_read = 99
cache_creation = 99

[claude-sonnet-4-5]
input = 2
output = 8
cache_read = 0.25
cache_creation = 2.5
"""


def test_prices_of_ones_own_apply_to_the_tokens_of_their_models_and_others_are_named(
    bill: Path, tmp_path: Path
) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    a_thousand_of_each = (2 + 8 + 0.25 + 2.5) * 1000 / 1e6
    told = output(bill, "--prices", str(prices), "--by", "model")
    assert {row["model"]: row["cost_usd"] for row in told["rows"]} == {
        SONNET: pytest.approx(3 * a_thousand_of_each, abs=1e-9),
        HAIKU: 4.5,
        "unknown": 8.0,
    }
    assert sum(row["cost_nano_usd"] for row in told["rows"]) == told["total"]["cost_nano_usd"]
    noted = run(bill, "--prices", str(prices)).stderr
    assert f"has no price for {HAIKU}, unknown" in noted
    assert run(bill, "--prices", str(prices), "--month", "2026-10").stderr == ""


def test_a_cost_without_tokens_stays_at_other_prices(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    path = write(tmp_path / "ledger", (1.0, who("ada"), result(0.5, turn_model_usage={SONNET: {"costUSD": 0.5}})))
    assert usd(path, "--prices", str(prices)) == [("ada", 0.5)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--by", "colour"], ["'colour' is not one of user, tenant,", "attribute:NAME"]),
        (["--month", "11-2026"], ["--month '11-2026'", "such as 2026-11"]),
        (["--month", "2026-11", "--to", "2026-11-03"], ["--month cannot be combined"]),
        (["--from", "2026-11-02", "--to", "2026-11-01"], ["--from 2026-11-02 is not before --to 2026-11-01"]),
        (["--to", "9999-12-31"], ["--to '9999-12-31': takes a day or time"]),
        (["--attribute", "team"], ["--attribute 'team': takes NAME=VALUE"]),
        (["--csv", "--json"], ["--csv and --json cannot be combined"]),
        (["--ledger", "{empty}"], ["the directory has no *.sqlite file"]),
        (["--prices", "{empty}/none"], ["none is not a TOML file with prices"]),
        (["--prices", "{bad}"], ["[claude] takes input, output, cache_read, cache_creation", "`output`"]),
    ],
)
def test_a_bad_option_is_one_clear_error(bill: Path, tmp_path: Path, options: Sequence[str], words: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").write_text("[claude]\ninput = 1\n")
    done = run(bill, *(option.format(empty=tmp_path / "empty", bad=tmp_path / "bad") for option in options))
    assert (done.exit_code, done.stdout) == (2, "")
    assert [word for word in words if word not in " ".join(done.stderr.split())] == []

"""The ledger's SQLite file: its tables and their versions, writing and summing up.

Functions raise `sqlite3.Error`, `OSError` and, for a file that is not a ledger of this version, `LedgerError`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from host_client.telemetry.turns import TurnCost

By = Literal["user", "tenant", "model", "day"]
BY: tuple[By, ...] = get_args(By)

VERSION = 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    id INTEGER PRIMARY KEY,
    ended_at REAL NOT NULL,
    session TEXT NOT NULL,
    span TEXT NOT NULL,
    trace TEXT NOT NULL,
    turn INTEGER NOT NULL,
    user TEXT,
    tenant TEXT,
    tier TEXT,
    error_type TEXT,
    nano_usd INTEGER NOT NULL,
    estimated INTEGER NOT NULL DEFAULT 0,
    UNIQUE (session, trace, span)
);
CREATE INDEX IF NOT EXISTS turns_ended_at ON turns (ended_at);
CREATE TABLE IF NOT EXISTS parts (
    turn_id INTEGER NOT NULL REFERENCES turns (id),
    model TEXT NOT NULL,
    nano_usd INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_tokens INTEGER NOT NULL,
    cache_creation_tokens INTEGER NOT NULL,
    PRIMARY KEY (turn_id, model)
) WITHOUT ROWID;
"""
# The default serves a host of version 1 that has the file open at the same time.
_FROM_1 = "ALTER TABLE turns ADD COLUMN estimated INTEGER NOT NULL DEFAULT 0;"

_KEYS: dict[By | None, str] = {
    "user": "turns.user",
    "tenant": "turns.tenant",
    "model": "parts.model",
    "day": "date(turns.ended_at, 'unixepoch')",
    None: "NULL",
}
_SUMMED = ("nano_usd", "input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens")
_HALF = 32

NOTHING = TurnCost(0, ())
"""The figures of an entry that removes an earlier estimate."""


class LedgerError(Exception):
    """Raised when the ledger cannot be read; the message says why and what to do."""


class LedgerEntry(NamedTuple):
    """One turn as it is stored. ``ended_at`` is in seconds since the epoch.

    ``estimated`` says that the runner has not reported the cost, so that ``figures`` are an estimate.
    """

    ended_at: float
    session: str
    span: str
    trace: str
    turn: int
    user: str | None
    tenant: str | None
    tier: str | None
    error_type: str | None
    estimated: bool
    figures: TurnCost


@dataclass(frozen=True)
class Total:
    """The sums of one user, tenant, model or day (UTC). ``key`` is None for turns that have none.

    The two ``estimated`` fields are the part of ``turns`` and of ``nano_usd`` that is estimated.
    """

    key: str | None
    turns: int
    nano_usd: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_creation_tokens: int
    estimated_turns: int = 0
    estimated_nano_usd: int = 0


def connect(path: Path, patience: float) -> sqlite3.Connection:
    """Open an existing file; ``patience`` is the number of seconds to wait for the locks of other processes."""
    # The ledger's own lock keeps threads apart.
    uri = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(uri, timeout=patience, isolation_level=None, check_same_thread=False, uri=True)


def open_to_write(path: Path, patience: float) -> sqlite3.Connection:
    """Open the file, creating it or upgrading its tables where needed; ``patience`` as in `connect`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite would create it readable for other users of the machine.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = connect(path, patience)
    try:
        if _version(connection, path) == 0:
            connection.execute("PRAGMA journal_mode = WAL")  # the file keeps this setting
        if _version(connection, path) < VERSION:
            _upgrade(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _upgrade(connection: sqlite3.Connection, path: Path) -> None:
    with _transaction(connection):
        version = _version(connection, path)  # read again: another process may have upgraded it meanwhile
        script = {0: _SCHEMA, 1: _FROM_1}.get(version, "")
        for statement in filter(str.strip, script.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """Return the version of the file's tables, 0 for an empty one."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise LedgerError(f"{path} was written by a newer version of sandspan: upgrade, or set SANDSPAN_LEDGER")
    (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master WHERE name != 'turns'").fetchone()
    if version == 0 and tables:
        raise LedgerError(f"{path} is not a ledger of costs: set SANDSPAN_LEDGER to another file")
    return version


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back already
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def write(connection: sqlite3.Connection, entries: Iterable[LedgerEntry]) -> None:
    """Write turns in one transaction; a turn that is in the file already is not written twice."""
    # Each model request brings an estimate, and a disk takes 10 ms to confirm a transaction. Without confirmation
    # estimates survive the end of this process, but perhaps not a loss of power.
    entries = list(entries)
    synchronous = "NORMAL" if all(entry.estimated for entry in entries) else "FULL"
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    with _transaction(connection):
        for entry in entries:
            _insert(connection, entry)


_ESTIMATE = "FROM turns WHERE session = ? AND span = ? AND trace = ? AND estimated"


def _insert(connection: sqlite3.Connection, entry: LedgerEntry) -> None:
    figures = entry.figures
    if figures == NOTHING:
        connection.execute(f"DELETE FROM parts WHERE turn_id IN (SELECT id {_ESTIMATE})", entry[1:4])  # noqa: S608 - a constant
        connection.execute(f"DELETE {_ESTIMATE}", entry[1:4])
        return
    # A reported cost replaces an estimate; a higher estimate replaces a lower one, because it includes more requests.
    written = connection.execute(
        "INSERT INTO turns (ended_at, session, span, trace, turn, user, tenant, tier, error_type, estimated, nano_usd)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (session, trace, span) DO UPDATE SET"
        " ended_at = excluded.ended_at, error_type = excluded.error_type, estimated = excluded.estimated,"
        " nano_usd = excluded.nano_usd"
        " WHERE estimated AND (NOT excluded.estimated OR excluded.nano_usd >= nano_usd) RETURNING id",
        (*entry[:-1], figures.nano),
    ).fetchall()
    for (turn_id,) in written:
        connection.execute("DELETE FROM parts WHERE turn_id = ?", (turn_id,))
        connection.executemany(
            "INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)", [(turn_id, *part) for part in figures.parts]
        )


def sums(path: Path, by: By | None, since: float | None, patience: float) -> list[Total]:
    """Return the sums by highest cost, days in their order; ``since`` is in seconds since the epoch."""
    with contextlib.closing(connect(path, patience)) as connection:
        version = _version(connection, path)
        if version == 0:
            return []
        estimated = "turns.estimated" if version > 1 else "0"  # reading does not upgrade the file
        columns = [*(f"parts.{column}" for column in _SUMMED), f"parts.nano_usd * {estimated}"]
        query = f"""
            SELECT {_KEYS[by]}, COUNT(DISTINCT turns.id), COUNT(DISTINCT CASE WHEN {estimated} THEN turns.id END),
                {", ".join(f"SUM({column} >> {_HALF}), SUM({column} & {2**_HALF - 1})" for column in columns)}
            FROM turns JOIN parts ON parts.turn_id = turns.id WHERE turns.ended_at >= ? GROUP BY 1 ORDER BY 1
        """  # noqa: S608 - of constants
        totals = [_total(row) for row in connection.execute(query, (since or 0.0,))]
    return totals if by == "day" else sorted(totals, key=lambda total: -total.nano_usd)


def _total(row: tuple[str | None, *tuple[int, ...]]) -> Total:
    """Join the sums of upper and lower halves: SQLite's sums end at 2**63, which forged turns could exceed."""
    key, turns, estimated, *halves = row
    *summed, estimated_nano = [(high << _HALF) + low for high, low in zip(halves[::2], halves[1::2], strict=True)]
    nano, *tokens = summed
    return Total(key, turns, nano, tokens[0], tokens[1], tokens[2], tokens[3], estimated, estimated_nano)

"""The ledger's SQLite file: its tables and their versions, writing, and reading several files as one.

Functions raise `sqlite3.Error`, `OSError` and, for a file that is not a ledger of this version, `LedgerError`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from host_client.telemetry.turns import TurnCost

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
    attributes TEXT,
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
# Columns that older files lack. Hosts that do not know them go on reading and writing a file that has them, so the
# version, at which such hosts would refuse the file, stays. ``attributes`` is a JSON object of texts.
_ADDED = {"estimated": "INTEGER NOT NULL DEFAULT 0", "attributes": "TEXT"}

SUMMED = ("nano_usd", "input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens")
"""The columns of ``parts`` that are added up."""

NOTHING = TurnCost(0, ())
"""The figures of an entry that removes an earlier estimate."""


class LedgerError(Exception):
    """Raised when the ledger cannot be read; the message says why and what to do."""


class LedgerEntry(NamedTuple):
    """One turn as it is stored. ``ended_at`` is in seconds since the epoch.

    ``attributes`` are the session's own, as a JSON object. ``estimated`` says that the runner has not reported the
    cost, so that ``figures`` are an estimate.
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
    attributes: str | None
    estimated: bool
    figures: TurnCost


def connect(path: Path, patience: float) -> sqlite3.Connection:
    """Open an existing file; ``patience`` is the number of seconds to wait for the locks of other processes."""
    # The ledger's own lock keeps threads apart.
    return sqlite3.connect(_uri(path), timeout=patience, isolation_level=None, check_same_thread=False, uri=True)


def _uri(path: Path) -> str:
    return f"{path.absolute().as_uri()}?mode=rw"


def open_to_write(path: Path, patience: float) -> sqlite3.Connection:
    """Open the file, creating it or upgrading its tables where needed; ``patience`` as in `connect`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite would create it readable for other users of the machine.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = connect(path, patience)
    try:
        if _version(connection, path) == 0:
            connection.execute("PRAGMA journal_mode = WAL")  # the file keeps this setting
        if _version(connection, path) < VERSION or not _columns(connection) >= _ADDED.keys():
            _upgrade(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _upgrade(connection: sqlite3.Connection, path: Path) -> None:
    with _transaction(connection):
        if _version(connection, path) == 0:  # read again: another process may have upgraded it meanwhile
            _create_tables(connection)
        for name in _ADDED.keys() - _columns(connection):
            connection.execute(f"ALTER TABLE turns ADD COLUMN {name} {_ADDED[name]}")
        connection.execute(f"PRAGMA user_version = {VERSION}")


def _create_tables(connection: sqlite3.Connection) -> None:
    for statement in filter(str.strip, _SCHEMA.split(";")):
        connection.execute(statement)


def _columns(connection: sqlite3.Connection, schema: str = "main") -> set[str]:
    """Return the names of the columns of ``turns``."""
    return {row[1] for row in connection.execute(f"PRAGMA {schema}.table_info(turns)")}


def _version(connection: sqlite3.Connection, path: Path, schema: str = "main") -> int:
    """Return the version of the file's tables, 0 for an empty one."""
    (version,) = connection.execute(f"PRAGMA {schema}.user_version").fetchone()
    if version > VERSION:
        raise LedgerError(f"{path} was written by a newer version of sandspan: upgrade, or set SANDSPAN_LEDGER")
    query = f"SELECT COUNT(*) FROM {schema}.sqlite_master WHERE name != 'turns'"  # noqa: S608 - a constant
    (tables,) = connection.execute(query).fetchone()
    if version == 0 and tables:
        raise LedgerError(f"{path} is not a ledger of costs: choose another file (SANDSPAN_LEDGER or --ledger)")
    return version


@contextmanager
def _transaction(connection: sqlite3.Connection, kind: str = "IMMEDIATE") -> Generator[None]:
    connection.execute(f"BEGIN {kind}")
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


_COLUMNS = (*LedgerEntry._fields[:-1], "nano_usd")
_ESTIMATE = "FROM turns WHERE session = ? AND span = ? AND trace = ? AND estimated"


def _insert(connection: sqlite3.Connection, entry: LedgerEntry) -> None:
    figures = entry.figures
    if figures == NOTHING:
        connection.execute(f"DELETE FROM parts WHERE turn_id IN (SELECT id {_ESTIMATE})", entry[1:4])  # noqa: S608 - a constant
        connection.execute(f"DELETE {_ESTIMATE}", entry[1:4])
        return
    # A reported cost replaces an estimate; a higher estimate replaces a lower one, because it includes more requests.
    written = connection.execute(
        f"INSERT INTO turns ({', '.join(_COLUMNS)})"  # noqa: S608 - of constants
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (session, trace, span) DO UPDATE SET"
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


def open_to_read(paths: Sequence[Path], patience: float) -> sqlite3.Connection:
    """Return a connection to a copy of the turns of all files that exist, each once; ``patience`` as in `connect`.

    Raise `LedgerError` for a file that cannot be read.
    """
    connection = sqlite3.connect("", timeout=patience, isolation_level=None, uri=True)  # SQLite deletes it when closed
    try:
        _create_tables(connection)
        for number, path in enumerate(paths):
            _read(connection, path, f"* {len(paths)} + {number}")
    except BaseException:
        connection.close()
        raise
    return connection


def _read(connection: sqlite3.Connection, path: Path, times: str) -> None:
    try:
        if not path.exists():
            return
        connection.execute("ATTACH ? AS source", (_uri(path),))
        if _version(connection, path, "source"):
            _merge(connection, times)
        connection.execute("DETACH source")
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(f"{path} cannot be read as a ledger of costs: {error}") from None


def _merge(connection: sqlite3.Connection, times: str) -> None:
    """Copy the tables of ``source``; ``times`` makes ids that no other file has.

    A session that was taken over on another machine has turns in two files. A reported cost is taken rather than an
    estimate, the higher estimate, and of equals the earlier, so that the order of the files does not matter.
    """
    columns = ", ".join(sorted(_columns(connection, "source").intersection(_COLUMNS)))
    updates = ", ".join(f"{column} = excluded.{column}" for column in ("id", *_COLUMNS))
    with _transaction(connection, "DEFERRED"):  # an immediate one would block the writers of `source`
        connection.execute(f"""
            INSERT INTO main.turns (id, {columns}) SELECT id {times}, {columns} FROM source.turns WHERE true
            ON CONFLICT (session, trace, span) DO UPDATE SET {updates}
            WHERE (excluded.estimated, -excluded.nano_usd * excluded.estimated, excluded.ended_at)
                < (estimated, -nano_usd * estimated, ended_at)
        """)  # noqa: S608 - of constants
        # The parts of a replaced turn stay, without a turn.
        parts = ", ".join(("model", *SUMMED))
        connection.execute(f"INSERT INTO main.parts SELECT turn_id {times}, {parts} FROM source.parts")  # noqa: S608 - of constants

"""The service's SQLite file: made, locked and opened. Blocking; all of it runs in the store's own thread."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Generator
from pathlib import Path

from .base import StoreError

VERSION = 1
APPLICATION_ID = 0x53535044
"""`SSPD`: SQLite keeps it in the file's header for `file` and the like."""

BUSY_SECONDS = 5.0
"""How long a person's look at the file with another tool is waited for."""

_SCHEMA = """
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tenant_id TEXT NOT NULL,
    created_at REAL NOT NULL,
    closed_at REAL,
    status TEXT NOT NULL,
    is_open INTEGER NOT NULL,
    last_event INTEGER NOT NULL,
    last_command INTEGER NOT NULL,
    record BLOB NOT NULL,
    state BLOB NOT NULL
);
CREATE INDEX sessions_by_tenant ON sessions (tenant_id, created_at, id);
CREATE INDEX sessions_by_time ON sessions (created_at, id);
CREATE INDEX sessions_open ON sessions (tenant_id) WHERE is_open;
CREATE INDEX sessions_closed ON sessions (closed_at) WHERE NOT is_open;
CREATE TABLE events (session INTEGER NOT NULL, id INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (session, id));
CREATE TABLE spans (id INTEGER PRIMARY KEY, session INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX spans_by_session ON spans (session);
CREATE TABLE commands (
    session INTEGER NOT NULL, position INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (session, position)
);
CREATE TABLE decisions (
    session INTEGER NOT NULL, request_id TEXT NOT NULL, decision BLOB NOT NULL, PRIMARY KEY (session, request_id)
) WITHOUT ROWID;
CREATE TABLE answers (
    tenant_id TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, answer BLOB, expires_at REAL NOT NULL,
    PRIMARY KEY (tenant_id, key)
);
CREATE INDEX answers_expire ON answers (expires_at);
CREATE TABLE counts (
    tenant_id TEXT NOT NULL, what TEXT NOT NULL, number INTEGER NOT NULL, expires_at REAL NOT NULL,
    PRIMARY KEY (tenant_id, what)
) WITHOUT ROWID;
CREATE TABLE spent (
    day TEXT NOT NULL, tenant_id TEXT NOT NULL, nano_usd INTEGER NOT NULL, PRIMARY KEY (day, tenant_id)
) WITHOUT ROWID;
CREATE TABLE tokens (id TEXT PRIMARY KEY, digest TEXT NOT NULL UNIQUE, token BLOB NOT NULL) WITHOUT ROWID;
"""


def make_folders(path: Path) -> None:
    """Make the folders that are missing; `mkdir(parents=True)` would let others into the upper ones."""
    for folder in reversed(path.absolute().parents):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def lock(path: Path) -> int:
    """Return a descriptor that keeps other processes away from a file; raise `StoreError`, and `OSError`.

    The lock is a file beside it, as SQLite's own locks end when any descriptor of the database is closed. It holds the
    number of the process, and ends with it.
    """
    descriptor = os.open(Path(f"{path}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreError(
            f"{path} is in use by {f'process {owner}' if owner else 'another process'}: stop it first, or name another"
            " file; several processes share a Redis (--store redis://…)"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, made if it is not there; raise what `sqlite3` and the file system raise, and `StoreError`."""
    # Made here, as SQLite would let others read it. Its -wal and -shm take their mode from it. One that is there is not
    # opened: closing it would end the locks that SQLite has on it in this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, uri=True)
    try:
        if _is_new(connection, path):
            _make(connection)
        # Stays with the file. Where others open it this very moment, one of them brings it about.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        # A commit survives the end of the process; after a loss of power the last ones may be missing, none in part.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is empty; raise `StoreError` for what is none of ours, or newer."""
    with _transaction(connection, "BEGIN"):  # one look: another process may be making the file
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if application == 0 and version == 0 and tables == 0:
        return True
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is another program's database: name another file with --store")
    if version > VERSION:
        raise StoreError(f"{path} was written by a newer sandspan: upgrade, or name another file with --store")
    return False


def _make(connection: sqlite3.Connection) -> None:
    with _transaction(connection, "BEGIN IMMEDIATE"):
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if tables:
            return  # another process was faster
        for statement in filter(str.strip, _SCHEMA.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Generator[None]:
    connection.execute(begin)
    try:
        yield
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # what fails may have rolled back by itself
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")

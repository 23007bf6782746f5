"""Create, lock and open the service's SQLite file. Blocking; called in the store's own thread."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from pathlib import Path

from .base import StoreError

VERSION = 1
APPLICATION_ID = 0x53535044
"""`SSPD` in the file's header, by which the command `file` and this module recognize the database."""

BUSY_SECONDS = 5.0
"""Seconds to wait for another program that has locked the file, such as a person's `sqlite3`."""

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

_LATER = """
CREATE TABLE IF NOT EXISTS files (
    tenant_id TEXT NOT NULL, id TEXT NOT NULL, size INTEGER NOT NULL, expires_at REAL NOT NULL, file BLOB NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX IF NOT EXISTS files_by_tenant ON files (tenant_id, expires_at, id, size);
CREATE INDEX IF NOT EXISTS files_expire ON files (expires_at);
"""
"""Tables that a database of an earlier sandspan does not have; that sandspan can use a database with them."""


def make_folders(path: Path) -> None:
    """Create the missing parent folders, all for their owner alone, unlike `mkdir(parents=True)`."""
    for folder in reversed(path.absolute().parents):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def lock(path: Path) -> int:
    """Lock the database against other processes and return the lock's descriptor; raise `StoreError` and `OSError`.

    The lock is on a file beside the database: locks on the database itself end when any of its descriptors is closed.
    The file holds the process id. The lock ends with the process.
    """
    descriptor = os.open(Path(f"{path}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreError(
            f"{path} is in use by {f'process {owner}' if owner else 'another process'}: stop it first, or choose"
            " another file with --store; several processes share a Redis (--store redis://…)"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def connect(path: Path) -> sqlite3.Connection:
    """Open the database, creating it if necessary; raise `sqlite3.Error`, `OSError` and `StoreError`."""
    # Created here, as SQLite would let others read it; its -wal and -shm files take their mode from it. An existing
    # file is not opened here: closing it would end the locks that SQLite has on it in this process.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, uri=True)
    try:
        if _is_new(connection, path):
            _create_tables(connection)
        for statement in filter(str.strip, _LATER.split(";")):
            connection.execute(statement)
        # The mode is stored in the file. If other processes open it at this moment, one of them succeeds.
        with contextlib.suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        # Commits survive the end of the process. After a power failure the last ones may be missing, but none in part.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether the database is empty; raise `StoreError` if another program or a newer version wrote it."""
    with connection:
        connection.execute("BEGIN")  # a consistent view, as another process may be creating the tables
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    if application == 0 and version == 0 and tables == 0:
        return True
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is another program's database: choose another file with --store")
    if version > VERSION:
        raise StoreError(f"{path} was written by a newer sandspan: upgrade, or choose another file with --store")
    return False


def _create_tables(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        (tables,) = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if tables:
            return  # another process has created them
        for statement in filter(str.strip, _SCHEMA.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")

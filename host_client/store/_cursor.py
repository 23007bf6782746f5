"""Split lists of sessions into pages, each ending with a cursor: the position in the order of creation. Pure."""

from __future__ import annotations

import base64
import contextlib
import math

from .base import BadCursorError, StoredSession


def page_of(sessions: list[StoredSession], limit: int) -> tuple[list[StoredSession], str | None]:
    """Return the first ``limit`` sessions and the cursor of the next page; the cursor is None if there are no more."""
    if len(sessions) <= limit:
        return sessions, None
    last = sessions[limit - 1].record
    cursor = base64.urlsafe_b64encode(f"{last.created_at!r} {last.id}".encode()).decode().rstrip("=")
    return sessions[:limit], cursor


def read_cursor(cursor: str) -> tuple[float, str]:
    """Return the creation time and id of the last session of a cursor's page; raise `BadCursorError`."""
    with contextlib.suppress(ValueError):  # as all errors below are
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        created_at, session_id = text.split(" ", 1)
        if math.isfinite(at := float(created_at)):
            return at, session_id
    raise BadCursorError("before= takes the cursor of an earlier page")

"""The cursor of a page of sessions: where in the order of creation it ended. Pure."""

from __future__ import annotations

import base64
import binascii
import math

from .base import BadCursorError, SessionRecord


def cursor_of(record: SessionRecord) -> str:
    """Return the cursor of what comes after this session; safe in a URL."""
    return base64.urlsafe_b64encode(f"{record.created_at!r} {record.id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[float, str]:
    """Return time of creation and id of a page's last session; raise `BadCursorError`."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        created_at, session_id = text.split(" ", 1)
        at = float(created_at)
    except (ValueError, binascii.Error):
        raise BadCursorError("before= takes the cursor of an earlier page") from None
    if not math.isfinite(at):
        raise BadCursorError("before= takes the cursor of an earlier page")
    return at, session_id

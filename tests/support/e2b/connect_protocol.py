"""The Connect protocol as envd and the SDK use it: JSON bodies, unary calls and enveloped streams.

https://connectrpc.com/docs/protocol: an envelope is 1 flag byte, a 4-byte big-endian length and the
message; flag 2 marks the last one of a stream, which holds ``{}`` or ``{"error": {…}}``.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

_END_STREAM = 2
_HEAD = struct.Struct(">BI")

_STATUS = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "unauthenticated": 401,
}


class RpcError(Exception):
    """An error answer of a call."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def status(self) -> int:
        """The HTTP status of a unary answer."""
        return _STATUS[self.code]

    def to_dict(self) -> dict[str, str]:
        """Return it as the protocol writes it."""
        return {"code": self.code, "message": self.message}


def message_frame(message: object) -> bytes:
    """Return one message of a stream."""
    return _frame(0, message)


def end_frame(error: RpcError | None = None) -> bytes:
    """Return the last envelope of a stream."""
    return _frame(_END_STREAM, {} if error is None else {"error": error.to_dict()})


def _frame(flags: int, message: object) -> bytes:
    body = json.dumps(message).encode()
    return _HEAD.pack(flags, len(body)) + body


class FrameReader:
    """Reads the messages of a stream from its chunks."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield the messages that a chunk completes."""
        self._rest += data
        while len(self._rest) >= _HEAD.size:
            _, length = _HEAD.unpack_from(self._rest)
            end = _HEAD.size + length
            if len(self._rest) < end:
                return
            body, self._rest = self._rest[_HEAD.size : end], self._rest[end:]
            yield json.loads(body)

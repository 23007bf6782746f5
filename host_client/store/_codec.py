"""Encode and decode the records that both stores keep: files as MessagePack, all others as JSON. Pure."""

from __future__ import annotations

import msgspec

from .base import Decision, SessionRecord, SessionState, StoredFile, StoredSession, Token

encode = msgspec.json.encode
decode_decision = msgspec.json.Decoder(Decision).decode
encode_file = msgspec.msgpack.encode
_decode_file = msgspec.msgpack.Decoder(StoredFile).decode
_decode_record = msgspec.json.Decoder(SessionRecord).decode
_decode_state = msgspec.json.Decoder(SessionState).decode
_decode_token = msgspec.json.Decoder(Token).decode


def decode_session(record: bytes, state: bytes) -> StoredSession:
    """Return a session from its record and state."""
    return StoredSession(_decode_record(record), _decode_state(state))


def decode_file(data: bytes | None) -> StoredFile | None:
    """Return a file; None for no data."""
    return _decode_file(data) if data is not None else None


def decode_token(data: bytes | None) -> Token | None:
    """Return a token; None for no data."""
    return _decode_token(data) if data is not None else None


def decode_tokens(rows: list[bytes]) -> list[Token]:
    """Return tokens, oldest first."""
    return sorted(map(_decode_token, rows), key=lambda token: (token.created_at, token.id))

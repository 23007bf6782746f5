"""Encode and decode, as JSON, the records that both stores keep. Pure."""

from __future__ import annotations

import msgspec

from .base import Decision, SessionRecord, SessionState, StoredSession, Token

encode = msgspec.json.encode
decode_decision = msgspec.json.Decoder(Decision).decode
_decode_record = msgspec.json.Decoder(SessionRecord).decode
_decode_state = msgspec.json.Decoder(SessionState).decode
_decode_token = msgspec.json.Decoder(Token).decode


def decode_session(record: bytes, state: bytes) -> StoredSession:
    """Return a session from its record and state."""
    return StoredSession(_decode_record(record), _decode_state(state))


def decode_token(data: bytes | None) -> Token | None:
    """Return a token; None for no data."""
    return _decode_token(data) if data is not None else None


def decode_tokens(rows: list[bytes]) -> list[Token]:
    """Return tokens, oldest first."""
    return sorted(map(_decode_token, rows), key=lambda token: (token.created_at, token.id))

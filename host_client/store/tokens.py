"""Create bearer tokens, and the digests that are stored of them.

A token is 256 random bits and is shown once; only its SHA-256 is stored. With that much randomness the digest needs no
salt, and the time that a lookup takes reveals nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import time

from .base import Role, Token

PREFIX = "sst_"
"""First characters of each token."""


def digest_of(plaintext: str) -> str:
    """Return the digest of a token by which it is stored."""
    return hashlib.sha256(plaintext.encode("utf-8", "replace")).hexdigest()


def new_token(name: str, tenant_id: str, role: Role, expires_at: float | None = None) -> tuple[str, Token]:
    """Return a new token, to be shown once, and its record for the store; ``expires_at`` is seconds since the epoch."""
    plaintext = PREFIX + secrets.token_urlsafe(32)
    token = Token(
        id=f"tok_{secrets.token_hex(6)}",
        digest=digest_of(plaintext),
        name=name,
        tenant_id=tenant_id,
        role=role,
        created_at=time.time(),
        expires_at=expires_at,
    )
    return plaintext, token

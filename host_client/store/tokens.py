"""How a bearer token is made, and what is kept of it.

A token is 256 random bits that are shown once; what is kept is its SHA-256. A digest of that much chance needs no salt,
and how long it takes to look one up tells nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import time

from .base import Role, Token

PREFIX = "sst_"


def digest_of(plaintext: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(plaintext.encode("utf-8", "replace")).hexdigest()


def new_token(name: str, tenant_id: str, role: Role, expires_at: float | None = None) -> tuple[str, Token]:
    """Return a new token, to be shown once, and what to keep of it; ``expires_at`` is in seconds since the epoch."""
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

"""Prepare text for spans: redact secrets, remove control characters, cut. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, get_args

Content = Literal["none", "preview", "full"]
CONTENTS: tuple[str, ...] = get_args(Content)
Sanitizer = Callable[[str], str]

PREVIEW_LENGTH = 100
BRIEF_LENGTH = 200
FULL_LENGTH = 64 * 1024
"""Maximum characters of ``full`` content: backends refuse a span of many megabytes."""

# Each alternative is tried once per run of characters. To try it at every position of a long run takes seconds.
_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\bsk-[A-Za-z0-9_-]{8,}|\b(?:pk|rk)-(?:lf|live|test)[A-Za-z0-9_-]{8,}"
    r"|\be2b_[A-Za-z0-9]{8,}|\bsst_[A-Za-z0-9_-]{16,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}"
    r"|\bglpat-[A-Za-z0-9_-]{16,}|\bxox[abeoprs]-[A-Za-z0-9-]{8,}"
    r"|\bA(?:KIA|SIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
    r"|(?<![\w-])(?=[\w-]{11,}+\.[\w-]{8,}+\.)[\w-]*?\beyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*"
    r"|(?i:\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}"
    r"|(?i:\b(?:api[_-]?key|token|secret|password|passwd)\b[\"']?\s*[:=]\s*[\"']?)[^\s\"',;]{4,}"
    r"|(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@[A-Za-z0-9-]++(?:\.[A-Za-z0-9-]+)+\b",
    re.DOTALL,
)
_MARKS = (
    *("@", "-----BEGIN", "sk-", "pk-", "rk-", "e2b_", "sst_", "_pat_", "glpat-", "xox", "AKIA", "ASIA", "AIza", "eyJ"),
    *("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
)
_ONE_WORD = ("e2b_", "sst_", "gh", "github_pat_", "AKIA", "ASIA", "AIza")
_WORDS = ("bearer", "basic", "key", "token", "secret", "passw")
# C0 and C1 controls, zero-width and bidirectional marks, line and paragraph separators, surrogates.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]+"
)


def redact(text: str) -> str:
    """Return the text with ``[redacted]`` in place of keys, tokens, passwords and e-mail addresses."""
    return _SECRETS.sub("[redacted]", text) if _may_hold_a_secret(text) else text


def _may_hold_a_secret(text: str) -> bool:
    """Return whether `_SECRETS` can match: mostly it cannot, and this test takes a twentieth of its time."""
    if text.isidentifier() and text.isascii():  # a single word, such as an id, can only be a secret that begins it
        return text.startswith(_ONE_WORD)
    for mark in _MARKS:  # any() with a generator takes twice as long
        if mark in text:
            return True
    lower = text.lower()
    for word in _WORDS:  # noqa: SIM110 - as above
        if word in lower:
            return True
    return False


def single_line(text: str, limit: int) -> str:
    """Return at most ``limit`` characters, with one space in place of each run of control characters."""
    if len(text) <= limit and text.isprintable():  # control characters are not printable
        return text
    # The text is cut first, so that a text of 10 MB does not take the time to match 10 MB.
    cleaned = _CONTROLS.sub(" ", text[: limit * 4])
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def brief(text: str) -> str:
    """Return the text redacted, in one line, with at most 200 characters, as for a span's status."""
    return single_line(redact(text[: BRIEF_LENGTH * 8]), BRIEF_LENGTH)


def preview(text: str) -> str:
    """Return the text redacted, in one line, with at most 100 characters: the default for content."""
    # A secret that begins before the cut is recognised only as a whole.
    return single_line(redact(text[: PREVIEW_LENGTH + 8192]), PREVIEW_LENGTH)


def full(text: str) -> str:
    """Return the text redacted, with at most `FULL_LENGTH` characters and its line breaks."""
    return replace_lone_surrogates(redact(text[:FULL_LENGTH]))


def replace_lone_surrogates(text: str) -> str:
    """Return the text with a question mark in place of each lone surrogate, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


SANITIZERS: dict[Content, Sanitizer | None] = {"none": None, "preview": preview, "full": full}

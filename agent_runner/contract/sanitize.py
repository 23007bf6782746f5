"""What of a text may stand in a span: secrets redacted, controls removed, cut. Pure."""

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
"""Even whole content is bounded: a backend refuses a span of many megabytes."""

# Each alternative is tried once a run of characters and not from each place in it, which would take seconds.
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
    """Replace what looks like a key, a token, a password or an e-mail address by ``[redacted]``."""
    return _SECRETS.sub("[redacted]", text) if _may_hold_a_secret(text) else text


def _may_hold_a_secret(text: str) -> bool:
    """Whether the expression can match. Most texts hold none, and this takes a twentieth of the search for one."""
    if text.isidentifier() and text.isascii():  # one word, as ids are: a secret begins with it or there is none
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
    """Return at most ``limit`` characters with runs of control characters as one space."""
    if len(text) <= limit and text.isprintable():  # no controls are
        return text
    # Cut before the expression runs: a span of a 10 MB text must not cost 10 MB of matching.
    cleaned = _CONTROLS.sub(" ", text[: limit * 4])
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def brief(text: str) -> str:
    """Return a message in a span's status: redacted, one line, at most 200 characters."""
    return single_line(redact(text[: BRIEF_LENGTH * 8]), BRIEF_LENGTH)


def preview(text: str) -> str:
    """The default: redacted, one line, at most 100 characters."""
    # A secret that begins near the cut must be seen whole to be recognised.
    return single_line(redact(text[: PREVIEW_LENGTH + 8192]), PREVIEW_LENGTH)


def full(text: str) -> str:
    """Redacted, bounded, its line breaks kept."""
    return replace_lone_surrogates(redact(text[:FULL_LENGTH]))


def replace_lone_surrogates(text: str) -> str:
    """Return the text in a form that UTF-8 can encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


SANITIZERS: dict[Content, Sanitizer | None] = {"none": None, "preview": preview, "full": full}

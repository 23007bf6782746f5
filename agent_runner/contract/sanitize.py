"""Prepare text for spans: redact secrets, remove control characters, cut. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from ._secret_names import may_hold_a_named_secret, redact_named
from ._secret_tokens import is_harmless_word, may_hold_a_token, redact_private_keys, redact_tokens

Content = Literal["none", "preview", "full"]
CONTENTS: tuple[str, ...] = get_args(Content)
Sanitizer = Callable[[str], str]

PREVIEW_LENGTH = 100
BRIEF_LENGTH = 200
EXCERPT_LENGTH = 1000
"""Maximum characters of file contents, of a command and of its output in a span."""

FULL_LENGTH = 64 * 1024
"""Maximum characters of ``full`` content: backends refuse a span of many megabytes."""

_LOOK_AHEAD = 8192
"""Characters beyond a cut that are searched too, because a secret is recognised only as a whole."""

# C0 and C1 controls, zero-width and bidirectional marks, line and paragraph separators, surrogates.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ud800-\udfff]+"
)


def redact(text: str) -> str:
    """Return the text with ``[redacted]`` in place of keys, tokens, passwords and e-mail addresses.

    A second time changes nothing: the host redacts what the runner has redacted.
    """
    if is_harmless_word(text):
        return text
    may_hold_a_name = may_hold_a_named_secret(text)
    if not may_hold_a_name and not may_hold_a_token(text):
        return text
    text = redact_private_keys(text)
    return redact_tokens(redact_named(text) if may_hold_a_name else text)


def single_line(text: str, limit: int) -> str:
    """Return at most ``limit`` characters, with one space in place of each run of control characters."""
    if len(text) <= limit and text.isprintable():  # control characters are not printable
        return text
    # The text is cut first, so that a text of 10 MB does not take the time to match 10 MB.
    cleaned = _CONTROLS.sub(" ", text[: limit * 4])
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


def redacted_line(text: str, limit: int) -> str:
    """Return the text redacted, in one line, with at most ``limit`` characters."""
    return single_line(redact(text[: limit + _LOOK_AHEAD]), limit)


def brief(text: str) -> str:
    """Return the text redacted, in one line, with at most 200 characters, as for a span's status."""
    return redacted_line(text, BRIEF_LENGTH)


def preview(text: str) -> str:
    """Return the text redacted, in one line, with at most 100 characters: the default for content."""
    return redacted_line(text, PREVIEW_LENGTH)


def full(text: str) -> str:
    """Return the text redacted, with at most `FULL_LENGTH` characters and its line breaks."""
    return replace_lone_surrogates(redact(text[:FULL_LENGTH]))


def replace_lone_surrogates(text: str) -> str:
    """Return the text with a question mark in place of each lone surrogate, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True)
class ToolSanitizer:
    """Prepare the texts of tool calls for spans; of file contents and output only excerpts, if ``shows_excerpts``."""

    sanitize: Sanitizer
    shows_excerpts: bool

    def excerpt(self, text: str, limit: int = EXCERPT_LENGTH) -> str:
        """Return the text sanitized, in one line, with at most ``limit`` characters."""
        return single_line(self.sanitize(text[: limit + _LOOK_AHEAD]), limit)


SANITIZERS: dict[Content, Sanitizer | None] = {"none": None, "preview": preview, "full": full}

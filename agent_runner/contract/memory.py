"""What was made of something before, as the same comes again and again. Bounded; safe for threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

SHORT = 128
"""A longer text hardly comes twice, and would only fill a memory."""

MAX_KEPT = 2048

K = TypeVar("K")
V = TypeVar("V")
Text = TypeVar("Text", str, bytes)


class Memory(dict[K, V]):
    """What was made of what, forgotten all at once where it is too much."""

    def keep(self, of: K, made: V) -> None:
        """Remember it; whether it is short is the caller's to ask."""
        if len(self) >= MAX_KEPT:
            self.clear()
        self[of] = made


class Remembered(Memory[Text, V]):
    """A function of texts or bytes, and what it returned for short ones.

    ``of[text]`` is the same as ``of(text)``, and costs no call where the result is known.
    """

    def __init__(self, function: Callable[[Text], V]) -> None:
        super().__init__()
        self._function = function

    def __call__(self, text: Text) -> V:
        return self[text]

    def __missing__(self, text: Text) -> V:
        made = self._function(text)
        if len(text) <= SHORT:
            self.keep(text, made)
        return made

"""One run's way to the model: what to say where the model cannot be asked."""

from __future__ import annotations

from collections.abc import Mapping

from .contract.credentials import key_refused


class ModelAccess:
    """``environ`` is the CLI's, before a gateway takes the model's place in it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def key_refused(self, status: int, said: str) -> str:
        """Say that the key was refused; ``said`` is the CLI's message about it."""
        return key_refused(status, said, self._environ)

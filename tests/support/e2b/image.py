"""Where the paths and accounts of a template's image are on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Image:
    """``paths`` are replaced wherever they stand in a command or a variable, ``accounts`` where they are a variable."""

    paths: Mapping[str, str] = field(default_factory=dict[str, str])
    accounts: Mapping[str, str] = field(default_factory=dict[str, str])

    def located(self, text: str) -> str:
        """Return a text of the image as one of this machine."""
        for there, here in self.paths.items():
            text = text.replace(there, here)
        return text

    def environment(self, envs: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of a process."""
        return {name: self.accounts.get(value) or self.located(value) for name, value in envs.items()}

"""Map the paths and accounts of a template's image to those of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Image:
    """``paths`` are replaced wherever they stand in a command or a variable, ``accounts`` where they are a variable.

    ``variables`` stand for what the image's accounts have and this machine's may not: a home.
    """

    paths: Mapping[str, str] = field(default_factory=dict[str, str])
    accounts: Mapping[str, str] = field(default_factory=dict[str, str])
    variables: Mapping[str, str] = field(default_factory=dict[str, str])

    def located(self, text: str) -> str:
        """Return a text of the image as one of this machine."""
        for there, here in self.paths.items():
            text = text.replace(there, here)
        return text

    def environment(self, envs: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of a process."""
        located = {name: self.accounts.get(value) or self.located(value) for name, value in envs.items()}
        return {**self.variables, **located}

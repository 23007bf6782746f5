"""Finds the dashboard files: within the installed package or, in a checkout, beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

from host_client.errors import ConfigurationError

BACKENDS = ("grafana", "signoz", "langfuse", "prometheus")


def folder() -> Path:
    """Return the directory that holds one directory for each backend."""
    package = Path(__file__).parents[1]
    for directory in (package / "dashboards", package.parent / "dashboards"):
        if all((directory / backend).is_dir() for backend in BACKENDS):
            return directory
    raise ConfigurationError(f"the dashboard files are missing from {package}: install sandspan again")


def files(backend: str) -> list[Path]:
    """Return the dashboard files of a backend, sorted by name."""
    return sorted(file for file in (folder() / backend).iterdir() if file.is_file())


def write(target: Path) -> list[Path]:
    """Copy all dashboard files into ``target``, over existing ones; return the copies."""
    copies: list[Path] = []
    for backend in BACKENDS:
        (target / backend).mkdir(parents=True, exist_ok=True)
        copies.extend(Path(shutil.copy(file, target / backend)) for file in files(backend))
    return copies

"""Advice on which extra of the distribution to install when a package is missing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec

from .errors import ConfigurationError

OURS = ("agent_runner", "host_client")


@contextmanager
def needs(extra: str, feature: str) -> Generator[None]:
    """Import the packages of an extra in this block; raise `ConfigurationError` that names the missing one.

    ``feature`` is what the user asked for, such as ``the service``.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in OURS:
            raise
        raise ConfigurationError(missing(error.name, extra, feature)) from None


def missing(package: str, extra: str, feature: str) -> str:
    """Return the sentence that says which package a feature lacks, and the command that installs it."""
    return f"{feature} needs {package}, which is not installed: pip install 'sandspan[{extra}]'"


def is_installed(module: str) -> bool:
    """Return whether a module can be found; a missing parent package counts as not found."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False

"""Names the extra of the distribution to install if a package is missing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec

from .errors import ConfigurationError

OURS = ("agent_runner", "host_client")


@contextmanager
def needs(extra: str, feature: str) -> Generator[None]:
    """Turn a failed import in the block into a `ConfigurationError` that names the package and the extra to install.

    ``feature`` names the caller's feature in the message, such as ``the service``.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in OURS:
            raise
        raise ConfigurationError(missing(error.name, extra, feature)) from None


def missing(package: str, extra: str, feature: str) -> str:
    """Return a sentence that names the missing package of a feature and the command that installs it."""
    return f"{feature} needs {package}, which is not installed: pip install 'sandspan[{extra}]'"


def is_installed(module: str) -> bool:
    """Return whether a module can be found; without its parent package it cannot."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False

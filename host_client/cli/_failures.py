"""Errors as one line on stderr and an exit code."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

import typer

from host_client.errors import ConfigurationError, SandspanError

_FIELD = re.compile(r"[a-z_]+(?= takes )")


@contextmanager
def told(command: str) -> Generator[None]:
    """Tell of an error in the block and exit: with 2 for a bad option or value, else with 3."""
    try:
        yield
    except ConfigurationError as error:
        typer.echo(f"{command}: {as_typed(str(error))}", err=True)
        raise typer.Exit(2) from None
    except SandspanError as error:
        typer.echo(f"{command}: {error.error_type}: {error}", err=True)
        raise typer.Exit(3) from None


def as_typed(message: str) -> str:
    """Return a message about a setting with its option in the setting's place: they differ by dashes alone."""
    found = _FIELD.match(message)
    return f"--{found.group().replace('_', '-')}{message[found.end() :]}" if found else message

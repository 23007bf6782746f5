"""Reports an error as one line on stderr and an exit code."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

import typer

from host_client.errors import ConfigurationError, SandspanError

_FIELD = re.compile(r"[a-z_]+(?= takes )")


@contextmanager
def reported_errors(command: str, code: int = 3) -> Generator[None]:
    """Print an error of the block and exit: with exit code 2 for a bad option or value, else with ``code``."""
    try:
        yield
    except ConfigurationError as error:
        typer.echo(f"{command}: {as_typed(str(error))}", err=True)
        raise typer.Exit(2) from None
    except SandspanError as error:
        kind = "" if error.error_type == "internal" else f"{error.error_type}: "
        typer.echo(f"{command}: {kind}{error}", err=True)
        raise typer.Exit(code) from None


def as_typed(message: str) -> str:
    """Return a message with the name of a setting replaced by its option: ``max_turns`` by ``--max-turns``."""
    field = _FIELD.match(message)
    return f"--{field.group().replace('_', '-')}{message[field.end() :]}" if field else message

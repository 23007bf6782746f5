"""Every command prints its help for ``-h`` too, and the help shows no type beside a flag."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from host_client.cli.app import app


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


ALL = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("path", ALL, ids=lambda path: " ".join(path) or "host_client")
def test_every_command_explains_itself_by_h_and_help(path: tuple[str, ...]) -> None:
    by_h, by_help = (CliRunner().invoke(app, [*path, option]) for option in ("-h", "--help"))
    assert (by_h.exit_code, by_help.exit_code) == (0, 0)
    assert by_h.output == by_help.output
    assert "<bool>" not in by_help.output


def test_the_commands_can_be_completed_by_a_shell() -> None:
    assert len(ALL) > 15
    shown = CliRunner().invoke(app, ["--help"])
    assert "--install-completion" in shown.output

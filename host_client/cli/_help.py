"""Commands whose flags show no type in their help: typer gives every option one, its own ``--help`` too."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class PlainCommand(TyperCommand):
    """A command whose ``--help`` stands without a type."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option ``--help``."""
        return _bare(super().get_help_option(ctx))


class PlainGroup(TyperGroup):
    """A group whose ``--help`` stands without a type."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option ``--help``."""
        return _bare(super().get_help_option(ctx))


def _bare(option: Any) -> Any:
    if option is not None:
        option.metavar = ""
    return option

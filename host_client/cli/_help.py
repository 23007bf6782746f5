"""Commands and groups whose help shows no type beside a flag, where typer would show ``<bool>``."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

CONTEXT = {"help_option_names": ["-h", "--help"]}
"""Context settings of every command."""


class PlainCommand(TyperCommand):
    """A command whose flags are shown without a type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, flags without a metavar."""
        return [_without_type(param) for param in super().get_params(ctx)]


class PlainGroup(TyperGroup):
    """A group whose flags are shown without a type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, flags without a metavar."""
        return [_without_type(param) for param in super().get_params(ctx)]


def _without_type(param: Any) -> Any:
    if getattr(param, "is_flag", False):
        param.metavar = ""
    return param

"""``host_client doctor``: prints the findings of all checks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from . import _parameters as o
from ._place import KINDS

if TYPE_CHECKING:
    from ._diagnosis import Kind

STYLES = {True: "green", False: "bold red", None: "dim"}


def doctor(
    sandbox: o.SandboxKind = "auto",
    template: o.Template = None,
) -> None:
    """Check whether agents can run from here; exit with code 1 if not."""
    from rich.console import Console  # not needed for --help
    from rich.text import Text

    from ._diagnosis import Circumstances, diagnose
    from ._render import visible

    if sandbox not in KINDS:
        typer.echo(f"host_client doctor: --sandbox takes one of {', '.join(KINDS)}", err=True)
        raise typer.Exit(2)
    circumstances = Circumstances(environ=os.environ, kind=_kind(sandbox), template=template or "sandspan")
    console = Console(soft_wrap=True)
    failed = False
    for finding in diagnose(circumstances):
        failed = failed or finding.ok is False
        console.print(Text(visible(str(finding)), style=STYLES[finding.ok]))
    raise typer.Exit(int(failed))


def _kind(sandbox: str) -> Kind:
    """Return the kind of sandbox that a run with this option would use."""
    if sandbox == "e2b" or (sandbox == "auto" and os.environ.get("E2B_API_KEY")):
        return "e2b"
    return "local"

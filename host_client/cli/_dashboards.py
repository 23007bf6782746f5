"""``host_client dashboards``: the dashboards that come with Sandspan, as files and in a Langfuse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from host_client.errors import ConfigurationError

from ._help import PlainCommand, PlainGroup

app = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="Dashboards of what agents do and cost.")
provision = typer.Typer(
    cls=PlainGroup, no_args_is_help=True, help="Make dashboards in a backend, or bring them up to date."
)
app.add_typer(provision, name="provision")


@app.command(cls=PlainCommand, name="list")
def list_files() -> None:
    """Show the files, one a line."""
    from host_client.dashboards import files  # not needed for --help

    folder = _folder()
    for backend in files.BACKENDS:
        for file in files.files(backend):
            typer.echo(file.relative_to(folder))


@app.command(cls=PlainCommand)
def write(directory: Annotated[Path, typer.Argument(help="Where to; what is there is written over.")]) -> None:
    """Copy the files into a directory, for Grafana, SigNoz, Langfuse and Prometheus to import."""
    from host_client.dashboards import files  # not needed for --help

    _folder()
    try:
        for file in files.write(directory):
            typer.echo(file)
    except OSError as error:
        _fail("write", f"{error.filename}: {error.strerror}", 2)


@provision.command(cls=PlainCommand)
def langfuse(
    file: Annotated[list[Path] | None, typer.Argument(help="Dashboard files. Default: those that come along.")] = None,
) -> None:
    """Make Langfuse's dashboards, or update what differs; LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY say where."""
    from host_client.dashboards import files  # httpx, 0.1 s, is not needed for --help
    from host_client.dashboards import langfuse as target

    def waiting(seconds: float) -> None:
        typer.echo(f"Langfuse asks to wait {seconds:g} s", err=True)

    try:
        dashboards = [target.read(path) for path in file or files.files("langfuse")]
        place = target.place_of(os.environ)
        with target.LangfuseApi(place, waiting=waiting) as api:
            for change in target.provision(api, dashboards):
                typer.echo(f"{change.action:9} {change.kind:9} {change.name}")
    except ConfigurationError as error:
        _fail("provision langfuse", str(error), 2)
    except target.LangfuseError as error:
        _fail("provision langfuse", str(error), 1)


def _folder() -> Path:
    from host_client.dashboards import files  # not needed for --help

    try:
        return files.folder()
    except ConfigurationError as error:
        _fail("list", str(error), 2)


def _fail(command: str, message: str, code: int) -> NoReturn:
    typer.echo(f"host_client dashboards {command}: {message}", err=True)
    raise typer.Exit(code)

"""``host_client dashboards``: lists, copies and provisions the dashboards that come with Sandspan."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from host_client.errors import ConfigurationError

from ._failures import reported_errors
from ._help import PlainCommand, PlainGroup

app = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="Dashboards of agents' activity and costs.")
provision = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="Create or update dashboards in a backend.")
app.add_typer(provision, name="provision")


@app.command(cls=PlainCommand, name="list")
def list_files() -> None:
    """List the dashboard files, one per line."""
    from host_client.dashboards import files  # not needed for --help

    with reported_errors("host_client dashboards list"):
        folder = files.folder()
        for backend in files.BACKENDS:
            for file in files.files(backend):
                typer.echo(file.relative_to(folder))


@app.command(cls=PlainCommand)
def write(directory: Annotated[Path, typer.Argument(help="Directory to copy to; files in it are replaced.")]) -> None:
    """Copy the dashboard files into a directory, for import into Grafana, SigNoz, Langfuse and Prometheus."""
    from host_client.dashboards import files  # not needed for --help

    with reported_errors("host_client dashboards write"):
        try:
            for file in files.write(directory):
                typer.echo(file)
        except OSError as error:
            raise ConfigurationError(f"{error.filename}: {error.strerror}") from None


@provision.command(cls=PlainCommand)
def langfuse(
    file: Annotated[list[Path] | None, typer.Argument(help="Dashboard files. Default: those of Sandspan.")] = None,
) -> None:
    """Create dashboards in Langfuse, or update those that differ; needs LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY."""
    from host_client.dashboards import files  # httpx, 0.1 s, is not needed for --help
    from host_client.dashboards import langfuse as target

    def waiting(seconds: float) -> None:
        typer.echo(f"Langfuse asks for a pause of {seconds:.0f} s", err=True)

    with reported_errors("host_client dashboards provision langfuse", code=1):
        dashboards = [target.read(path) for path in file or files.files("langfuse")]
        account = target.account_of(os.environ)
        with target.LangfuseApi(account, waiting=waiting) as api:
            for change in target.provision(api, dashboards):
                typer.echo(f"{change.action:9} {change.kind:9} {change.name}")

"""The subcommands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent_runner import __version__
from host_client.errors import ConfigurationError

from . import costs, dashboards, doctor, sandboxes, start, template

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(start.run)
app.command()(start.resume)
app.command()(doctor.doctor)
app.command()(costs.costs)
app.add_typer(dashboards.app, name="dashboards")
app.add_typer(sandboxes.app, name="sandboxes")
app.add_typer(template.app, name="template")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"host_client {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Run Claude agents in sandboxes, approve what they do, see it all in one trace."""


@app.command()
def demo(
    script: Annotated[Path | None, typer.Option(help="A script for the model, in place of the demo's own.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt; with a script of your own.")] = None,
    approvals: Annotated[str | None, typer.Option(help="ask, auto or deny. Default: ask at a terminal.")] = None,
    json_events: Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.")] = False,
    trace_out: Annotated[Path | None, typer.Option(help="File for the trace, as OTLP JSON.")] = None,
) -> None:
    """Run a real agent against a scripted model: no account, no key, no network."""
    from host_client.demo import run_demo  # the scripted model's server is not needed for --help
    from host_client.scripted_model import ScriptError

    try:
        decided = start.policy(approvals) if approvals else None
        code = run_demo(script, prompt, decided, json_events=json_events, trace_out=trace_out)
    except (ConfigurationError, ScriptError) as error:
        typer.echo(f"host_client demo: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(code)

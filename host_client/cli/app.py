"""The commands of ``host_client``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agent_runner.contract import __version__
from host_client.errors import ConfigurationError
from host_client.extras import needs

from . import _costs as costs
from . import _dashboards as dashboards
from . import _doctor as doctor
from . import _parameters as o
from . import _sandboxes as sandboxes
from . import _serve as serve
from . import _start as start
from . import _template as template
from . import _tokens as tokens
from ._checks import check_files, check_prompt
from ._failures import reported_errors
from ._help import CONTEXT, PlainCommand, PlainGroup
from ._place import require_local_runner

app = typer.Typer(cls=PlainGroup, no_args_is_help=True, context_settings=CONTEXT, pretty_exceptions_enable=False)
app.command(cls=PlainCommand)(start.run)
app.command(cls=PlainCommand)(start.resume)
app.command(cls=PlainCommand)(serve.serve)
app.command(cls=PlainCommand)(doctor.doctor)
app.command(cls=PlainCommand)(costs.costs)
app.add_typer(dashboards.app, name="dashboards")
app.add_typer(sandboxes.app, name="sandboxes")
app.add_typer(template.app, name="template")
app.add_typer(tokens.app, name="tokens")


def _show_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"host_client {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run Claude agents in sandboxes, approve their tool calls, and see everything in one trace."""


@app.command(cls=PlainCommand)
def demo(
    script: Annotated[Path | None, typer.Option(help="Script for the model, in place of the demo's own.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt; only with --script.")] = None,
    approvals: Annotated[str | None, typer.Option(help="ask, auto or deny. Default: ask at a terminal.")] = None,
    json_events: o.JsonEvents = False,
    trace_out: o.TraceOut = None,
) -> None:
    """Run a real agent against a scripted model: no account, no key, no network."""
    with reported_errors("host_client demo"):
        with needs("local", "the demo"):
            from host_client.scripted_model import ScriptError

            from ._demo import run_demo  # the scripted model's server is not needed for --help
        require_local_runner("the demo")
        check_files(None, None, trace_out)
        if prompt is not None:
            check_prompt(prompt)
        decided = start.policy(approvals) if approvals is not None else None
        try:
            code = run_demo(script, prompt, decided, json_events=json_events, trace_out=trace_out)
        except ScriptError as error:
            raise ConfigurationError(str(error)) from None
    raise typer.Exit(code)

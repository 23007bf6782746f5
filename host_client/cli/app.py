"""The subcommands and their options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from agent_runner import __version__
from agent_runner.config import PERMISSION_MODES, tool_names
from host_client.config import APPROVAL_POLICIES, AgentOptions, ApprovalPolicy
from host_client.errors import ConfigurationError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


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
def run(
    prompt: Annotated[str, typer.Argument(help="What the agent is to do.")],
    model: Annotated[str | None, typer.Option(help="Model id or alias.")] = None,
    allowed_tools: Annotated[str, typer.Option(help="Tools and rules that need no approval, with commas.")] = "",
    disallowed_tools: Annotated[str, typer.Option(help="Tools and rules that are refused, with commas.")] = "",
    permission_mode: Annotated[str, typer.Option(help=f"One of {', '.join(PERMISSION_MODES)}.")] = "default",
    cwd: Annotated[Path | None, typer.Option(help="Directory to work in, in place (local sandbox only).")] = None,
    upload: Annotated[Path | None, typer.Option(help="File or folder to copy into the sandbox first.")] = None,
    download: Annotated[Path | None, typer.Option(help="Folder to copy the working directory to, after.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Who it is for: `user.id` on every span.")] = None,
    tenant_id: Annotated[str | None, typer.Option(help="`tenant.id` on every span.")] = None,
    attribute: Annotated[list[str] | None, typer.Option(help="name=value for every span; repeatable.")] = None,
    max_budget_usd: Annotated[float | None, typer.Option(help="Most it may cost, in US dollars.")] = None,
    max_turns: Annotated[int | None, typer.Option(help="Most model requests that may follow tool calls.")] = None,
    approvals: Annotated[str, typer.Option(help="ask, auto or deny.")] = "ask",
    approval_timeout: Annotated[float, typer.Option(help="Seconds a person has to answer.")] = 300.0,
    keep: Annotated[Path | None, typer.Option(help="Directory for the sandbox, which stays (local only).")] = None,
    resume: Annotated[str | None, typer.Option(help="Claude session id to go on with; needs --keep.")] = None,
    json_events: Annotated[bool, typer.Option("--json", help="Events as JSON lines on stdout.")] = False,
    trace_out: Annotated[Path | None, typer.Option(help="File for the trace, as OTLP JSON.")] = None,
) -> None:
    """Run one prompt to its end and show what happens."""
    from host_client.sandbox import LocalSandbox

    from .run import Job, run_job  # the session, the sandbox and rich are not needed for --help

    if resume is not None and keep is None:
        raise typer.BadParameter("needs --keep: the directory that the conversation was kept in", param_hint="--resume")
    try:
        options = AgentOptions(
            model=model,
            allowed_tools=tool_names(allowed_tools),
            disallowed_tools=tool_names(disallowed_tools),
            permission_mode=permission_mode,
            user_id=user_id,
            tenant_id=tenant_id,
            attributes=_pairs(attribute or []),
            max_budget_usd=max_budget_usd,
            max_turns=max_turns,
            approval_timeout=approval_timeout,
            resume=resume,
        )
        job = Job(
            prompt=prompt,
            options=options,
            sandbox=LocalSandbox(work=cwd, keep=keep),
            approvals=_policy(approvals),
            environ=os.environ,
            upload=upload,
            download=download,
            json_events=json_events,
            trace_out=trace_out,
        )
    except ConfigurationError as error:
        typer.echo(f"host_client run: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(run_job(job)[0])


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
        policy = _policy(approvals) if approvals else None
        code = run_demo(script, prompt, policy, json_events=json_events, trace_out=trace_out)
    except (ConfigurationError, ScriptError) as error:
        typer.echo(f"host_client demo: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(code)


def _policy(text: str) -> ApprovalPolicy:
    for policy in ("ask", "auto", "deny"):
        if text == policy:
            return policy
    raise ConfigurationError(f"--approvals takes one of {', '.join(APPROVAL_POLICIES)}")


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigurationError(f"--attribute {text!r}: takes name=value")
        pairs[name] = value
    return pairs

"""``host_client run`` and ``host_client resume``: options to a job."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent_runner.config import tool_names
from host_client.config import APPROVAL_POLICIES, AgentOptions, ApprovalPolicy
from host_client.errors import ConfigurationError, SandspanError

from . import options as o
from .place import PAUSE, Wish, place_of

if TYPE_CHECKING:
    from host_client.sandbox.e2b.inventory import Listed


def run(
    prompt: Annotated[str, typer.Argument(help="What the agent is to do.")],
    sandbox: Annotated[str, typer.Option(help="e2b, local, or auto: e2b if E2B_API_KEY is set.")] = "auto",
    model: o.Model = None,
    allowed_tools: o.AllowedTools = "",
    disallowed_tools: o.DisallowedTools = "",
    permission_mode: o.PermissionMode = "default",
    cwd: Annotated[Path | None, typer.Option(help="Directory to work in, in place (local sandbox only).")] = None,
    upload: o.Upload = None,
    download: o.Download = None,
    user_id: Annotated[str | None, typer.Option(help="Who it is for: `user.id` on every span.")] = None,
    tenant_id: Annotated[str | None, typer.Option(help="`tenant.id` on every span.")] = None,
    attribute: o.Attribute = None,
    max_budget_usd: o.MaxBudgetUsd = None,
    max_turns: o.MaxTurns = None,
    approvals: o.Approvals = "ask",
    approval_timeout: o.ApprovalTimeout = 300.0,
    keep: Annotated[str | None, typer.Option(help="`pause` (E2B), or a directory that stays (local).")] = None,
    resume: Annotated[str | None, typer.Option(help="Claude session id to go on with; needs --keep DIRECTORY.")] = None,
    template: Annotated[str | None, typer.Option(help="Template in E2B. Default: sandspan.")] = None,
    timeout: o.Timeout = None,
    allow_out: Annotated[list[str] | None, typer.Option(help="Only host it may reach, in E2B; repeatable.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="name=value, listed with the sandbox; repeatable.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=value for all in the sandbox; repeatable.")] = None,
    keys: o.Keys = None,
    secret_name: o.SecretName = None,
    json_events: o.JsonEvents = False,
    trace_out: o.TraceOut = None,
) -> None:
    """Run one prompt to its end and show what happens."""
    from .run import Job, run_job  # the session, the sandbox and rich are not needed for --help

    if resume is not None and keep in (None, PAUSE):
        raise typer.BadParameter(
            "needs --keep DIRECTORY; `host_client resume` goes on with a paused one", param_hint="--resume"
        )
    try:
        wish = Wish(
            kind=sandbox,
            cwd=cwd,
            keep=keep,
            template=template,
            timeout=timeout,
            allow_out=tuple(allow_out or ()),
            metadata=_pairs("--metadata", metadata),
            envs=_pairs("--env", env),
            keys=keys,
            secret_name=secret_name,
        )
        options = AgentOptions(
            model=model,
            allowed_tools=tool_names(allowed_tools),
            disallowed_tools=tool_names(disallowed_tools),
            permission_mode=permission_mode,
            user_id=user_id,
            tenant_id=tenant_id,
            attributes=_pairs("--attribute", attribute),
            max_budget_usd=max_budget_usd,
            max_turns=max_turns,
            approval_timeout=approval_timeout,
            resume=resume,
        )
        job = Job(
            prompt=prompt,
            options=options,
            place=place_of(wish, os.environ),
            approvals=policy(approvals),
            environ=os.environ,
            upload=upload,
            download=download,
            json_events=json_events,
            trace_out=trace_out,
            resumable=keep == PAUSE,
        )
    except ConfigurationError as error:
        typer.echo(f"host_client run: {error}", err=True)
        raise typer.Exit(2) from None
    raise typer.Exit(run_job(job)[0])


def resume(
    session: Annotated[str, typer.Argument(help="The session that was paused: its id.")],
    prompt: Annotated[str, typer.Argument(help="What the agent is to do next.")],
    model: o.Model = None,
    allowed_tools: o.AllowedTools = "",
    disallowed_tools: o.DisallowedTools = "",
    permission_mode: o.PermissionMode = "default",
    upload: o.Upload = None,
    download: o.Download = None,
    attribute: o.Attribute = None,
    max_budget_usd: o.MaxBudgetUsd = None,
    max_turns: o.MaxTurns = None,
    approvals: o.Approvals = "ask",
    approval_timeout: o.ApprovalTimeout = 300.0,
    end: Annotated[bool, typer.Option("--end", help="Remove the sandbox afterwards; default: pause it.")] = False,
    timeout: o.Timeout = None,
    keys: o.Keys = None,
    json_events: o.JsonEvents = False,
    trace_out: o.TraceOut = None,
) -> None:
    """Go on with a session that was paused in E2B: its conversation, its files, its trace."""
    from .run import Job, run_job  # the session, the sandbox and rich are not needed for --help

    try:
        keep = None if end else PAUSE
        paused = _paused(session)
        options = AgentOptions(
            model=model,
            allowed_tools=tool_names(allowed_tools),
            disallowed_tools=tool_names(disallowed_tools),
            permission_mode=permission_mode,
            user_id=paused.user_id or None,
            tenant_id=paused.tenant_id or None,
            attributes=_pairs("--attribute", attribute),
            max_budget_usd=max_budget_usd,
            max_turns=max_turns,
            approval_timeout=approval_timeout,
        )
        wish = Wish(kind="e2b", keep=keep, timeout=timeout, keys=keys, resume=paused.sandbox_id)
        job = Job(
            prompt=prompt,
            options=options,
            place=place_of(wish, os.environ),
            approvals=policy(approvals),
            environ={**os.environ, "TRACEPARENT": paused.traceparent, "TRACESTATE": ""},
            upload=upload,
            download=download,
            json_events=json_events,
            trace_out=trace_out,
            session_id=session,
            resumable=not end,
        )
    except ConfigurationError as error:
        typer.echo(f"host_client resume: {error}", err=True)
        raise typer.Exit(2) from None
    except SandspanError as error:
        typer.echo(f"host_client: {error.error_type}: {error}", err=True)
        raise typer.Exit(3) from None
    raise typer.Exit(run_job(job)[0])


def _paused(session: str) -> Listed:
    if not os.environ.get("E2B_API_KEY"):
        raise ConfigurationError("no key for E2B: set E2B_API_KEY (e2b.dev/dashboard)")
    from host_client.sandbox.e2b.inventory import find_session  # imports e2b, 0.3 s

    return asyncio.run(find_session(os.environ, session))


def policy(text: str) -> ApprovalPolicy:
    """Return the approval policy of that name; raise `ConfigurationError`."""
    for known in ("ask", "auto", "deny"):
        if text == known:
            return known
    raise ConfigurationError(f"--approvals takes one of {', '.join(APPROVAL_POLICIES)}")


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigurationError(f"{option} {text!r}: takes name=value")
        pairs[name] = value
    return pairs

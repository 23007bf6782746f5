"""``host_client run`` and ``host_client resume``: options to a job."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent_runner.contract.tools import tool_names
from host_client.client.options import APPROVAL_POLICIES, AgentOptions, ApprovalPolicy
from host_client.errors import ConfigurationError

from . import _parameters as o
from ._checks import check_files, check_prompt
from ._failures import told
from ._place import PAUSE, Wish, place_of

if TYPE_CHECKING:
    from host_client.client.session import Session
    from host_client.sandbox.e2b.inventory import Listed

WHOLE_ID = 36
"""Characters of a session's id, a UUID."""
SHORTEST_PREFIX = 8
_NEXT = '"what to do next"'


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
    max_retries: o.MaxRetries = None,
    approvals: o.Approvals = "ask",
    approval_timeout: o.ApprovalTimeout = 300.0,
    keep: Annotated[str | None, typer.Option(help="`pause` (E2B), or a directory that stays (local).")] = None,
    resume: Annotated[str | None, typer.Option(help="Claude session id to go on with; needs --keep DIRECTORY.")] = None,
    template: Annotated[str | None, typer.Option(help="Template in E2B. Default: sandspan.")] = None,
    timeout: o.Timeout = None,
    allow_out: Annotated[
        list[str] | None,
        typer.Option(help="Only host, address or CIDR block it may reach, in E2B; repeatable."),
    ] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="name=value, listed with the sandbox; repeatable.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=value for all in the sandbox; repeatable.")] = None,
    keys: o.Keys = None,
    secret_name: o.SecretName = None,
    json_events: o.JsonEvents = False,
    trace_out: o.TraceOut = None,
) -> None:
    """Run one prompt to its end and show what happens."""
    from ._run import Job, run_job  # the session, the sandbox and rich are not needed for --help

    with told("host_client run"):
        check_prompt(prompt)
        check_files(upload, download, trace_out)
        answers = policy(approvals)
        if resume is not None and keep in (None, PAUSE):
            raise ConfigurationError(
                "--resume needs --keep DIRECTORY; `host_client resume` goes on with a paused session in E2B"
            )
        wish = Wish(
            kind=sandbox,
            cwd=cwd,
            upload=upload,
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
            attributes=_attributes(attribute),
            max_budget_usd=max_budget_usd,
            max_turns=max_turns,
            max_retries=max_retries,
            approval_timeout=approval_timeout,
            resume=resume,
        )
        job = Job(
            prompt=prompt,
            options=options,
            place=place_of(wish, os.environ),
            approvals=answers,
            environ=os.environ,
            upload=upload,
            download=download,
            json_events=json_events,
            trace_out=trace_out,
            go_on=_go_on(wish),
        )
    raise typer.Exit(run_job(job)[0])


def resume(
    session: Annotated[
        str,
        typer.Argument(
            help="The session that was paused: its id, or eight characters or more that only its id begins with."
        ),
    ],
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
    max_retries: o.MaxRetries = None,
    approvals: o.Approvals = "ask",
    approval_timeout: o.ApprovalTimeout = 300.0,
    end: Annotated[bool, typer.Option("--end", help="Remove the sandbox afterwards; default: pause it.")] = False,
    timeout: o.Timeout = None,
    keys: o.KeysAgain = None,
    json_events: o.JsonEvents = False,
    trace_out: o.TraceOut = None,
) -> None:
    """Go on with a session that was paused in E2B: its conversation, its files, its trace."""
    from ._run import Job, run_job  # the session, the sandbox and rich are not needed for --help

    with told("host_client resume"):
        check_prompt(prompt)
        check_files(upload, download, trace_out)
        answers = policy(approvals)
        options = AgentOptions(
            model=model,
            allowed_tools=tool_names(allowed_tools),
            disallowed_tools=tool_names(disallowed_tools),
            permission_mode=permission_mode,
            attributes=_attributes(attribute),
            max_budget_usd=max_budget_usd,
            max_turns=max_turns,
            max_retries=max_retries,
            approval_timeout=approval_timeout,
        )
        paused = _paused(session)
        keep = None if end else PAUSE
        wish = Wish(kind="e2b", keep=keep, timeout=timeout, keys=_keys(keys, paused), resume=paused.sandbox_id)
        job = Job(
            prompt=prompt,
            options=replace(options, user_id=paused.user_id or None, tenant_id=paused.tenant_id or None),
            place=place_of(wish, os.environ),
            approvals=answers,
            environ={**os.environ, "TRACEPARENT": paused.traceparent, "TRACESTATE": ""},
            upload=upload,
            download=download,
            json_events=json_events,
            trace_out=trace_out,
            session_id=paused.session_id,
            go_on=_go_on(wish),
        )
    raise typer.Exit(run_job(job)[0])


def _paused(session: str) -> Listed:
    if len(session) < SHORTEST_PREFIX:
        raise ConfigurationError(
            f"session {session!r}: takes its id, or the first {SHORTEST_PREFIX} characters of it or more"
        )
    if not os.environ.get("E2B_API_KEY"):
        raise ConfigurationError("no key for E2B: set E2B_API_KEY (e2b.dev/dashboard)")
    return asyncio.run(_find(session))


async def _find(session: str) -> Listed:
    """Return the sandbox of the session whose id is this, or the only one whose id begins so."""
    from host_client.sandbox.e2b.inventory import find_session, sandboxes  # imports e2b, 0.3 s

    if len(session) < WHOLE_ID:
        known = {each.session_id for each in await sandboxes(os.environ, {}) if each.session_id.startswith(session)}
        if len(known) > 1 and session not in known:
            raise ConfigurationError(f"the ids of {len(known)} sessions begin with {session}: give more of it")
        session = known.pop() if len(known) == 1 else session
    return await find_session(os.environ, session)


def _keys(wanted: str | None, paused: Listed) -> str | None:
    """Return where the key is to be: where it was, unless told otherwise."""
    if wanted == "e2b-secrets" and paused.keys not in ("", "e2b-secrets"):
        raise ConfigurationError(
            f"--keys e2b-secrets: this session began with --keys {paused.keys}, so E2B's proxy adds no key for it"
        )
    return wanted or paused.keys or None


def _go_on(wish: Wish) -> Callable[[Session], str | None] | None:
    """Return what makes of a session the command that goes on with it; None where nothing of it is kept."""
    if wish.keep == PAUSE:
        return lambda session: f"host_client resume {session.id} {_NEXT}"
    if wish.keep is None:
        return None
    where = ("--sandbox", "local") if wish.kind == "local" else ()
    # Claude looks for a conversation by the directory that it was held in.
    place = ("--cwd", str(wish.cwd)) if wish.cwd is not None else ()
    kept = shlex.join((*where, *place, "--keep", wish.keep))

    def command(session: Session) -> str | None:
        claude = session.claude_session_id
        return f"host_client run {_NEXT} {kept} --resume {shlex.quote(claude)}" if claude else None

    return command


def policy(text: str) -> ApprovalPolicy:
    """Return the approval policy of that name; raise `ConfigurationError`."""
    for known in ("ask", "auto", "deny"):
        if text == known:
            return known
    raise ConfigurationError(f"--approvals takes one of {', '.join(APPROVAL_POLICIES)}")


def _attributes(texts: list[str] | None) -> dict[str, str]:
    for text in texts or ():
        if "," in text:
            raise ConfigurationError(f"--attribute {text!r}: takes name=value, without a comma")
    return _pairs("--attribute", texts)


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigurationError(f"{option} {text!r}: takes name=value")
        pairs[name] = value
    return pairs

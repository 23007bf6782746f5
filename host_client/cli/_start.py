"""``host_client run`` and ``host_client resume``: turn their options into a `Job` and run it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from host_client.client.options import APPROVAL_POLICIES, ApprovalPolicy
from host_client.errors import ConfigurationError
from host_client.signals import run_until_signal
from host_client.workspace import MAX_BYTES, Workspace

from . import _parameters as o
from ._agent_flags import AgentFlags, with_agent_flags
from ._checks import check_attachments, check_e2b_key, check_files, check_prompt
from ._failures import reported_errors
from ._pairs import pairs
from ._place import PAUSE, SandboxChoice, place_of

if TYPE_CHECKING:
    from host_client.client.session import Session
    from host_client.sandbox.e2b.inventory import Listed

    from ._handover import Handover

MIB = 1024 * 1024
WHOLE_ID = 36
"""Length of a session's id, a UUID."""
SHORTEST_PREFIX = 8
"""Minimum number of characters that `resume` takes for a session's id."""
_NEXT = '"what to do next"'


@with_agent_flags
def run(
    prompt: Annotated[str, typer.Argument(help="What the agent should do.")],
    flags: AgentFlags,
    sandbox: o.SandboxKind = "auto",
    cwd: o.Cwd = None,
    cwd_mib: o.CwdMib = MAX_BYTES // MIB,
    apply: o.Apply = False,
    patch: o.Patch = None,
    attach: o.Attach = None,
    upload: o.Upload = None,
    download: o.Download = None,
    user_id: Annotated[str | None, typer.Option(help="User of the session: `user.id` on every span.")] = None,
    tenant_id: Annotated[str | None, typer.Option(help="Tenant of the session: `tenant.id` on every span.")] = None,
    approvals: o.Approvals = "ask",
    keep: Annotated[str | None, typer.Option(help="`pause` (E2B), or a directory to keep (local).")] = None,
    resume: Annotated[str | None, typer.Option(help="Claude session id to continue; needs --keep DIRECTORY.")] = None,
    template: o.Template = None,
    timeout: o.Timeout = None,
    allow_out: Annotated[
        list[str] | None,
        typer.Option(help="The only host, address or CIDR block that it may reach, in E2B; repeatable."),
    ] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="name=value to list with the sandbox; repeatable.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="Variable NAME=value in the sandbox; repeatable.")] = None,
    keys: o.Keys = None,
    secret_name: o.SecretName = None,
    json_events: o.JsonEvents = False,
    trace_out: o.TraceOut = None,
) -> None:
    """Run one prompt to its end and show its events."""
    from ._run import Job, run_job  # the session, the sandbox and rich are not needed for --help

    with reported_errors("host_client run"):
        check_prompt(prompt)
        attachments = tuple(attach or ())
        check_attachments(prompt, attachments)
        check_files(upload, download, trace_out, patch)
        folder = _folder(cwd, cwd_mib, patch, apply=apply)
        answers = policy(approvals)
        options = flags.agent_options(user_id=user_id, tenant_id=tenant_id, resume=resume)
        if options.resume is not None and keep in (None, PAUSE):
            raise ConfigurationError(
                "--resume needs --keep DIRECTORY; `host_client resume` continues a paused session in E2B"
            )
        choice = SandboxChoice(
            kind=sandbox,
            cwd=cwd,
            upload=upload,
            keep=keep,
            template=template,
            timeout=timeout,
            allow_out=tuple(allow_out or ()),
            metadata=pairs("--metadata", metadata),
            envs=pairs("--env", env),
            keys=keys,
            secret_name=secret_name,
        )
        job = Job(
            prompt=prompt,
            attachments=attachments,
            options=options,
            place=place_of(choice, os.environ),
            approvals=answers,
            environ=os.environ,
            upload=upload,
            download=download,
            folder=folder,
            json_events=json_events,
            trace_out=trace_out,
            continuation=_continuation(choice),
        )
    raise typer.Exit(run_job(job)[0])


@with_agent_flags
def resume(
    session: Annotated[
        str,
        typer.Argument(help="Id of the paused session; its first 8 characters are enough if they are unique."),
    ],
    prompt: Annotated[str, typer.Argument(help="What the agent should do next.")],
    flags: AgentFlags,
    attach: o.Attach = None,
    upload: o.Upload = None,
    download: o.Download = None,
    approvals: o.Approvals = "ask",
    end: Annotated[bool, typer.Option("--end", help="Remove the sandbox after the run. Default: pause it.")] = False,
    timeout: o.Timeout = None,
    keys: o.KeysOfResume = None,
    json_events: o.JsonEvents = False,
    trace_out: o.TraceOut = None,
) -> None:
    """Continue a session that was paused in E2B, with its conversation, files and trace."""
    from ._run import Job, run_job  # the session, the sandbox and rich are not needed for --help

    with reported_errors("host_client resume"):
        check_prompt(prompt)
        attachments = tuple(attach or ())
        check_attachments(prompt, attachments)
        check_files(upload, download, trace_out)
        answers = policy(approvals)
        options = flags.agent_options()
        paused = _paused(session)
        keep = None if end else PAUSE
        choice = SandboxChoice(
            kind="e2b", keep=keep, timeout=timeout, keys=_keys(keys, paused), resume=paused.sandbox_id
        )
        job = Job(
            prompt=prompt,
            attachments=attachments,
            options=replace(options, user_id=paused.user_id or None, tenant_id=paused.tenant_id or None),
            place=place_of(choice, os.environ),
            approvals=answers,
            environ={**os.environ, "TRACEPARENT": paused.traceparent, "TRACESTATE": ""},
            upload=upload,
            download=download,
            json_events=json_events,
            trace_out=trace_out,
            session_id=paused.session_id,
            continuation=_continuation(choice),
        )
    raise typer.Exit(run_job(job)[0])


def _folder(cwd: Path | None, mib: int, patch: Path | None, *, apply: bool) -> Handover | None:
    """Return the folder of a run and where its changes go; raise `ConfigurationError` for options without a folder."""
    if cwd is None:
        if apply or patch is not None:
            raise ConfigurationError(f"{'--apply' if apply else '--patch'} needs --cwd: it is about its changes")
        return None
    from ._handover import Handover  # rich is not needed for --help

    if mib <= 0:
        raise ConfigurationError("--cwd-mib takes a number above 0")
    return Handover(cwd=Workspace(cwd, max_bytes=mib * MIB), apply=apply, patch=patch)


def _paused(session: str) -> Listed:
    """Return the sandbox of a session; raise `ConfigurationError` for an id that is too short and for a missing key."""
    if len(session) < SHORTEST_PREFIX:
        raise ConfigurationError(
            f"session {session!r}: give its id, or at least the first {SHORTEST_PREFIX} characters of it"
        )
    check_e2b_key(os.environ)
    return run_until_signal(_find(session))


async def _find(session: str) -> Listed:
    """Return the sandbox of the session with this id, or of the only session whose id begins with it."""
    from host_client.sandbox.e2b.inventory import find_session, sandboxes  # imports e2b, 0.3 s

    if len(session) < WHOLE_ID:
        known = {each.session_id for each in await sandboxes(os.environ, {}) if each.session_id.startswith(session)}
        if len(known) > 1 and session not in known:
            raise ConfigurationError(f"the ids of {len(known)} sessions begin with {session}: give more characters")
        session = known.pop() if len(known) == 1 else session
    return await find_session(os.environ, session)


def _keys(option: str | None, paused: Listed) -> str | None:
    """Return the way to keep the model's key: the option, or by default the way in which the session began."""
    if option == "e2b-secrets" and paused.keys not in ("", "e2b-secrets"):
        raise ConfigurationError(
            f"--keys e2b-secrets: this session began with --keys {paused.keys}, so E2B's proxy has no key to add"
        )
    return option or paused.keys or None


def _continuation(choice: SandboxChoice) -> Callable[[Session], str | None] | None:
    """Return a function that returns the command to continue a session; None if the session is not kept."""
    if choice.keep == PAUSE:
        return lambda session: f"host_client resume {session.id} {_NEXT}"
    if choice.keep is None:
        return None
    where = ("--sandbox", "local") if choice.kind == "local" else ()
    # Claude finds a conversation only in the directory in which it began.
    place = ("--cwd", str(choice.cwd)) if choice.cwd is not None else ()
    kept = shlex.join((*where, *place, "--keep", choice.keep))

    def command(session: Session) -> str | None:
        claude = session.claude_session_id
        return f"host_client run {_NEXT} {kept} --resume {shlex.quote(claude)}" if claude else None

    return command


def policy(text: str) -> ApprovalPolicy:
    """Return the approval policy of that name; raise `ConfigurationError`."""
    if text not in APPROVAL_POLICIES:
        raise ConfigurationError(f"--approvals takes one of {', '.join(APPROVAL_POLICIES)}")
    return cast("ApprovalPolicy", text)

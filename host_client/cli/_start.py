"""``host_client run`` and ``host_client resume``: turn their options into a `Job` and run it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from agent_runner.contract.sanitize import Content
from agent_runner.contract.tools import tool_names
from host_client.client.options import APPROVAL_POLICIES, AgentOptions, ApprovalPolicy, options_from
from host_client.errors import ConfigurationError
from host_client.signals import run_until_signal

from . import _parameters as o
from ._checks import check_e2b_key, check_files, check_prompt
from ._failures import reported_errors
from ._place import PAUSE, SandboxChoice, place_of

if TYPE_CHECKING:
    from host_client.client.session import Session
    from host_client.sandbox.e2b.inventory import Listed

WHOLE_ID = 36
"""Length of a session's id, a UUID."""
SHORTEST_PREFIX = 8
"""Minimum number of characters that `resume` takes for a session's id."""
_NEXT = '"what to do next"'


def run(
    prompt: Annotated[str, typer.Argument(help="What the agent should do.")],
    sandbox: o.SandboxKind = "auto",
    model: o.Model = None,
    allowed_tools: o.AllowedTools = "",
    disallowed_tools: o.DisallowedTools = "",
    permission_mode: o.PermissionMode = "default",
    cwd: Annotated[Path | None, typer.Option(help="Existing directory to work in (local sandbox only).")] = None,
    upload: o.Upload = None,
    download: o.Download = None,
    user_id: Annotated[str | None, typer.Option(help="User of the session: `user.id` on every span.")] = None,
    tenant_id: Annotated[str | None, typer.Option(help="Tenant of the session: `tenant.id` on every span.")] = None,
    attribute: o.Attribute = None,
    content: o.Content = "preview",
    tool_content: o.ToolContent = "none",
    deep_trace: o.DeepTrace = False,
    max_budget_usd: o.MaxBudgetUsd = None,
    max_turns: o.MaxTurns = None,
    max_retries: o.MaxRetries = None,
    verbatim_prompts: o.VerbatimPrompts = False,
    options: o.Options = None,
    approvals: o.Approvals = "ask",
    approval_timeout: o.ApprovalTimeout = 300.0,
    background_timeout: o.BackgroundTimeout = 600.0,
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
        check_files(upload, download, trace_out)
        answers = policy(approvals)
        if resume is not None and keep in (None, PAUSE):
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
            metadata=_pairs("--metadata", metadata),
            envs=_pairs("--env", env),
            keys=keys,
            secret_name=secret_name,
        )
        given = _agent_options(
            options,
            model=model,
            allowed_tools=tool_names(allowed_tools),
            disallowed_tools=tool_names(disallowed_tools),
            permission_mode=permission_mode,
            user_id=user_id,
            tenant_id=tenant_id,
            attributes=_attributes(attribute),
            content=cast("Content", content),
            tool_content=cast("Content", tool_content),
            deep_trace=deep_trace,
            max_budget_usd=max_budget_usd,
            max_turns=max_turns,
            max_retries=max_retries,
            verbatim_prompts=verbatim_prompts,
            approval_timeout=approval_timeout,
            background_timeout=background_timeout,
            resume=resume,
        )
        job = Job(
            prompt=prompt,
            options=given,
            place=place_of(choice, os.environ),
            approvals=answers,
            environ=os.environ,
            upload=upload,
            download=download,
            json_events=json_events,
            trace_out=trace_out,
            continuation=_continuation(choice),
        )
    raise typer.Exit(run_job(job)[0])


def resume(
    session: Annotated[
        str,
        typer.Argument(help="Id of the paused session; its first 8 characters are enough if they are unique."),
    ],
    prompt: Annotated[str, typer.Argument(help="What the agent should do next.")],
    model: o.Model = None,
    allowed_tools: o.AllowedTools = "",
    disallowed_tools: o.DisallowedTools = "",
    permission_mode: o.PermissionMode = "default",
    upload: o.Upload = None,
    download: o.Download = None,
    attribute: o.Attribute = None,
    content: o.Content = "preview",
    tool_content: o.ToolContent = "none",
    deep_trace: o.DeepTrace = False,
    max_budget_usd: o.MaxBudgetUsd = None,
    max_turns: o.MaxTurns = None,
    max_retries: o.MaxRetries = None,
    verbatim_prompts: o.VerbatimPrompts = False,
    options: o.Options = None,
    approvals: o.Approvals = "ask",
    approval_timeout: o.ApprovalTimeout = 300.0,
    background_timeout: o.BackgroundTimeout = 600.0,
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
        check_files(upload, download, trace_out)
        answers = policy(approvals)
        given = _agent_options(
            options,
            model=model,
            allowed_tools=tool_names(allowed_tools),
            disallowed_tools=tool_names(disallowed_tools),
            permission_mode=permission_mode,
            attributes=_attributes(attribute),
            content=cast("Content", content),
            tool_content=cast("Content", tool_content),
            deep_trace=deep_trace,
            max_budget_usd=max_budget_usd,
            max_turns=max_turns,
            max_retries=max_retries,
            verbatim_prompts=verbatim_prompts,
            approval_timeout=approval_timeout,
            background_timeout=background_timeout,
        )
        paused = _paused(session)
        keep = None if end else PAUSE
        choice = SandboxChoice(
            kind="e2b", keep=keep, timeout=timeout, keys=_keys(keys, paused), resume=paused.sandbox_id
        )
        job = Job(
            prompt=prompt,
            options=replace(given, user_id=paused.user_id or None, tenant_id=paused.tenant_id or None),
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


def _agent_options(file: Path | None, **given: Any) -> AgentOptions:
    """Return the options in a JSON file, if there is one, and over them those that differ from their defaults."""
    if file is None:
        return AgentOptions(**given)
    try:
        document = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--options {file}: {error.strerror}") from None
    defaults = AgentOptions()
    try:
        return options_from(document, **{name: v for name, v in given.items() if v != getattr(defaults, name)})
    except ConfigurationError as error:
        raise ConfigurationError(f"--options {file}: {error}") from None


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

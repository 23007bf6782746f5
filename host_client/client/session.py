"""Opens a session: one sandbox, one runner, one trace and a conversation with the agent.

::

    async with open_session("Fix the tests", options) as session:
        async for event in session:
            ...

Events are read in the background, so the agent works on while the caller is busy. If too many events wait for the
caller, reading pauses, and calls of host tools and hooks wait; the runner's journal keeps the events meanwhile.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent_runner.contract.protocol import AnyEvent
from host_client.errors import ConfigurationError
from host_client.sandbox import LocalSandbox, Sandbox
from host_client.telemetry import OnOwnSpans, Root, Telemetry, root_of, telemetry_of
from host_client.workspace import SessionFolder, Workspace

from ._arguments import check_arguments
from ._caller_parts import AnyOptions, caller_parts
from ._outcome import SessionFailure
from ._policy import Approver
from ._session import SPOOL_SECONDS, Session, Whereabouts
from .attachments import Attachable, prompt_of
from .hooks import HooksByEvent
from .host_tools import AnyTool
from .mailbox import Outlet
from .options import ApprovalPolicy, common_attributes

__all__ = [
    "SPOOL_SECONDS",
    "Approver",
    "Session",
    "SessionFailure",
    "Whereabouts",
    "common_attributes",
    "open_session",
    "until_closed",
]


@asynccontextmanager
async def open_session(
    prompt: str | None = None,
    options: AnyOptions | None = None,
    *,
    further_options: Mapping[str, Any] | None = None,
    attachments: Sequence[Attachable] = (),
    sandbox: Sandbox | None = None,
    approvals: ApprovalPolicy | Approver = "ask",
    host_tools: Sequence[AnyTool] = (),
    hooks: HooksByEvent | None = None,
    telemetry: Telemetry | None = None,
    traceparent: str | None = None,
    tracestate: str = "",
    upload: Path | None = None,
    cwd: Workspace | Path | str | None = None,
    environ: Mapping[str, str] | None = None,
    stop_timeout: float = 10.0,
    session_id: str | None = None,
    root: Root | None = None,
    on_own_spans: OnOwnSpans | None = None,
    outlet: Outlet[AnyEvent] | None = None,
) -> AsyncGenerator[Session]:
    """Create a sandbox and start the runner in it; end and remove both at the end of the block, also after an error.

    ``attachments`` of the prompt are images, PDFs and texts, as a path, as bytes or as an `Attachment` with a name.
    ``cwd`` is a folder of this machine: a local agent works in it, and in E2B in a copy of it, whose changes
    `Session.changes` returns.
    ``approvals``: ``"ask"`` leaves each request to the caller's loop, ``"auto"`` allows it, ``"deny"`` denies it, and
    an async function decides it. ``host_tools`` are functions of this process that the agent may call (`host_tool`),
    ``hooks`` functions that its CLI calls at events (`HookMatcher`). ``options`` may be the SDK's own
    ``ClaudeAgentOptions``: its ``can_use_tool`` (in place of ``approvals``), hooks, in-process MCP servers and
    ``stderr`` run in this process, too. ``further_options`` are fields of `AgentOptions` that the SDK does not have,
    such as ``user_id``. ``environ`` (default: this process's environment) holds the model's credentials.
    ``stop_timeout`` is the seconds that a runner has to end after it was told to stop, and again after SIGTERM, before
    it is killed. ``session_id`` continues the session of a sandbox that was kept; by default the session is new.
    ``root`` is a root span of the session that `root_of` made earlier, and replaces ``traceparent``. ``on_own_spans``
    is called with the spans that the host itself ends, as serialized OTLP requests. ``outlet`` receives the events in
    place of the caller's loop.
    Raise `ConfigurationError` and `SandboxStartError`.
    """
    check_arguments(**locals())
    if root is not None and traceparent is not None:
        raise ConfigurationError("root and traceparent exclude each other: pass the traceparent to root_of")
    first = await prompt_of(prompt or "", attachments) if prompt is not None or attachments else None
    environ = os.environ if environ is None else environ
    telemetry = telemetry or telemetry_of(environ)
    async with caller_parts(options, further_options or {}, approvals, host_tools, hooks) as parts:
        cwd = cwd if cwd is not None else parts.cwd
        if cwd is not None and upload is not None:
            raise ConfigurationError("cwd and upload exclude each other: cwd sends its folder by itself")
        session = Session(
            parts.options,
            sandbox or LocalSandbox(),
            session_id=session_id or str(uuid.uuid4()),
            root=root or root_of(traceparent, tracestate),
            approvals=parts.approvals,
            functions=parts.functions,
            telemetry=telemetry,
            stop_timeout=stop_timeout,
            on_own_spans=on_own_spans,
            outlet=outlet,
            folder=SessionFolder(cwd) if cwd is not None else None,
        )
        async with until_closed(session):
            await session.start(first, upload, environ, telemetry.preview)
            yield session


@asynccontextmanager
async def until_closed(session: Session) -> AsyncGenerator[None]:
    """Close a session at the end of the block; an exception in the block is recorded as the session's failure."""
    try:
        yield
    except BaseException as error:
        session.failed(error)
        raise
    finally:
        await session.close()

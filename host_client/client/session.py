"""A session: one sandbox, one runner, one trace, and a conversation over it.

::

    async with open_session("Fix the tests", options) as session:
        async for event in session:
            ...

The runner is read in the background, so that events keep flowing while the caller is busy. A caller that is busy for
too long stops the reading; the runner's journal holds the events meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from agent_runner.contract.protocol import AnyEvent
from host_client.errors import ConfigurationError
from host_client.sandbox import LocalSandbox, Sandbox
from host_client.telemetry import OnOwnSpans, Root, SessionTrace, Telemetry, root_of, telemetry_of

from ._arguments import check_arguments
from ._commander import Commander
from ._outcome import SessionFailure, SessionOutcome
from ._policy import Approver
from ._sandboxed_runner import SandboxedRunner, Whereabouts
from ._session import Session
from ._session_stream import SessionStream
from .mailbox import Mailbox, Outlet
from .options import AgentOptions, ApprovalPolicy, common_attributes, who_of

__all__ = [
    "Approver",
    "Session",
    "SessionFailure",
    "Whereabouts",
    "common_attributes",
    "open_session",
    "session_of",
    "until_closed",
]


@asynccontextmanager
async def open_session(
    prompt: str | None = None,
    options: AgentOptions | None = None,
    *,
    sandbox: Sandbox | None = None,
    approvals: ApprovalPolicy | Approver = "ask",
    telemetry: Telemetry | None = None,
    traceparent: str | None = None,
    tracestate: str = "",
    upload: Path | None = None,
    environ: Mapping[str, str] | None = None,
    stop_timeout: float = 10.0,
    session_id: str | None = None,
    root: Root | None = None,
    on_own_spans: OnOwnSpans | None = None,
    outlet: Outlet[AnyEvent] | None = None,
) -> AsyncGenerator[Session]:
    """Create a sandbox, start the runner in it, and clean both up at the end, whatever happens.

    ``approvals``: ``"ask"`` leaves each request to the caller's loop, ``"auto"`` and ``"deny"`` answer
    it, a function decides it. ``environ`` (default: this process's) gives the model's credentials.
    ``stop_timeout`` is how many seconds a runner that was told to stop may take before it is terminated,
    and again before it is killed. ``session_id`` continues the session of a sandbox that was kept; by default the
    session is new. ``root`` is the session's root span where it was announced before (`root_of`), and takes the place
    of ``traceparent``. ``on_own_spans`` is called with the spans that the host itself ends, as serialized OTLP
    requests. ``outlet`` takes the events as they come, in place of the caller's loop.
    Raise `ConfigurationError` and `SandboxStartError`.
    """
    check_arguments(
        prompt=prompt,
        options=options,
        sandbox=sandbox,
        approvals=approvals,
        telemetry=telemetry,
        traceparent=traceparent,
        tracestate=tracestate,
        upload=upload,
        environ=environ,
        stop_timeout=stop_timeout,
        session_id=session_id,
        root=root,
        on_own_spans=on_own_spans,
    )
    if root is not None and traceparent is not None:
        raise ConfigurationError("root and traceparent exclude each other: give the traceparent to root_of")
    environ = os.environ if environ is None else environ
    telemetry = telemetry or telemetry_of(environ)
    session = session_of(
        options or AgentOptions(),
        sandbox or LocalSandbox(),
        session_id=session_id or str(uuid.uuid4()),
        root=root or root_of(traceparent, tracestate),
        approvals=approvals,
        telemetry=telemetry,
        stop_timeout=stop_timeout,
        on_own_spans=on_own_spans,
        outlet=outlet,
    )
    async with until_closed(session):
        await session.start(prompt, upload, environ, telemetry.preview)
        yield session


def session_of(
    options: AgentOptions,
    sandbox: Sandbox,
    *,
    session_id: str,
    root: Root,
    approvals: ApprovalPolicy | Approver,
    telemetry: Telemetry,
    stop_timeout: float,
    on_own_spans: OnOwnSpans | None,
    outlet: Outlet[AnyEvent] | None,
) -> Session:
    """Return a session, composed of its parts, that has not begun; see `open_session` for the arguments."""
    ended = asyncio.Event()
    mailbox = Mailbox[AnyEvent]()
    if outlet is None:
        outlet = mailbox
    else:
        mailbox.finish()  # no event comes there: iterating ends at once
    trace = SessionTrace(
        telemetry, common_attributes(options, session_id), root, who_of(options, session_id), on_own_spans
    )
    outcome = SessionOutcome()
    commander = Commander(approvals, options.user_id, trace, outlet, ended)
    stream = SessionStream(trace, outcome, commander, outlet, ended)
    runner = SandboxedRunner(sandbox, trace, outcome, commander, stream, outlet, ended, stop_timeout)
    return Session(session_id, options, trace, outcome, commander, runner, mailbox, ended)


@asynccontextmanager
async def until_closed(session: Session) -> AsyncGenerator[None]:
    """Close a session at the end of the block; an exception in the block is the reason why the session failed."""
    try:
        yield
    except BaseException as error:
        session.failed(error)
        raise
    finally:
        await session.close()

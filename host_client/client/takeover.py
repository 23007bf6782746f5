"""Continues a session whose host died: in its sandbox, with its runner, as part of the same trace.

::

    async with take_over(whereabouts, options, session_id=…, root=…, seen_seq=17, sandbox=E2BSandbox(…)) as session:
        async for event in session:  # from 18 on
            ...
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

from agent_runner.contract.protocol import AnyEvent
from host_client.errors import SandboxGoneError
from host_client.sandbox import Sandbox
from host_client.sandbox.local import AGENT_LOST
from host_client.telemetry import OnOwnSpans, Root, Telemetry, telemetry_of

from ._arguments import check_arguments
from ._host_functions import HostFunctions
from ._session_stream import Replay
from .hooks import HooksByEvent
from .host_tools import AnyTool
from .mailbox import Outlet
from .options import AgentOptions, ApprovalPolicy
from .session import Approver, Session, Whereabouts, until_closed

CATCH_UP_SECONDS = 30.0
"""Seconds to wait for the next event of the journal, before the replay of earlier events is given up."""


@asynccontextmanager
async def take_over(
    whereabouts: Whereabouts,
    options: AgentOptions,
    *,
    session_id: str,
    root: Root,
    seen_seq: int,
    sandbox: Sandbox,
    approvals: ApprovalPolicy | Approver = "ask",
    host_tools: Sequence[AnyTool] = (),
    hooks: HooksByEvent | None = None,
    telemetry: Telemetry | None = None,
    environ: Mapping[str, str] | None = None,
    stop_timeout: float = 10.0,
    on_own_spans: OnOwnSpans | None = None,
    outlet: Outlet[AnyEvent] | None = None,
) -> AsyncGenerator[Session]:
    """Connect to the sandbox of a session whose host died, and continue the session; see `open_session`.

    ``options``, ``session_id`` and ``root`` are those that the session began with. ``sandbox`` is a new object of the
    same kind, which has not created a sandbox. ``host_tools`` and ``hooks`` are those of the session; a call that the
    dead host had not answered is made again if its tool is idempotent, and fails otherwise. Events up to ``seen_seq``
    only restore the session's state; iterating yields the events after it. Requests without a reply wait again. An
    agent in a local sandbox ended with its host, so its session fails once the journal has been read.
    Raise `SandboxGoneError` if the sandbox no longer exists; the session has then ended, and its span too. After any
    other exception at the start nothing has ended, and the takeover can be tried again.
    """
    check_arguments(**locals())
    session = Session(
        options,
        sandbox,
        session_id=session_id,
        root=root,
        approvals=approvals,
        functions=HostFunctions(host_tools, hooks),
        telemetry=telemetry or telemetry_of(os.environ if environ is None else environ),
        stop_timeout=stop_timeout,
        on_own_spans=on_own_spans,
        outlet=outlet,
    )
    replay = Replay(seen_seq, AGENT_LOST if whereabouts.info.kind == "local" else None)
    async with until_closed(session):
        try:
            await session.adopt(whereabouts, replay, CATCH_UP_SECONDS)
        except SandboxGoneError:
            raise
        except BaseException:
            await session.abandon()
            raise
        yield session

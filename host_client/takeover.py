"""Goes on with a session whose host died: in its sandbox, with its runner, as the same span of the same trace.

::

    async with take_over(whereabouts, options, session_id=…, root=…, seen_seq=17, sandbox=E2BSandbox(…)) as session:
        async for event in session:  # from 18 on
            ...
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from agent_runner.protocol import AnyEvent, ApprovalRequest, End, QuestionRequest
from agent_runner.trace_context import TraceContext

from .arguments import check_arguments
from .config import AgentOptions, ApprovalPolicy
from .conversation import Approver
from .errors import SandboxGoneError
from .mailbox import Outlet
from .reader import Fault
from .sandbox import Sandbox
from .sandbox.local import AGENT_LOST
from .session import Session, Whereabouts, until_closed
from .telemetry import OnOwnSpans, Root, Telemetry, telemetry_of

CATCH_UP_SECONDS = 30.0
"""How long the journal may bring nothing before what the dead host has seen of it is given up."""

_logger = logging.getLogger(__name__)


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
    telemetry: Telemetry | None = None,
    environ: Mapping[str, str] | None = None,
    stop_timeout: float = 10.0,
    on_own_spans: OnOwnSpans | None = None,
    outlet: Outlet[AnyEvent] | None = None,
) -> AsyncGenerator[Session]:
    """Find the sandbox of a session whose host died, and go on as that host would have: see `open_session`.

    ``options``, ``session_id`` and ``root`` are the session's own; ``sandbox`` is a new one of the same kind, that has
    made nothing yet. Events up to ``seen_seq`` only restore what the session knows; iterating gives those after it.
    What waits for an answer waits again. An agent that ran locally has lost its host, and so fails once its journal has
    been read.
    Raise `SandboxGoneError` where the sandbox is no more: the session is over, and its span ended. After any other
    exception at the start nothing has been ended, and it can be tried again.
    """
    check_arguments(
        whereabouts=whereabouts,
        seen_seq=seen_seq,
        options=options,
        session_id=session_id,
        root=root,
        sandbox=sandbox,
        approvals=approvals,
        telemetry=telemetry,
        environ=environ,
        stop_timeout=stop_timeout,
        on_own_spans=on_own_spans,
    )
    environ = os.environ if environ is None else environ
    session = _TakenOver(
        options,
        sandbox,
        approvals,
        telemetry or telemetry_of(environ),
        root,
        environ,
        stop_timeout,
        session_id,
        on_own_spans,
        outlet,
    )
    async with until_closed(session):
        try:
            await session.catch_up(whereabouts, seen_seq)
        except SandboxGoneError:
            raise
        except BaseException:
            await session.abandon()
            raise
        yield session


class _TakenOver(Session):
    """A session that another process began."""

    _seen_seq = 0
    _recalled = 0

    async def catch_up(self, whereabouts: Whereabouts, seen_seq: int) -> None:
        """Find the sandbox and its runner, and read the journal up to what the dead host has seen."""
        self.run_id, self._seen_seq = whereabouts.run_id, seen_seq
        self._caught_up = asyncio.Event()
        for trace_id in whereabouts.trace_ids:
            self.trace.admit(TraceContext(trace_id, ""))
        self.trace.recall_own(whereabouts.own_spans)
        with self.trace.current():
            self._process = await self._sandbox.adopt(whereabouts.info, whereabouts.process_id)
            self.info = whereabouts.info
            if not seen_seq:
                self._go_on()
            self._follow_runner(self._process, self.info)
            await self._until_caught_up()

    async def _until_caught_up(self) -> None:
        """Wait for what the dead host has seen, for as long as the journal brings something."""
        while not self._caught_up.is_set() and not self.ended.is_set():
            before = self._recalled
            waits = [asyncio.ensure_future(event.wait()) for event in (self._caught_up, self.ended)]
            await asyncio.wait(waits, timeout=CATCH_UP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if self._recalled == before and not self._caught_up.is_set() and not self.ended.is_set():
                _logger.warning("session %s: its journal ends at %d, before %d", self.id, before, self._seen_seq)
                self._go_on()

    def _go_on(self) -> None:
        """Leave no request to nobody that still waits."""
        self._caught_up.set()
        for request in self._waiting.requests.values():
            super()._asked(request)

    async def _take(self, item: AnyEvent | Fault, size: int) -> None:
        if isinstance(item, Fault) or item.seq is None:
            if self._caught_up.is_set():
                await super()._take(item, size)
        elif item.seq <= self._seen_seq:
            self._recall(item, size)
            self._recalled = item.seq
            if item.seq == self._seen_seq:
                self._go_on()
        else:
            if not self._caught_up.is_set():  # a hole in the journal, where the last one seen was
                self._go_on()
            if isinstance(item, End) and self.info is not None and self.info.kind == "local":
                self._fail("sandbox", AGENT_LOST)
                await self._tell("sandbox", AGENT_LOST)
            await super()._take(item, size)

    def _recall(self, event: AnyEvent, size: int) -> None:
        """Know what the dead host has told."""
        try:
            self.trace.recall(event, size)
        except (ValueError, OverflowError):  # a forged value: the dead host has told of it
            return
        self._follow(event, size)

    def _asked(self, event: ApprovalRequest | QuestionRequest) -> None:
        if self._caught_up.is_set():  # before that it may have been answered
            super()._asked(event)

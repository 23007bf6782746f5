"""The sessions of a service, as the routes use them, whichever process owns a session.

Commands to a session go through the store to the process that owns it: the one that created the session, or took it
over from a dead process. With a shared store, several processes serve the same sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from agent_runner.contract.approvals import fault_of_answer, fault_of_approval, outcome_of, request_id_of
from agent_runner.contract.protocol import Answer, AnyControl, Approval, QuestionRequest, decode_event, to_json
from agent_runner.contract.sanitize import preview
from agent_runner.contract.trace_context import TraceContext
from host_client.client.session import common_attributes
from host_client.errors import SessionClosedError
from host_client.store.base import (
    DAY_SECONDS,
    Decision,
    Note,
    SessionRecord,
    SessionState,
    Store,
    StoredFile,
    StoredSession,
    StoreError,
    TooManyError,
    UnknownSessionError,
    WaitingRequest,
)
from host_client.telemetry.trace.root import root_below

from . import _commands as c
from ._attachments import attach, detach
from ._events import ClosedData, is_closing, own_event
from ._feed import Feed, Frame, unpack
from ._hosting import Hosted, House
from ._sse import Pace, Reader, frame
from ._state import after_own

if TYPE_CHECKING:
    from ._trace import Trace

RETENTION_PAUSE = 300.0
"""Seconds between two deletions of old sessions and events."""

_TURN = "turn:"
"""Prefix of a turn's id where the turn is recorded among a session's decisions."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Seconds for which a closed session is kept, and the number of events that a log keeps."""

    closed_seconds: float = 7 * DAY_SECONDS
    events: int = 100_000


class NotFoundError(LookupError):
    """The session, approval or question does not exist, or belongs to another tenant."""


class DecidedError(Exception):
    """The request was decided before, by a person or by its timeout."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.decision)
        self.decision = decision


class MismatchError(ValueError):
    """The decision or answer does not fit the waiting request."""


class SessionOverError(Exception):
    """The session is closed or being closed, and accepts no more commands."""


class Service:
    """All operations on sessions; many tasks of one event loop may use it. Every method may raise `StoreError`."""

    def __init__(
        self,
        house: House,
        *,
        pace: Pace | None = None,
        retention: Retention | None = None,
        shutdown_seconds: float = 30.0,
    ) -> None:
        self.store: Store = house.store
        self.pace = pace or Pace()
        self._house = house
        self._retention = retention or Retention()
        self._shutdown_seconds = shutdown_seconds
        self._feeds: dict[str, Feed] = {}
        self._hosted: dict[str, Hosted] = {}
        self._hosting: dict[str, asyncio.Task[None]] = {}
        self._following: dict[str, asyncio.Task[None]] = {}
        self._chores: list[asyncio.Task[None]] = []
        self._tracing = asyncio.Lock()
        self._readers = Counter[str]()
        """Number of open streams by tenant."""
        self._to_trim = set[str]()
        """Sessions that this process has owned since it last shortened logs."""
        self.closing = False

    # -- life -----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store and take over the sessions of dead processes."""
        await self.store.open()
        await self.look_for_orphans()
        self._chores = [
            asyncio.create_task(_repeat(self.store.lease_seconds / 3, self._keep_ownership)),
            asyncio.create_task(_repeat(RETENTION_PAUSE, self._forget_old)),
        ]

    async def stop(self) -> None:
        """Close all sessions of this process, then the store."""
        self.closing = True
        if self._hosted:
            _logger.info("stopping: %d sessions are closed first", len(self._hosted))
        aside = (*self._chores, *self._following.values())
        for task in aside:
            task.cancel()
        for hosted in self._hosted.values():
            hosted.close("shutdown")
        if self._hosting:
            timeout = self._shutdown_seconds
            _, left = await asyncio.wait(self._hosting.values(), timeout=timeout)
            for task in left:
                task.cancel()
            if left:
                _logger.error(
                    "%d sessions did not end within %g s; the next process will take them over", len(left), timeout
                )
                await asyncio.wait(left)
        for feed in self._feeds.values():
            feed.end()
        if aside:
            await asyncio.wait(aside)
        await self.store.close()

    def hurry(self) -> None:
        """Kill all runners instead of waiting for them to stop; their sandboxes are still removed."""
        for hosted in self._hosted.values():
            hosted.hurry()

    async def _keep_ownership(self) -> None:
        for session_id in await self.store.renew(list(self._hosted), self._house.owner):
            if session_id in self._hosted:
                self._hosted[session_id].abandon()
        await self.look_for_orphans()

    async def look_for_orphans(self) -> None:
        """Take over the open sessions that no living process owns."""
        for session_id in await self.store.unfinished():
            # A session that this process is still leaving can be taken over in a later round.
            if self.closing or session_id in self._hosted:
                continue
            if await self.store.acquire(session_id, self._house.owner):
                stored = await self.store.get(session_id)
                if stored is not None and not stored.state.is_closed:
                    _logger.info("taking over session %s", session_id)
                    self._host(stored, adopted=True)

    async def _forget_old(self) -> None:
        forgotten = await self.store.expire(time.time() - self._retention.closed_seconds)
        if forgotten:
            _logger.info("%d old sessions deleted", forgotten)
        trimmed, self._to_trim = self._to_trim, set(self._hosted)
        for session_id in trimmed:
            await self.store.trim(session_id, self._retention.events)

    def _host(self, stored: StoredSession, *, adopted: bool = False) -> None:
        session_id = stored.record.id
        feed = self._feed(stored)
        if (following := self._following.pop(session_id, None)) is not None:
            following.cancel()
        hosted = Hosted(self._house, stored, feed, adopted=adopted)
        self._hosted[session_id] = hosted
        self._to_trim.add(session_id)
        task = asyncio.create_task(hosted.run(), name=f"session-{session_id}")
        self._hosting[session_id] = task
        task.add_done_callback(lambda done: self._left(hosted, done))

    def _left(self, hosted: Hosted, task: asyncio.Task[None]) -> None:
        session_id = hosted.record.id
        del self._hosted[session_id], self._hosting[session_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            _logger.error("session %s: hosting it failed", session_id, exc_info=error)
        self._tidy(session_id)
        if session_id in self._feeds and not hosted.log.state.is_closed:
            self._follow_along(session_id, self._feeds[session_id])

    def _feed(self, stored: StoredSession) -> Feed:
        """Return the session's feed in this process; events from before it are in the store."""
        return self._feeds.setdefault(stored.record.id, Feed(stored.state.last_event_id))

    def _tidy(self, session_id: str) -> None:
        feed = self._feeds.get(session_id)
        if feed is not None and not feed.readers and session_id not in self._hosted:
            del self._feeds[session_id]
            if (following := self._following.pop(session_id, None)) is not None:
                following.cancel()

    # -- commands and decisions ---------------------------------------------------------------------------

    async def create(
        self,
        request: dict[str, Any],
        *,
        tenant_id: str,
        by: str,
        files: Sequence[StoredFile] = (),
        caller: TraceContext | None = None,
        most_open: int | None = None,
        most_bytes: int | None = None,
        session_id: str | None = None,
    ) -> StoredSession:
        """Create a session with its first turn and start it in the background; ``session_id`` None: a new id.

        ``request`` has the fields of a `CreateSession`, ``files`` are the attachments of its prompt. Raise
        `TooManyError`, `FilesFullError` and `ConfigurationError`.
        """
        now = time.time()
        record = SessionRecord(
            id=session_id or str(uuid.uuid4()),
            tenant_id=tenant_id,
            created_at=now,
            created_by=by,
            title=preview(request["prompt"]),
            root=root_below(caller),
            request=request,
        )
        self._house.options(StoredSession(record, SessionState()))  # wrong options are refused before it is stored
        stored = StoredSession(record, SessionState(updated_at=now, model=request.get("model")))
        turn_id, seconds = str(uuid.uuid4()), self._retention.closed_seconds
        attachments = await attach(self.store, record, turn_id, files, seconds, most_bytes)
        first = c.PromptCommand(turn_id=turn_id, text=request["prompt"], attachments=attachments, by=by)
        try:
            await self.store.create(stored, self._house.owner, [c.encode(first)], most_open=most_open)
        except TooManyError:  # after another error the session may have been stored
            await detach(self.store, record, attachments)
            raise
        _logger.info("session %s of %s: created by %s", stored.record.id, tenant_id, by)
        if self.closing:
            return await self._close_unhosted(stored)
        self._host(stored)
        return stored

    async def _close_unhosted(self, stored: StoredSession) -> StoredSession:
        """Close a session that was created while the service was being stopped, like all others."""
        event = own_event(ClosedData(reason="shutdown", cost_usd=0.0), stored.record.root, time.time())
        state = replace(after_own(stored.state, event), last_event_id=1, updated_at=event.ts)
        await self.store.append(stored.record.id, self._house.owner, [to_json(event)], state)
        await self.store.release(stored.record.id, self._house.owner)
        return StoredSession(stored.record, state)

    async def get(self, session_id: str, tenant_id: str | None) -> StoredSession:
        """Return a session of a tenant (None: of any tenant); raise `NotFoundError`."""
        stored = await self.store.get(session_id)
        if stored is None or (tenant_id is not None and stored.record.tenant_id != tenant_id):
            raise NotFoundError(f"there is no session {session_id[:64]}")
        return stored

    async def send(
        self,
        stored: StoredSession,
        text: str,
        *,
        by: str,
        files: Sequence[StoredFile] = (),
        most_bytes: int | None = None,
        caller: TraceContext | None = None,
        turn_id: str | None = None,
    ) -> str:
        """Queue a turn and return its id, ``turn_id`` (None: a new one); raise `SessionOverError`, `FilesFullError`.

        The turn is also recorded like a decision, in the same transaction, so that a turn id is queued only once.
        """
        if not stored.state.takes_more:
            raise SessionOverError
        turn_id = turn_id or str(uuid.uuid4())
        record, seconds = stored.record, self._retention.closed_seconds
        attachments = await attach(self.store, record, turn_id, files, seconds, most_bytes)
        command = c.PromptCommand(
            turn_id=turn_id,
            text=text,
            attachments=attachments,
            by=by,
            traceparent=caller.traceparent if caller else None,
            tracestate=caller.tracestate if caller else "",
        )
        sent = Decision(request_id=_TURN + turn_id, decision="sent", decided_by=by, decided_at=time.time())
        try:
            await self.store.decide(record.id, sent, c.encode(command))
        except UnknownSessionError:  # after another error the turn may have been queued
            await detach(self.store, record, attachments)
            raise
        await self._check_open(stored)
        return turn_id

    async def was_sent(self, stored: StoredSession, turn_id: str) -> bool:
        """Return whether a turn with this id was queued."""
        return await self.store.decision(stored.record.id, _TURN + turn_id) is not None

    async def interrupt(self, stored: StoredSession, *, by: str) -> None:
        """End the current turn, or between turns all background tasks; raise `SessionOverError`."""
        await self._push(stored, c.InterruptCommand(by=by))

    async def control(self, stored: StoredSession, command: AnyControl) -> None:
        """Queue a command to the running agent; raise `SessionOverError`."""
        await self._push(stored, command)

    async def close(self, stored: StoredSession, *, by: str) -> None:
        """End the session, unless it has ended already."""
        with contextlib.suppress(SessionOverError):
            await self._push(stored, c.CloseCommand(by=by))

    async def _push(self, stored: StoredSession, command: c.AnyCommand) -> None:
        if not stored.state.takes_more:
            raise SessionOverError
        await self.store.push(stored.record.id, c.encode(command))
        await self._check_open(stored)

    async def _check_open(self, stored: StoredSession) -> None:
        """Raise `SessionOverError` if the session began to close meanwhile; its log lists turns that came too late."""
        now = await self.store.get(stored.record.id)
        if now is None or not now.state.takes_more:
            raise SessionOverError

    async def decide(self, stored: StoredSession, reply: Approval | Answer) -> Decision:
        """Record a person's decision or answer and return it; only the first one counts.

        The ``input_sha256`` of an approval must be that of the input that was shown. Raise `NotFoundError`,
        `DecidedError`, `MismatchError` and `SessionOverError`.
        """
        key = request_id_of(reply)
        waiting = next((each for each in stored.state.waiting if each.id == key), None)
        if waiting is None:
            raise await self._not_waiting(stored, key)
        if isinstance(reply, Approval):
            outcome = _outcome(waiting, reply)
        else:
            outcome = "answered"
            await self._check_answers(stored, waiting, reply.answers)
        if not stored.state.takes_more:
            raise SessionOverError
        if time.time() >= waiting.expires_at:  # the runner will report the timeout, or cannot be reached
            raise DecidedError(
                Decision(request_id=key, decision="timeout", decided_by=None, decided_at=waiting.expires_at)
            )
        decision = Decision(request_id=key, decision=outcome, decided_by=reply.decided_by, decided_at=time.time())
        first = await self.store.decide(stored.record.id, decision, c.encode(reply))
        if first is not None:
            raise DecidedError(first)
        await self._check_open(stored)
        return decision

    async def _check_answers(self, stored: StoredSession, waiting: WaitingRequest, answers: Mapping[str, Any]) -> None:
        """Raise `MismatchError` for answers to other questions, which would count without answering anything."""
        if waiting.kind != "question":
            raise MismatchError(f"{waiting.id} is an approval, not a question: post to approvals/{waiting.id}")
        if not waiting.event_id:  # written by an earlier version
            return
        for entry in await self.store.read(stored.record.id, waiting.event_id - 1, limit=1):
            if entry.id != waiting.event_id:
                return  # the log no longer has the question: the session's owner checks the answers
            asked = decode_event(entry.data)
            if isinstance(asked, QuestionRequest) and (fault := fault_of_answer(answers, asked.data.questions)):
                raise MismatchError(fault)

    async def _not_waiting(self, stored: StoredSession, key: str) -> Exception:
        decided = await self.store.decision(stored.record.id, key) if not key.startswith(_TURN) else None
        return (
            DecidedError(decided)
            if decided is not None
            else NotFoundError(f"no approval or question {key[:64]!r} waits")
        )

    # -- readers ------------------------------------------------------------------------------------------

    def reader(self, stored: StoredSession, after: int) -> Reader:
        """Return a new reader of a session's events after a number; call `left` when it ends."""
        self._readers[stored.record.tenant_id] += 1
        session_id, feed = stored.record.id, self._feed(stored)
        self._follow_along(session_id, feed)
        return Reader(feed, self.store, session_id, stored.record.root, after, self.pace)

    def left(self, stored: StoredSession, reader: Reader, why: str) -> None:
        """Remove a reader that has ended; ``why`` is that of `EventStream`."""
        reader.close()
        self._readers -= Counter((stored.record.tenant_id,))
        if why == "slow":
            _logger.info(
                "session %s: a reader that was too slow was dropped after event %d", stored.record.id, reader.last
            )
        self._tidy(stored.record.id)

    def readers(self, session_id: str) -> int:
        """Return the number of a session's readers in this process."""
        feed = self._feeds.get(session_id)
        return feed.readers if feed is not None else 0

    def readers_of(self, tenant_id: str) -> int:
        """Return the number of readers of all sessions of a tenant in this process."""
        return self._readers[tenant_id]

    def _follow_along(self, session_id: str, feed: Feed) -> None:
        """Start to follow a session unless this process owns it or follows it already."""
        owned = session_id in self._hosted or not self.store.shared
        if not owned and session_id not in self._following and not self.closing:
            self._following[session_id] = asyncio.create_task(self._follow(session_id, feed))

    async def _follow(self, session_id: str, feed: Feed) -> None:
        """Fill the feed of a session that another process owns, from the store."""
        while True:
            try:
                async with self.store.subscribe(session_id) as notes:
                    await self._catch_up(session_id, feed)
                    async for note in notes:
                        if isinstance(note, bytes):
                            feed.add(unpack(note))
                        elif note is Note.EVENTS:
                            await self._catch_up(session_id, feed)
            except Exception as error:  # whatever it is: without this task, the readers get no more events
                _logger.warning("session %s cannot be followed, trying again: %s", session_id, error)
                await asyncio.sleep(1.0)

    async def _catch_up(self, session_id: str, feed: Feed) -> None:
        while entries := await self.store.read(session_id, feed.last_id):
            for entry in entries:
                feed.add(Frame(entry.id, frame(entry.data, entry.id), is_closing(entry.data)))

    # -- files and trace ----------------------------------------------------------------------------------

    async def read_file(self, stored: StoredSession, path: str, max_bytes: int) -> bytes:
        """Return a file of the agent's working directory; raise `SessionClosedError` if this process has no sandbox."""
        hosted = self._hosted.get(stored.record.id)
        if hosted is None:
            raise SessionClosedError(
                "the session has ended, and its sandbox was removed"
                if stored.state.is_closed
                else "this replica does not own the session: ask the one that does"
            )
        return await hosted.read_file(path, max_bytes)

    async def trace(self, stored: StoredSession) -> Trace:
        """Return the session's spans so far; only one trace is read at a time, as that takes much memory."""
        from ._trace import trace_of  # OpenTelemetry: not with telemetry off

        # Options of the SDK are no attributes, and a session of an earlier version may have one that is refused now.
        request = {name: value for name, value in stored.record.request.items() if name != "options"}
        described = stored._replace(record=replace(stored.record, request=request))
        common = common_attributes(self._house.options(described), stored.record.id)
        further: Iterable[str] = (stored.state.whereabouts or {}).get("trace_ids", ())
        trace_ids = frozenset((stored.record.root.trace_id, *further))
        async with self._tracing:
            return await trace_of(self.store.spans(stored.record.id), trace_ids=trace_ids, common=common)


def _outcome(waiting: WaitingRequest, approval: Approval) -> str:
    """Return the outcome of an approval; raise `MismatchError` if it does not fit the waiting request."""
    if waiting.kind != "approval":
        raise MismatchError(f"{waiting.id} is a question, not an approval: post to questions/{waiting.id}")
    if approval.input_sha256 is None and approval.decision == "allow":
        raise MismatchError(
            "input_sha256 is missing: send that of the approval request, to allow the input that was shown"
        )
    shown = waiting.input_sha256 or ""
    if (fault := fault_of_approval(approval, shown)) is not None:
        raise MismatchError(fault)
    return outcome_of(approval, shown)


async def _repeat(pause: float, chore: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(pause)
        try:
            await chore()
        except StoreError as error:
            _logger.warning("the store cannot be reached: %s", error)
        except Exception:  # one failed round must not end the next ones
            _logger.exception("periodic work of the service failed")

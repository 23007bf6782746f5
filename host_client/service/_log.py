"""Write a session's events and state to the store, each step of them in one transaction, and then to its readers.

Everything to be written is queued here. A task writes one step at a time, made of all that was queued meanwhile, in
that order; but the agent's events wait until `SessionLog.drain`, as the event that tells where the sandbox is comes
first. Readers are sent nothing that is not stored yet. A step is written to its end also if the caller that queued it
is cancelled: the state in memory must not differ from the stored one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import groupby, takewhile
from typing import Any, TypeVar

from agent_runner.contract.protocol import AnyEvent, Heartbeat
from host_client.client.mailbox import MAX_BYTES, MAX_ITEMS
from host_client.store.base import NotOwnerError, Store, StoredSession, StoreError

from ._events import OwnData, OwnEvent, own_event
from ._feed import Feed, Frame, pack
from ._step import OwnChange, Step

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 10.0
"""Seconds between two attempts to reach a store that cannot be reached."""

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class SessionLog:
    """The log and the state of one session, in the process that owns it; the `Outlet` of the session's events."""

    def __init__(self, store: Store, owner: str, stored: StoredSession, feed: Feed) -> None:
        self.record = stored.record
        self.state = stored.state
        """The state as it is stored."""
        self.spans: list[bytes] = []
        """The host's own spans, to be written with the next step."""
        self.extras: dict[str, Any] = {}
        """New values of fields of the state, to be written with the next step."""
        self.is_lost = False
        """Another process owns the session."""
        self.written_at = time.monotonic()
        self._store = store
        self._owner = owner
        self._feed = feed
        self._queue: list[AnyEvent | OwnChange] = []
        self._queued_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        """The task that writes the queue, while there is something to write."""
        self._has_room = asyncio.Event()
        self._is_draining = False
        self._is_closed = False
        self._is_finished = False
        self._left = asyncio.Event()
        self._fault: Exception | None = None
        """The error because of which the agent's events are no longer written."""
        self._has_moved = asyncio.Event()

    # -- events of the agent (`Outlet`) -------------------------------------------------------------------

    def offer(self, item: AnyEvent, size: int) -> bool:
        """Queue an event of ``size`` bytes; return False, without queueing it, if the queue is full.

        Events are dropped once the log is closed, lost or left, or an earlier event could not be written: a log must
        not go on after a hole.
        """
        if self._is_closed or self.is_lost or self._left.is_set() or self._fault is not None:
            return True
        if isinstance(item, Heartbeat):
            return True  # it must not make a turn that hangs look active; readers get the service's own
        if self._queue and (len(self._queue) >= MAX_ITEMS or self._queued_bytes + size > MAX_BYTES):
            return False
        self._queue.append(item)
        self._queued_bytes += size
        if self._is_draining:
            self._begin()
        return True

    async def put(self, item: AnyEvent, size: int) -> None:
        """Queue an event, waiting for room."""
        while not self.offer(item, size):
            self._has_room.clear()
            await self._has_room.wait()

    def close(self) -> None:
        """Drop all further events of the agent."""
        self._is_closed = True
        self._has_room.set()

    def forget(self) -> None:
        """Drop the agent's events that are queued."""
        self._queue = self._own_changes()
        self._queued_bytes = 0
        self._has_moved.set()

    def finish(self) -> None:
        """Note that the agent's last event was queued."""
        self._is_finished = True
        self._has_moved.set()

    async def drain(self) -> None:
        """Write the agent's events, in order, until the last one; raise the error that prevents it."""
        self._is_draining = True
        self._begin()
        while self._fault is None and not (self._is_finished and not self._queue and self._writer is None):
            self._has_moved.clear()
            await self._has_moved.wait()
        if self._fault is not None:
            raise self._fault

    # -- events of the service ----------------------------------------------------------------------------

    async def say(self, data: OwnData, **changed: Any) -> None:
        """Write an event of the service, together with new values of fields of the state."""
        await self._write(own_event(data, self.record.root, time.time()), changed)

    async def change(self, **changed: Any) -> None:
        """Write new values of fields of the state, without an event."""
        await self._write(None, changed)

    async def add(self, event: AnyEvent) -> None:
        """Write an event on behalf of the agent, after all its queued events."""
        self._check_owner()
        self._is_draining = True
        self._enqueue(event)
        await self.change()

    async def _write(self, event: OwnEvent | None, changed: Mapping[str, Any]) -> None:
        self._check_owner()
        change = OwnChange(event, changed, asyncio.get_running_loop().create_future())
        self._enqueue(change)
        await change.written

    def _check_owner(self) -> None:
        if self.is_lost or self._left.is_set():
            raise NotOwnerError(f"{self._owner} does not own the session {self.record.id} any more")

    async def insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Call the store until it answers; raise `NotOwnerError`, or the store's error once the log is left."""
        pause = FIRST_PAUSE
        while True:
            try:
                return await ask()
            except NotOwnerError:
                self.is_lost = True
                raise
            except StoreError as error:
                if self._left.is_set():
                    raise
                _logger.warning("session %s waits for the store: %s", self.record.id, error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._left.wait()
                    raise
                pause = min(pause * 2, LONGEST_PAUSE)

    async def leave(self) -> None:
        """Finish the step that is being written and write no more; do not wait for a store that cannot be reached."""
        self._left.set()
        if self._writer is not None:
            await asyncio.wait((self._writer,))
        self._give_up(NotOwnerError(f"this process has left the session {self.record.id}"))

    # -- writing ------------------------------------------------------------------------------------------

    def _enqueue(self, item: AnyEvent | OwnChange) -> None:
        self._queue.append(item)
        self._begin()

    def _begin(self) -> None:
        """Start the writer unless it runs already."""
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_queue())

    async def _write_queue(self) -> None:
        try:
            while not self._left.is_set() and (items := self._take_queue()):
                await self._write_step(items)
        finally:
            self._writer = None
            if self._is_finished:
                self._has_moved.set()

    def _take_queue(self) -> Sequence[AnyEvent | OwnChange]:
        """Take from the queue what may be written now."""
        if not self._is_draining:
            changes = self._own_changes()
            self._queue = [each for each in self._queue if not isinstance(each, OwnChange)]
            return changes
        items, self._queue, self._queued_bytes = self._queue, [], 0
        self._has_room.set()
        return items

    def _own_changes(self) -> list[AnyEvent | OwnChange]:
        return [each for each in self._queue if isinstance(each, OwnChange)]

    async def _write_step(self, items: Sequence[AnyEvent | OwnChange]) -> None:
        """Write a step to the store and show it to readers; write it again as long as the store cannot be reached."""
        try:
            spans, extras = list(self.spans), dict(self.extras)
            step = Step(self.state, items, spans, extras, time.time())
            published = step.frames if self._store.shared else []
            # Other replicas read the events as soon as they are stored, so the live text before them goes first.
            if leading := list(takewhile(lambda frame: frame.id is None, published)):
                await self._publish(leading)
            await self.insist(
                lambda: self._store.append(self.record.id, self._owner, step.lines, step.state, step.more)
            )
            del self.spans[: len(spans)]
            self.extras = {name: value for name, value in self.extras.items() if (name, value) not in extras.items()}
            self._show(step)
            if following := published[len(leading) :]:
                await self._publish(following)
        except NotOwnerError as error:
            self._queue = [*items, *self._queue]
            self._give_up(error)
        except Exception as error:  # such as a forged value that no check has caught
            self._fail(items, error)
        else:
            _settle(items, None)

    async def _publish(self, frames: Sequence[Frame]) -> None:
        """Send live frames to the other replicas, all that follow the same event as one.

        A failure is only logged: live text is not stored anyway, and the whole text follows.
        """
        live = [each for each in frames if each.id is None]
        try:
            for after, together in groupby(live, lambda each: each.after):
                joined = Frame(None, b"".join(each.data for each in together), after=after)
                await self._store.publish(self.record.id, pack(joined))
        except StoreError as error:
            _logger.debug("session %s: live text is not sent to other replicas: %s", self.record.id, error)
        except Exception:  # it must not fail the step, which is stored or will be
            _logger.exception("session %s: live text is not sent to other replicas", self.record.id)

    def _show(self, step: Step) -> None:
        """Make a stored step the state of this log and send it to readers."""
        self.state = step.state
        self.written_at = time.monotonic()
        self._feed.add(*step.frames)

    def _fail(self, items: Sequence[AnyEvent | OwnChange], error: Exception) -> None:
        """Stop writing the agent's events after an error; queue the service's again, which may be fit to be written."""
        _logger.warning("session %s: the last events cannot be written: %s", self.record.id, error)
        self._fault = self._fault or error
        own = [each for each in items if isinstance(each, OwnChange)]
        if len(own) < len(items) and not self._left.is_set():
            self._queue = [*own, *self._own_changes()]
            self._queued_bytes = 0
        else:
            _settle(own, error)
        self._has_room.set()
        self._has_moved.set()

    def _give_up(self, error: NotOwnerError) -> None:
        """Drop the queue and raise the error for all callers that wait."""
        queue, self._queue, self._queued_bytes = self._queue, [], 0
        self._fault = self._fault or error
        _settle(queue, error)
        self._has_room.set()
        self._has_moved.set()


def _settle(items: Sequence[AnyEvent | OwnChange], error: Exception | None) -> None:
    """Tell the callers that queued the service's changes that these are written, or why not."""
    for each in items:
        if not isinstance(each, OwnChange) or each.written.done():  # cancelled
            continue
        if error is None:
            each.written.set_result(None)
        else:
            each.written.set_exception(error)

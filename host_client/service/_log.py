"""What a session's owner writes: its events and its state into the store, in one step, and then to its readers.

Who has something to write leaves it here. One step is written at a time, of all that came meanwhile, in that order (but
that the agent's first words wait until it is known where it is: see `taken`); nothing is shown that was not written.
The next step begins where the last one ended, also where whoever left something does not wait for it any more: what the
store has and what is known of it here must not differ.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import groupby, takewhile
from typing import Any, TypeVar

from agent_runner.contract.protocol import AnyEvent
from host_client.client.mailbox import MAX_BYTES, MAX_ITEMS
from host_client.store.base import NotOwnerError, Store, StoredSession, StoreError, error_of, settle

from ._events import OwnData, OwnEvent, own_event
from ._feed import Feed, Frame, pack
from ._step import Own, Step

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 10.0
"""Seconds between two attempts to reach a store that is away."""

Done = TypeVar("Done")

_logger = logging.getLogger(__name__)


class SessionLog:
    """The log and the state of one session. ``spans`` and ``extras`` wait to be written with the next events.

    It is the `Outlet` of its session. ``state`` is what the store has.
    """

    def __init__(self, store: Store, owner: str, stored: StoredSession, feed: Feed) -> None:
        self.record = stored.record
        self.state = stored.state
        self.spans: list[bytes] = []
        """The host's own spans."""
        self.extras: dict[str, Any] = {}
        """Fields of the state that change without an event."""
        self.is_lost = False
        """Another process owns the session."""
        self.written_at = time.monotonic()
        self._store = store
        self._owner = owner
        self._feed = feed
        self._left: list[AnyEvent | Own] = []
        self._left_bytes = 0
        self._is_due = False
        self._step: Step | None = None
        """What is being written."""
        self._again: asyncio.TimerHandle | None = None
        self._pause = FIRST_PAUSE
        self._publishing: asyncio.Task[None] | None = None
        self._has_room = asyncio.Event()
        self._is_listening = False
        self._is_closed = False
        self._is_finished = False
        self._is_left = False
        self._fault: Exception | None = None
        self._has_moved = asyncio.Event()

    # -- what the agent says (`Outlet`) -------------------------------------------------------------------

    def offer(self, item: AnyEvent, size: int) -> bool:
        """Take an event of ``size`` bytes unless too much waits to be written; return whether it need not wait.

        Nothing is taken any more once the log is closed, lost or left, or something could not be written: what comes
        after a hole must not hide it.
        """
        if self._is_closed or self.is_lost or self._is_left or self._fault is not None:
            return True
        if self._left and (len(self._left) >= MAX_ITEMS or self._left_bytes + size > MAX_BYTES):
            return False
        self._left.append(item)
        self._left_bytes += size
        if self._step is None:
            self._begin_soon()
        return True

    async def put(self, item: AnyEvent, size: int) -> None:
        """Take an event, waiting for room."""
        while not self.offer(item, size):
            self._has_room.clear()
            await self._has_room.wait()

    def close(self) -> None:
        """Take no more of the agent's events."""
        self._is_closed = True
        self._has_room.set()

    def forget(self) -> None:
        """Drop what the agent said and is not being written yet."""
        self._left = [each for each in self._left if isinstance(each, Own)]
        self._left_bytes = 0
        self._has_moved.set()

    def finish(self) -> None:
        """The agent says no more."""
        self._is_finished = True
        self._has_moved.set()

    async def taken(self) -> None:
        """Write what the agent says, and wait for its last word; raise what keeps that from being written.

        What it said before is written first.
        """
        self._is_listening = True
        self._begin_soon()
        while self._fault is None and not (self._is_finished and self._is_idle):
            self._has_moved.clear()
            await self._has_moved.wait()
        if self._fault is not None:
            raise self._fault

    # -- what the service says ----------------------------------------------------------------------------

    async def say(self, data: OwnData, **changed: Any) -> None:
        """Write an event of the service's own, and show it; ``changed`` of the state comes with it."""
        await self._write(own_event(data, self.record.root, time.time()), changed)

    async def change(self, **changed: Any) -> None:
        """Write what changes of the state without an event."""
        await self._write(None, changed)

    async def add(self, event: AnyEvent) -> None:
        """Write an event in the agent's place, after all that it said, and show it."""
        self._check_owner()
        self._is_listening = True
        self._enqueue(event)
        await self.change()

    async def _write(self, event: OwnEvent | None, changed: Mapping[str, Any]) -> None:
        self._check_owner()
        own = Own(event, changed, asyncio.get_running_loop().create_future())
        self._enqueue(own)
        await own.written

    def _check_owner(self) -> None:
        if self.is_lost or self._is_left:
            raise NotOwnerError(f"the session {self.record.id} is not {self._owner}'s any more")

    async def insist(self, ask: Callable[[], Awaitable[Done]]) -> Done:
        """Ask the store until it answers; raise `NotOwnerError` alone, from which on the session is another's."""
        pause = FIRST_PAUSE
        while True:
            try:
                return await ask()
            except NotOwnerError:
                self.is_lost = True
                raise
            except StoreError as error:
                _logger.warning("session %s waits for the store: %s", self.record.id, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def leave(self) -> None:
        """Write no more than is being written, and wait for that; a store that is away is not waited for."""
        self._is_left = True
        if self._again is not None and self._step is not None:
            self._again.cancel()
            self._end(self._step, StoreError("the store is away"))
        while self._step is not None:
            self._has_moved.clear()
            await self._has_moved.wait()
        self._let_go(NotOwnerError(f"the session {self.record.id} was left"))

    # -- writing: callbacks and no task, as an event costs a third less of the loop's time then ------------

    @property
    def _is_idle(self) -> bool:
        return not self._left and self._step is None

    def _enqueue(self, item: AnyEvent | Own) -> None:
        self._left.append(item)
        self._begin_soon()

    def _begin_soon(self) -> None:
        if not self._is_due and self._step is None:
            self._is_due = True
            self._store.before_append(self._begin)

    def _begin(self) -> None:
        """Write all that was left here."""
        self._is_due = False
        if self._step is not None or self._is_left or not (left := self._ready()):
            return
        try:
            step = Step(self.state, left, self.spans, self.extras, time.time())
        except Exception as error:  # a forged value that nothing before has caught, or a fault of ours
            self._fail(left, error)
            return
        self._step = step
        self._append(step)

    def _ready(self) -> list[AnyEvent | Own]:
        """Take what may be written out of what was left here."""
        if self._is_listening:
            ready, self._left, self._left_bytes = self._left, [], 0
            self._has_room.set()
            return ready
        ready: list[AnyEvent | Own] = [each for each in self._left if isinstance(each, Own)]
        self._left = [each for each in self._left if not isinstance(each, Own)]
        return ready

    def _append(self, step: Step) -> None:
        self._again = None
        done = partial(self._ended, step)
        if step.has_live and self._store.shared:
            self._publishing = asyncio.create_task(self._append_and_pass_on(step))
            self._publishing.add_done_callback(lambda task: done(error_of(task)))
            return
        try:
            self._store.append_soon(self.record.id, self._owner, step.lines, step.state, step.more, done)
        except Exception as error:  # it is closed; or what cannot be written, which must hold up nobody else
            done(error)

    async def _append_and_pass_on(self, step: Step) -> None:
        first = list(takewhile(lambda each: each.id is None, step.frames))
        # Before what they come before is written: other replicas read that as soon as it is there.
        if not step.is_announced:
            step.is_announced = True
            await self._pass_on(first)
        await self._store.append(self.record.id, self._owner, step.lines, step.state, step.more)
        self._keep(step)
        await self._pass_on(step.frames[len(first) :])

    async def _pass_on(self, frames: Sequence[Frame]) -> None:
        """Send what is live to the other replicas, all that comes after the same event at once.

        What cannot be sent is not kept: live text is not, and the whole text follows.
        """
        live = [each for each in frames if each.id is None]
        try:
            for after, together in groupby(live, lambda each: each.after):
                joined = Frame(None, b"".join(each.data for each in together), after=after)
                await self._store.publish(self.record.id, pack(joined))
        except StoreError as error:
            _logger.debug("session %s: live text is not passed on: %s", self.record.id, error)
        except Exception:  # a fault of ours, which takes nothing from what was written
            _logger.exception("session %s: live text is not passed on", self.record.id)

    def _ended(self, step: Step, error: Exception | None) -> None:
        """Show what was written; try again while the store is away: nothing is shown, and nothing lost, meanwhile."""
        if isinstance(error, StoreError) and not isinstance(error, NotOwnerError) and not self._is_left:
            _logger.warning("session %s waits for the store: %s", self.record.id, error)
            self._again = asyncio.get_running_loop().call_later(self._pause, self._append, step)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)
            return
        if error is None and not step.is_kept:
            try:
                self._keep(step)
            except Exception as fault:  # of ours: the session must end with it, and not wait for ever
                error = fault
        self._end(step, error)

    def _keep(self, step: Step) -> None:
        """Know what the store has now, and show it."""
        step.is_kept = True
        self._pause = FIRST_PAUSE
        del self.spans[: step.own_spans]
        self.extras = {name: value for name, value in self.extras.items() if step.extras.get(name) != value}
        self.state = step.state
        self.written_at = time.monotonic()
        self._feed.add(*step.frames)

    def _end(self, step: Step, error: Exception | None) -> None:
        """Tell those who wait how it ended, and go on with what came meanwhile."""
        self._again = self._step = None
        if isinstance(error, NotOwnerError):
            self.is_lost = True
            self._left = [*step.left, *self._left]
            self._let_go(error)
        elif error is not None:
            self._fail(step.left, error)
        else:
            for each in step.left:
                if isinstance(each, Own):
                    settle(each.written, None)
        if self._left:
            self._begin_soon()
        if self._is_left or (self._is_finished and self._is_idle):
            self._has_moved.set()

    def _fail(self, left: Sequence[AnyEvent | Own], error: Exception) -> None:
        """Give up what cannot be written; the service's own is tried again without the agent's, which may be why."""
        _logger.warning("session %s: what was to be written last may be lost: %s", self.record.id, error)
        own = [each for each in left if isinstance(each, Own)]
        self._fault = self._fault or error
        self._has_room.set()
        self._has_moved.set()
        if len(own) < len(left) and not self._is_left:
            self._left = [*own, *(each for each in self._left if isinstance(each, Own))]
            self._left_bytes = 0
            self._begin_soon()
            return
        for each in own:
            settle(each.written, error)

    def _let_go(self, error: NotOwnerError) -> None:
        """Nothing is written any more: let nobody wait for it."""
        left, self._left, self._left_bytes = self._left, [], 0
        self._fault = self._fault or error
        for each in left:
            if isinstance(each, Own):
                settle(each.written, error)
        self._has_room.set()
        self._has_moved.set()

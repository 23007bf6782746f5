"""Deliver spans to every destination from the spool, each destination in a thread of its own."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from host_client.telemetry.batch import Batch

from .destinations import Destination
from .sender import CHANCE, HANGS_AFTER, Counts, Sender
from .spool import Spool

LINGER = 5.0
"""Seconds that spans wait in the spool to share a request with later ones, as in OpenTelemetry's batch processor. With
1 second a run takes a quarter more of the host's CPU time."""

KEEP_INTERVAL = 30.0
"""Seconds between two rounds of the spool's upkeep."""

TAKEOVER_SECONDS = 10.0
"""Maximum number of seconds that `Delivery.take_over` waits; after that it does not wait for `IMPATIENT_SECONDS`."""

IMPATIENT_SECONDS = 60.0

_logger = logging.getLogger(__name__)


class Delivery:
    """Deliver spans to destinations by way of the spool. Safe for threads.

    ``clock`` and ``jitter`` are passed to each `Sender`. Destinations with the same name get a number.
    """

    def __init__(
        self,
        destinations: Sequence[Destination],
        spool: Spool,
        *,
        linger: float = LINGER,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = CHANCE.random,
    ) -> None:
        self._spool = spool
        self._linger = linger
        self._clock = clock
        names = _distinct(destination.name for destination in destinations)
        self._keys = _distinct(destination.key for destination in destinations)
        """Keys of the destinations in the spool."""
        durable = dict(zip(self._keys, (destination.durable for destination in destinations), strict=True))
        self._transient_keys = [key for key in self._keys if not durable[key]]
        spool.register(durable)
        self._senders = [
            Sender(destination, name, spool, key=key, clock=clock, jitter=jitter)
            for destination, name, key in zip(destinations, names, self._keys, strict=True)
        ]
        self._awake = {sender.name: threading.Event() for sender in self._senders}
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self._has_taken_over = threading.Event()
        self._keep_now = threading.Event()
        self._taken_over_at = -math.inf
        """Time at which the last round of upkeep began that has taken over the files of dead processes."""
        self._impatient_until = -math.inf
        self._progress = threading.Condition()
        self._reported_drops = 0
        self._threads = [
            threading.Thread(target=self._run, args=(sender,), name=f"telemetry-{sender.name}", daemon=True)
            for sender in self._senders
        ]
        self._threads.append(threading.Thread(target=self._keep, name="telemetry-spool", daemon=True))
        for thread in self._threads:
            thread.start()

    # -- called by the pipeline --------------------------------------------------------------------------

    def hold(self, trace_id: str, batches: Sequence[Batch]) -> None:
        """Store spans of an undecided trace. If this process dies, the next one delivers them."""
        self._spool.hold(trace_id, batches)

    def release(self, trace_id: str) -> None:
        """Deliver the held spans of a trace, which is kept."""
        self._spool.release(trace_id, self._keys)
        self._wake()

    def discard(self, trace_id: str) -> None:
        """Delete the held spans of a trace, which is dropped."""
        self._spool.discard(trace_id)

    def offer(self, batches: Sequence[Batch]) -> None:
        """Deliver spans of kept traces to all destinations."""
        self._spool.put(batches, self._keys)
        self._wake()

    def take_over(self, died_before: float) -> bool:
        """Wait until the files of all processes that died before a time (of `time.monotonic`) have been taken over.

        Return whether they have. If not, `recorded` may lack the last spans of such a process, and they are sent again.
        """
        timeout = TAKEOVER_SECONDS if time.monotonic() >= self._impatient_until else 0.0
        with self._progress:
            if self._taken_over_at < died_before:
                self._keep_now.set()
            is_done = self._progress.wait_for(
                lambda: self._taken_over_at >= died_before or self._closing.is_set(), timeout
            )
        if not is_done and timeout:
            self._impatient_until = time.monotonic() + IMPATIENT_SECONDS
            _logger.warning(
                "the spool's files of dead processes were not taken over within %g s: "
                "spans of sessions that are taken over now may be sent again",
                timeout,
            )
        return is_done

    def recorded(self, trace_id: str, span_ids: Sequence[str]) -> set[str]:
        """Return those spans of a trace that some process has stored in this spool's directory; ids are in hex."""
        return self._spool.recorded(trace_id, span_ids)

    def offer_again(self, batches: Sequence[Batch]) -> None:
        """Deliver spans that a dead process has stored to the destinations that only that process could deliver to."""
        if self._transient_keys:
            self._spool.put(batches, self._transient_keys)
            self._wake()

    # -- results -----------------------------------------------------------------------------------------

    def counts(self) -> dict[str, Counts]:
        """Return the counters by the destination's name."""
        waiting, dropped = self._spool.waiting(), self._spool.dropped()
        undecided = self._spool.left_undecided()
        counts: dict[str, Counts] = {}
        for sender in self._senders:
            count = sender.counts(waiting[sender.key], dropped.get(sender.key, {}))
            counts[sender.name] = replace(count, spooled=count.spooled + undecided[sender.key])
        return counts

    def flush(self, timeout: float) -> bool:
        """Deliver now; return whether all spans so far, those of dead processes included, are delivered.

        Return False after ``timeout`` seconds, and earlier if no destination can be tried in that time, or if all that
        have spans left hang and their spans are in the spool; also if spans were dropped since the last call.
        """
        return self._flush(timeout, self._is_given_up)

    def _flush(self, timeout: float, is_given_up: Callable[[Sender], bool]) -> bool:
        deadline = time.monotonic() + timeout
        self._hurry.set()
        self._wake()
        try:
            self._has_taken_over.wait(timeout)
            with self._progress:
                while (left := deadline - time.monotonic()) > 0 and self._may_deliver(left, is_given_up):
                    self._progress.wait(min(left, HANGS_AFTER / 4))  # a destination that hangs notifies nothing
        finally:
            if not self._closing.is_set():
                self._hurry.clear()
        return self._is_delivered()

    def _may_deliver(self, within: float, is_given_up: Callable[[Sender], bool]) -> bool:
        waiting, soon = self._spool.waiting(), self._clock() + within
        return any(
            waiting[sender.key] and sender.put_off_until < soon and not is_given_up(sender) for sender in self._senders
        )

    def _is_given_up(self, sender: Sender) -> bool:
        """Return whether a destination hangs and its spans are safe in the spool."""
        sending_since = sender.sending_since
        hangs = sending_since is not None and self._clock() - sending_since >= HANGS_AFTER
        return hangs and self._spool.outlives(sender.key)

    def _is_left_behind(self, sender: Sender) -> bool:
        """Return whether a destination hangs or fails, and the next process can deliver its spans from the spool."""
        return self._is_given_up(sender) or (sender.is_failing and self._spool.outlives(sender.key))

    def _is_delivered(self) -> bool:
        counts = self.counts().values()
        dropped = sum(sum(count.dropped.values()) for count in counts)
        reported, self._reported_drops = self._reported_drops, dropped
        return dropped == reported and not any(count.waiting for count in counts)

    def close(self, timeout: float) -> bool:
        """Flush, then stop; undelivered and undecided spans stay in the spool.

        A destination that fails is not tried again if its spans are in the spool. Return what `flush` returns, at most
        a second after its timeout; False also if undecided spans are lost with the process.
        """
        delivered = self._flush(timeout, self._is_left_behind)
        self._closing.set()
        with self._progress:
            self._progress.notify_all()
        self._keep_now.set()
        self._hurry.set()
        self._wake()
        deadline = time.monotonic() + 1.0
        for sender, thread in zip((*self._senders, None), self._threads, strict=True):
            # A thread that hangs in its destination is not waited for: its spans are in the spool.
            if sender is None or sender.sending_since is None or not self._is_left_behind(sender):
                thread.join(max(0.0, deadline - time.monotonic()))
        self._spool.close()
        return self._is_delivered() and delivered

    # -- threads -----------------------------------------------------------------------------------------

    def _wake(self) -> None:
        for event in self._awake.values():
            event.set()

    def _run(self, sender: Sender) -> None:
        awake = self._awake[sender.name]
        while not self._closing.is_set():
            awake.clear()
            pause = self._step(sender)
            with self._progress:
                self._progress.notify_all()
            if pause is None:
                awake.wait()
                self._hurry.wait(self._linger)
            elif pause:
                self._closing.wait(pause)
        try:
            sender.close()
        except Exception:  # custom exporters are the user's code
            _logger.warning("%s could not be closed", sender.name, exc_info=True)

    def _step(self, sender: Sender) -> float | None:
        try:
            return sender.step()
        except Exception:  # a fault here: the spans are in the spool, and are sent later
            _logger.exception("sending telemetry to %s failed; it is tried again", sender.name)
            return KEEP_INTERVAL

    def _keep(self) -> None:
        while not self._closing.is_set():
            self._keep_now.clear()
            began = time.monotonic()
            has_looked = self._attempt(self._spool.keep)
            self._has_taken_over.set()
            with self._progress:
                if has_looked:
                    self._taken_over_at = began
                self._progress.notify_all()
            self._wake()
            self._attempt(self._spool.tidy)
            if not self._closing.is_set():
                self._keep_now.wait(KEEP_INTERVAL)

    def _attempt(self, upkeep: Callable[[], bool | None]) -> bool:
        try:
            return bool(upkeep())
        except Exception:  # a fault here must not end the thread
            _logger.exception("the upkeep of the telemetry spool failed; it is tried again")
            return False


def _distinct(names: Iterable[str]) -> list[str]:
    """Return the names in order; a name that was there before gets a number."""
    distinct: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in distinct:
            number += 1
            candidate = f"{name}-{number}"
        distinct.append(candidate)
    return distinct

"""Spans to every destination: durable, each in a thread of its own, counted. Nobody waits for anybody."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from host_client.telemetry.batch import Batch

from .destinations import Destination
from .sender import CHANCE, HANGS_AFTER, Counts, Sender
from .spool import Spool

LINGER = 5.0
"""So many seconds spans wait for others, to go in one request, as in OpenTelemetry's own batch processor; they are
durable meanwhile. With 1 second a host's CPU time for a run is a quarter more."""

KEEP_INTERVAL = 30.0

_logger = logging.getLogger(__name__)


class Delivery:
    """Hands spans to destinations by way of the spool. Safe for threads.

    ``clock`` and ``jitter`` are the senders'; the names of destinations are made different, where they are not.
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
        named = _named(destinations)
        self.destinations = tuple(named)
        self._keys = _keys(named)
        spool.register({self._keys[name]: destination.durable for name, destination in named.items()})
        self._senders = [
            Sender(destination, name, spool, key=self._keys[name], clock=clock, jitter=jitter)
            for name, destination in named.items()
        ]
        self._awake = {sender.name: threading.Event() for sender in self._senders}
        self._hurry = threading.Event()
        self._closing = threading.Event()
        self._looked = threading.Event()
        self._progress = threading.Condition()
        self._told_of = 0
        self._threads = [
            threading.Thread(target=self._run, args=(sender,), name=f"telemetry-{sender.name}", daemon=True)
            for sender in self._senders
        ]
        self._threads.append(threading.Thread(target=self._keep, name="telemetry-spool", daemon=True))
        for thread in self._threads:
            thread.start()

    # What is handed over

    def hold(self, trace_id: str, batches: Sequence[Batch]) -> None:
        """Keep spans of a trace that is not decided; they survive this process, and then count as released."""
        self._spool.hold(trace_id, batches)

    def release(self, trace_id: str) -> None:
        """A trace is kept: deliver what is held of it."""
        self._spool.release(trace_id, self._keys.values())
        self._wake()

    def discard(self, trace_id: str) -> None:
        """A trace is not kept."""
        self._spool.discard(trace_id)

    def offer(self, batches: Sequence[Batch], destinations: Iterable[str] | None = None) -> None:
        """Deliver spans of a trace that is kept, to all destinations or to those named."""
        names = self.destinations if destinations is None else destinations
        self._spool.put(batches, [self._keys[name] for name in names])
        self._wake()

    # What became of it

    def counts(self) -> dict[str, Counts]:
        """Return the counters, by destination."""
        waiting, dropped = self._spool.waiting(), self._spool.dropped()
        left = self._spool.left_undecided()
        counts: dict[str, Counts] = {}
        for sender in self._senders:
            of = sender.counts(waiting[sender.key], dropped.get(sender.key, {}))
            counts[sender.name] = replace(of, spooled=of.spooled + left[sender.key])
        return counts

    def faults(self) -> dict[str, int]:
        """Return how often the spool's disk failed (``disk``), and how many files were corrupt (``corrupt``)."""
        return dict(self._spool.faults)

    def flush(self, timeout: float) -> bool:
        """Deliver now; return whether all spans handed over before, and what dead processes left, are delivered.

        False within ``timeout`` seconds, and at once where no destination may be tried within them, or where all that
        have not delivered hang and their spans are in the spool; false too if spans were dropped since the last call.
        """
        return self._flush(timeout, self._is_given_up)

    def _flush(self, timeout: float, is_given_up: Callable[[Sender], bool]) -> bool:
        deadline = time.monotonic() + timeout
        self._looked.wait(timeout)
        self._hurry.set()
        self._wake()
        try:
            with self._progress:
                while (left := deadline - time.monotonic()) > 0 and self._may_deliver(left, is_given_up):
                    self._progress.wait(min(left, HANGS_AFTER / 4))  # one that begins to hang tells nobody
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
        """Whether a destination hangs; not where its spans would be lost."""
        asked_at = sender.asked_at
        hangs = asked_at is not None and self._clock() - asked_at >= HANGS_AFTER
        return hangs and self._spool.outlives(sender.key)

    def _is_left_behind(self, sender: Sender) -> bool:
        """Whether the end does not wait for a destination: it hangs or fails, and the next process has its spans."""
        return self._is_given_up(sender) or (sender.is_failing and self._spool.outlives(sender.key))

    def _is_delivered(self) -> bool:
        counts = self.counts().values()
        dropped = sum(sum(count.dropped.values()) for count in counts)
        told, self._told_of = self._told_of, dropped
        return dropped == told and not any(count.waiting for count in counts)

    def close(self, timeout: float) -> bool:
        """Flush, then stop; what is left stays in the spool, what is not decided too.

        A destination that fails is not tried again by now, where its spans are in the spool.
        Returns what `flush` does, a second after it at most; false also where undecided spans end with the process.
        """
        delivered = self._flush(timeout, self._is_left_behind)
        self._closing.set()
        self._hurry.set()
        self._wake()
        deadline = time.monotonic() + 1.0
        for sender, thread in zip((*self._senders, None), self._threads, strict=True):
            # One that hangs in a destination is left behind: it holds nothing that is not in the spool.
            if sender is None or sender.asked_at is None or not self._is_left_behind(sender):
                thread.join(max(0.0, deadline - time.monotonic()))
        self._spool.close()
        return self._is_delivered() and delivered

    # Threads

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
        except Exception:  # a destination may be anybody's code
            _logger.warning("%s could not be closed", sender.name, exc_info=True)

    def _step(self, sender: Sender) -> float | None:
        try:
            return sender.step()
        except Exception:  # a fault of ours: the spans are in the spool, and are tried again
            _logger.exception("telemetry for %s", sender.name)
            return KEEP_INTERVAL

    def _keep(self) -> None:
        while not self._closing.is_set():
            try:
                self._spool.keep()
            except Exception:  # a fault of ours must not end the thread
                _logger.exception("the telemetry spool")
            self._looked.set()
            self._wake()
            self._closing.wait(KEEP_INTERVAL)


def _named(destinations: Sequence[Destination]) -> dict[str, Destination]:
    named: dict[str, Destination] = {}
    for destination in destinations:
        name, number = destination.name, 1
        while name in named:
            number += 1
            name = f"{destination.name}-{number}"
        named[name] = destination
    return named


def _keys(named: Mapping[str, Destination]) -> dict[str, str]:
    """Return what is kept in the spool for each under, by name; two to the same place are told apart."""
    keys: dict[str, str] = {}
    for name, destination in named.items():
        key, number = destination.key, 1
        while key in keys.values():
            number += 1
            key = f"{destination.key}-{number}"
        keys[name] = key
    return keys

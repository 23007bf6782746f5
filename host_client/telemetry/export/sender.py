"""What one destination is sent, when, and what becomes of what it does not take. Has no thread of its own."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from agent_runner.contract.sanitize import brief
from host_client.telemetry.otlp import halves

from ._spool_file import SpoolFile
from .destinations import Delivered, Destination, Outcome, Refused, Retry, TooLarge
from .notices import Notices
from .spool import Parcel, Spool

MAX_SPANS = 512
MAX_BYTES = 4 * 1024 * 1024
"""Most of one request; a single one of the spool that is larger goes alone."""

FIRST_DELAY = 1.0
MAX_DELAY = 64.0
MAX_RETRY_AFTER = 3600.0
"""A server that asks for longer errs; all in seconds."""

HANGS_AFTER = 2.0
"""A destination that has not answered for so many seconds hangs: the end of a process does not wait for it."""

PATIENCE = 5
"""So many times in a row a destination may raise before it is looked for a span that it raises at."""

PROBES = 16
"""So many requests in a row may raise in one such search: more than it takes to halve a request down to a span."""

CHANCE = random.Random()  # noqa: S311  # when to try again is no secret
"""Of its own: a program's own random numbers, seeded or not, are what they were."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """Spans of one destination since the start of this process.

    ``retried`` counts each repetition; ``spooled`` what was put off at its first try; ``waiting`` is what has not
    been delivered yet; ``dropped`` is by reason.
    """

    exported: int = 0
    retried: int = 0
    spooled: int = 0
    waiting: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])

    def by_outcome(self) -> dict[str, int]:
        """Return the counters by name; each reason for a drop has one of its own."""
        counts = {"exported": self.exported, "retried": self.retried, "spooled": self.spooled, "waiting": self.waiting}
        return counts | {f"dropped: {reason}": count for reason, count in self.dropped.items()}


def backoff(failures: int) -> float:
    """Return the longest pause, in seconds, after so many failures in a row: 1, 2, 4, …, 64."""
    return min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 10))


@dataclass(frozen=True)
class _Raised:
    """It raised, which may be an outage or a span that it cannot take."""

    why: str


class _Round:
    """What one step has yet to send, and what it has learned of a destination that raises."""

    def __init__(self, parcels: list[Parcel]) -> None:
        self.todo = [parcels]
        self.is_search = False
        self._taken = 0
        self._raised = 0
        self._doubted: dict[tuple[SpoolFile, int], int] = {}

    def took(self) -> None:
        """The destination took a request: it is well."""
        self._taken += 1
        self._raised = 0

    def judge(self, parcels: list[Parcel], why: str) -> Outcome | None:
        """Return what it means that the destination raised; None where that is seen after the rest was sent.

        A span is given up only where it was sent alone, another request was taken after that, and it raises again.
        """
        self._raised += 1
        if not self.is_search or self._raised > PROBES:
            return Retry(None, why)
        if _spans(parcels) > 1:
            return Refused(why)  # which halves it
        key = (parcels[0].file, parcels[0].stored.id)
        if key in self._doubted:
            return Refused(why) if self._taken > self._doubted[key] else Retry(None, why)
        if not self.todo:
            return Retry(None, why)
        self._doubted[key] = self._taken
        self.todo.insert(0, parcels)
        return None


class Sender:
    """Takes from the spool and sends; used by one thread, but for its counters.

    ``key`` is what its spans are kept under, the name by default.
    ``clock`` is in seconds; ``jitter`` is a number from 0 to 1, by which each pause is multiplied.
    """

    def __init__(
        self,
        destination: Destination,
        name: str,
        spool: Spool,
        *,
        key: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = CHANCE.random,
    ) -> None:
        self.name = name
        self.key = name if key is None else key
        self.put_off_until = 0.0
        self.asked_at: float | None = None
        """Since when an answer is awaited."""
        self._destination = destination
        self._spool = spool
        self._clock = clock
        self._jitter = jitter
        self._failures = 0
        self._raised = 0
        self._notices = Notices(_logger, clock)
        self._lock = threading.Lock()
        self._exported = self._retried = self._spooled = 0
        self._dropped: Counter[str] = Counter()
        self._tried: set[tuple[SpoolFile, int]] = set()

    def step(self) -> float | None:
        """Send what is oldest; return the seconds until the next step may be made, None if nothing waits."""
        if (pause := self.put_off_until - self._clock()) > 0:
            return pause
        taken = self._spool.take(self.key, max_spans=MAX_SPANS, max_bytes=MAX_BYTES)
        if not taken:
            return None
        this = _Round(taken)
        from_end = self._failures % 2  # a search goes from both ends in turn: one may have many bad spans
        while this.todo:
            parcels = this.todo.pop()
            outcome = self._send(parcels)
            if isinstance(outcome, _Raised):
                this.is_search |= self._raised > PATIENCE
                outcome = this.judge(parcels, outcome.why)
            match outcome:
                case None:
                    pass
                case Delivered():
                    this.took()
                    self._delivered(parcels, outcome)
                case Retry():
                    self._put_off([*parcels, *(parcel for later in this.todo for parcel in later)], outcome)
                    return max(0.0, self.put_off_until - self._clock())
                case TooLarge() | Refused() if _spans(parcels) <= 1:
                    self._drop(parcels, outcome)
                case TooLarge() | Refused():
                    halved = self._halved(parcels)
                    this.todo += halved if from_end else reversed(halved)
        return 0.0

    @property
    def is_failing(self) -> bool:
        """Whether its last answer was that it may take the spans later, or none."""
        return self._failures > 0

    def close(self) -> None:
        """Let go of the destination."""
        self._destination.close()

    def counts(self, waiting: int, dropped: Mapping[str, int]) -> Counts:
        """Return the counters, together with what waits and what the spool dropped."""
        with self._lock:
            lost = self._dropped + Counter(dropped)
            return Counts(self._exported, self._retried, self._spooled, waiting, lost)

    def _send(self, parcels: Sequence[Parcel]) -> Outcome | _Raised:
        self.asked_at = self._clock()
        try:
            outcome = self._destination.send(b"".join(parcel.batch.body for parcel in parcels))
        except Exception as error:  # a destination may be anybody's code
            self._raised += 1
            return _Raised(brief(f"it raised {error!r}"))
        finally:
            self.asked_at = None
        self._raised = 0
        return outcome

    def _delivered(self, parcels: Sequence[Parcel], outcome: Delivered) -> None:
        spans = _spans(parcels)
        rejected = min(max(outcome.rejected, 0), spans)
        if self._failures:
            _logger.info("%s takes telemetry again", self.name)
        self._failures = 0
        with self._lock:
            self._tried.clear()
            self._exported += spans - rejected
            if rejected:
                self._dropped["rejected"] += rejected
        self._spool.acknowledge(self.key, parcels)  # last: who sees that nothing waits finds it counted
        if rejected or outcome.why:
            self._notices.warn("rejected", "%s rejected %d spans: %s", self.name, rejected, brief(outcome.why))

    def _put_off(self, parcels: Sequence[Parcel], outcome: Retry) -> None:
        self._failures += 1
        pause = backoff(self._failures) * self._jitter()
        if outcome.after is not None:
            pause = max(pause, min(outcome.after, MAX_RETRY_AFTER))
        self.put_off_until = self._clock() + pause
        self._spool.put_back(parcels)
        new = [parcel for parcel in parcels if (parcel.file, parcel.stored.id) not in self._tried]
        with self._lock:
            self._retried += _spans(parcels)
            self._spooled += _spans(new)
            self._tried.update((parcel.file, parcel.stored.id) for parcel in new)
        until = "until this is mended" if outcome.is_misconfigured else "and is tried again"
        self._notices.warn(outcome.why, "telemetry for %s waits in the spool %s: %s", self.name, until, outcome.why)

    def _drop(self, parcels: Sequence[Parcel], outcome: TooLarge | Refused) -> None:
        why = "too_large" if isinstance(outcome, TooLarge) else "refused"
        told = outcome.why if isinstance(outcome, Refused) else "too large"
        self._forget(parcels, why, told)

    def _forget(self, parcels: Sequence[Parcel], reason: str, told: str) -> None:
        with self._lock:
            self._dropped[reason] += _spans(parcels)
        self._spool.acknowledge(self.key, parcels)
        self._notices.warn(reason, "a span for %s was dropped: %s", self.name, told)

    def _halved(self, parcels: Sequence[Parcel]) -> list[list[Parcel]]:
        """Return parcels as two parts that are tried one after the other; a single one is split in the spool."""
        if len(parcels) > 1:
            middle = len(parcels) // 2
            return [list(parcels[:middle]), list(parcels[middle:])]
        try:
            pieces = halves(parcels[0].batch.body)
        except DecodeError:
            self._forget(parcels, "unreadable", "its bytes are no spans")
            return []
        return [[parcel] for parcel in self._spool.split(self.key, parcels[0], pieces)]


def _spans(parcels: Sequence[Parcel]) -> int:
    return sum(parcel.batch.spans for parcel in parcels)

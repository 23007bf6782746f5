"""Send spans to one destination: requests, retries, and the search for a span that the destination refuses."""

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
from .destinations import Delivered, Destination, Outcome, Refused, Retry, TooLarge, explained
from .notices import Notices
from .spool import Parcel, Spool

MAX_SPANS = 512
MAX_BYTES = 4 * 1024 * 1024
"""Limits of one request; a larger one in the spool is sent alone."""

FIRST_DELAY = 1.0
MAX_DELAY = 64.0
"""Shortest and longest pause before a request is repeated, in seconds, apart from jitter."""

MAX_RETRY_AFTER = 3600.0
"""Maximum number of seconds that a server may ask to wait."""

HANGS_AFTER = 2.0
"""Seconds without an answer after which a destination hangs. The end of a process does not wait for it then."""

PATIENCE = 5
"""Number of times in a row that a destination may raise before the span that makes it raise is searched for."""

PROBES = 16
"""Number of requests in a row after whose refusal a search ends; halving a request down to a span takes fewer."""

MAX_DOUBTED = 10_000
"""Maximum number of spans that are remembered as refused; further ones are not given up."""

CHANCE = random.Random()  # noqa: S311  # jitter is no secret
"""Random numbers for jitter. A generator of its own leaves the state of the program's untouched."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """Numbers of spans of one destination since the start of this process.

    ``retried`` counts each repetition, ``spooled`` the spans whose first try failed, ``waiting`` the spans that are not
    delivered yet, and ``dropped`` the lost spans by reason.
    """

    exported: int = 0
    retried: int = 0
    spooled: int = 0
    waiting: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])

    def by_outcome(self) -> dict[str, int]:
        """Return the counters by name; drops have one counter for each reason."""
        counts = {"exported": self.exported, "retried": self.retried, "spooled": self.spooled, "waiting": self.waiting}
        return counts | {f"dropped: {reason}": count for reason, count in self.dropped.items()}


def backoff(failures: int) -> float:
    """Return the longest pause in seconds after a number of failures in a row: 1, 2, 4, …, 64."""
    return min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 10))


@dataclass(frozen=True)
class _Raised:
    """The destination raised an exception, because of an outage or of a span that it cannot process."""

    why: str


class _Search:
    """The parcels still to send in a step, and the search for spans that the destination refuses or finds too large.

    A span is given up only if it was sent alone, another request was accepted after that, and it is refused again: a
    destination that refuses every request loses no span.
    """

    def __init__(self) -> None:
        self.todo: list[list[Parcel]] = []
        self.is_for_exception = False
        """Set if the destination's exceptions count as refusals."""
        self._accepted = 0
        self._refused = 0
        """Number of requests in this step that were refused since the last one that was accepted."""
        self._doubted: dict[tuple[SpoolFile, int], int] = {}
        """Spans that were refused alone, in this step or earlier, with the value of ``_accepted`` at that time."""

    def begin(self, parcels: list[Parcel]) -> None:
        """Begin a step that sends these parcels."""
        self.todo = [parcels]
        self.is_for_exception = False
        self._refused = 0

    def accepted(self, parcels: list[Parcel]) -> None:
        """Take note that the destination accepted a request."""
        self._accepted += 1
        self._refused = 0
        for parcel in parcels:
            self._doubted.pop((parcel.file, parcel.stored.id), None)

    def judge(self, parcels: list[Parcel], refused: Refused | TooLarge) -> Outcome | None:
        """Return the outcome of parcels that were refused; None if it is decided after the others."""
        later = Retry(None, refused.why, is_misconfigured=not self.is_for_exception, answer=refused.answer)
        if _spans(parcels) > 1:
            self._refused += 1
            return refused if self._refused < PROBES else later  # the sender halves them
        key = (parcels[0].file, parcels[0].stored.id)
        if (accepted_before := self._doubted.get(key)) is not None:
            if self._accepted == accepted_before:
                return later
            del self._doubted[key]
            return refused
        self._refused += 1
        if len(self._doubted) < MAX_DOUBTED:
            self._doubted[key] = self._accepted
        if self._refused >= PROBES or not self.todo:
            return later
        self.todo.insert(0, parcels)
        return None


class Sender:
    """Send spans from the spool to one destination. Used by one thread, except for `counts`.

    ``key`` is the destination's key in the spool. ``clock`` is in seconds; ``jitter`` returns a number from 0 to 1, by
    which each pause is multiplied.
    """

    def __init__(
        self,
        destination: Destination,
        name: str,
        spool: Spool,
        *,
        key: str,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = CHANCE.random,
    ) -> None:
        self.name = name
        self.key = key
        self.put_off_until = 0.0
        self.sending_since: float | None = None
        """Time at which the request was sent that is not answered yet."""
        self._destination = destination
        self._spool = spool
        self._clock = clock
        self._jitter = jitter
        self._search = _Search()
        self._failures = 0
        self._raised = 0
        self._notices = Notices(_logger, clock)
        self._lock = threading.Lock()
        self._exported = self._retried = self._spooled = 0
        self._dropped: Counter[str] = Counter()
        self._tried: set[tuple[SpoolFile, int]] = set()

    def step(self) -> float | None:
        """Send the oldest spans; return the seconds until the next step may be made, None if nothing waits."""
        if (pause := self.put_off_until - self._clock()) > 0:
            return pause
        oldest = self._spool.take(self.key, max_spans=MAX_SPANS, max_bytes=MAX_BYTES)
        if not oldest:
            return None
        this = self._search
        this.begin(oldest)
        from_end = self._failures % 2  # searches begin at alternate ends, because one end may have many bad spans
        while this.todo:
            parcels = this.todo.pop()
            outcome = self._send(parcels)
            if isinstance(outcome, _Raised):
                this.is_for_exception |= self._raised > PATIENCE
                outcome = Refused(outcome.why) if this.is_for_exception else Retry(None, outcome.why)
            if isinstance(outcome, Refused | TooLarge):
                outcome = this.judge(parcels, outcome)
            match outcome:
                case None:
                    pass
                case Delivered():
                    this.accepted(parcels)
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
        """Return whether the last request failed and is to be repeated."""
        return self._failures > 0

    def close(self) -> None:
        """Close the destination."""
        self._destination.close()

    def counts(self, waiting: int, dropped: Mapping[str, int]) -> Counts:
        """Return the counters; ``waiting`` and ``dropped`` come from the spool."""
        with self._lock:
            lost = self._dropped + Counter(dropped)
            return Counts(self._exported, self._retried, self._spooled, waiting, lost)

    def _send(self, parcels: Sequence[Parcel]) -> Outcome | _Raised:
        self.sending_since = self._clock()
        try:
            outcome = self._destination.send(b"".join(parcel.batch.body for parcel in parcels))
        except Exception as error:  # custom exporters are the user's code
            self._raised += 1
            return _Raised(brief(f"the exporter raised {error!r}"))
        finally:
            self.sending_since = None
        self._raised = 0
        return outcome

    def _delivered(self, parcels: Sequence[Parcel], outcome: Delivered) -> None:
        spans = _spans(parcels)
        rejected = min(max(outcome.rejected, 0), spans)
        if self._failures:
            _logger.info("%s accepts telemetry again", self.name)
        self._failures = 0
        with self._lock:
            self._tried.clear()
            self._exported += spans - rejected
            if rejected:
                self._dropped["rejected"] += rejected
        self._spool.acknowledge(self.key, parcels)  # last, so that spans are counted before they no longer wait
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
        until = "until this is fixed" if outcome.is_misconfigured else "and is sent again later"
        message = "telemetry for %s waits in the spool %s: %s"
        self._notices.warn(outcome.why, message, self.name, until, explained(outcome))

    def _drop(self, parcels: Sequence[Parcel], outcome: TooLarge | Refused) -> None:
        self._forget(parcels, "too_large" if isinstance(outcome, TooLarge) else "refused", explained(outcome))

    def _forget(self, parcels: Sequence[Parcel], reason: str, explanation: str) -> None:
        with self._lock:
            self._dropped[reason] += _spans(parcels)
        self._spool.acknowledge(self.key, parcels)
        self._notices.warn(reason, "a span for %s was dropped: %s", self.name, explanation)

    def _halved(self, parcels: Sequence[Parcel]) -> list[list[Parcel]]:
        """Return the two halves of parcels; a single parcel is split in the spool."""
        if len(parcels) > 1:
            middle = len(parcels) // 2
            return [list(parcels[:middle]), list(parcels[middle:])]
        try:
            pieces = halves(parcels[0].batch.body)
        except DecodeError:
            self._forget(parcels, "unreadable", "its bytes cannot be decoded")
            return []
        return [[parcel] for parcel in self._spool.split(self.key, parcels[0], pieces)]


def _spans(parcels: Sequence[Parcel]) -> int:
    return sum(parcel.batch.spans for parcel in parcels)

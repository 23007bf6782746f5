"""Measure the service and the bare app in turn under the same load.

Runners, server and readers are three processes; CPU time and memory are those of the server's process alone. An
event counts once for each reader that received it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.support import Row, progress, spread

from .processes import line, process, server
from .readers import Seen
from .restart import start
from .runners import DELAY_SECONDS

TIMES = 5
GOAL_RATIO = 2.0

LIVE_SESSIONS, LIVE_EVENTS, LIVE_RATE = 100, 30, 5.0
"""A load of a hundred sessions with one reader each, at the rate of working agents."""

CROWDS = ((1, 20_000), (100, 2_000), (1_000, 200))
"""Loads of one session with many readers, whose events are written as fast as they are read."""

IDLE_SESSIONS = 200
IDLE_READERS = (1, 100, 1_000)
STORED_SESSIONS = 1_000

SETTLE_SECONDS = 0.5
"""Seconds after the last turn was sent, in which its runner receives it but writes no events."""


class Load(NamedTuple):
    sessions: int
    readers: int
    events: int
    rate: float


class Taken(NamedTuple):
    """The measurements of a server: CPU seconds per sent turn and for all events, and the readers' results."""

    turn: float
    cpu: float
    seen: Seen

    @property
    def per_event(self) -> float:
        """Return the CPU microseconds per event and reader."""
        return self.cpu / self.seen.events * 1e6


def take(kind: str, load: Load) -> Taken:
    """Put a load on a server of a kind (``bare`` or ``service``) and return its measurements."""
    with (
        tempfile.TemporaryDirectory(prefix="bench_") as folder,
        server(kind, Path(folder), events=load.events, rate=load.rate) as under_load,
    ):
        ids = [under_load.post("/api/sessions", {"prompt": "go"})["id"] for _ in range(load.sessions)]
        with process(
            "benchmarks.streaming.readers", str(under_load.port), str(load.readers), str(load.events), *ids
        ) as readers:
            assert line(readers) == "ready"
            began, at = under_load.cpu, time.monotonic()
            for session_id in ids:
                under_load.post(f"/api/sessions/{session_id}/turns", {"text": "go on"})
            time.sleep(SETTLE_SECONDS)
            sent = under_load.cpu
            assert time.monotonic() - at < DELAY_SECONDS, "the first runner may have begun before all turns were sent"
            assert readers.stdout is not None
            seen = Seen(*json.loads(readers.stdout.readline()))
            taken = Taken((sent - began) / load.sessions, under_load.cpu - sent, seen)
    assert seen.events == load.sessions * load.readers * load.events, f"{seen.events} events came"
    return taken


def _in_turn(load: Load) -> dict[str, list[Taken]]:
    taken: dict[str, list[Taken]] = {"bare": [], "service": []}
    for n in range(TIMES):
        for kind in ("bare", "service") if n % 2 == 0 else ("service", "bare"):
            taken[kind].append(take(kind, load))
        progress(".")
    return taken


def _ratio(what: str, taken: dict[str, list[Taken]]) -> Row:
    ratios = [b.per_event / a.per_event for a, b in zip(taken["bare"], taken["service"], strict=True)]
    bare, ours = (statistics.median(each.per_event for each in taken[kind]) for kind in ("bare", "service"))
    middle = statistics.median(ratios)
    return Row(
        what, f"{bare:.1f} us", f"{ours:.1f} us", f"{middle:.2f}x ({spread(ratios)})", f"<= {GOAL_RATIO:g}x",
        middle <= GOAL_RATIO,
    )  # fmt: skip


def _latency(taken: dict[str, list[Taken]]) -> Iterator[Row]:
    for name, share in (("median", 0.5), ("p99", 0.99)):
        bare, ours = (
            statistics.median(each.seen.latencies[int(len(each.seen.latencies) * share)] for each in taken[kind]) * 1000
            for kind in ("bare", "service")
        )
        what = f"{LIVE_SESSIONS} live sessions: from a runner's write to the reader, {name}"
        yield Row(what, f"{bare:.2f} ms", f"{ours:.2f} ms", f"{ours - bare:+.2f} ms")


def _turn(taken: dict[str, list[Taken]]) -> Row:
    bare, ours = (statistics.median(each.turn for each in taken[kind]) * 1000 for kind in ("bare", "service"))
    return Row(
        "a turn sent, until its runner has it: CPU", f"{bare:.2f} ms", f"{ours:.2f} ms", f"{ours - bare:+.2f} ms"
    )


def measure() -> list[Row]:
    live = _in_turn(Load(LIVE_SESSIONS, 1, LIVE_EVENTS, LIVE_RATE))
    rows = [
        *_latency(live),
        _ratio(f"{LIVE_SESSIONS} live sessions, {LIVE_RATE:g} events a second each: CPU, an event", live),
        _turn(live),
    ]
    for readers, events in CROWDS:
        crowd = _in_turn(Load(1, readers, events, 0.0))
        what = f"{readers:,} {'reader' if readers == 1 else 'readers'} of one session"
        rows.append(_ratio(f"{what}: CPU, an event and reader", crowd))
        bare, ours = (statistics.median(1e6 / each.per_event for each in crowd[kind]) for kind in ("bare", "service"))
        rows.append(Row(f"{what}: events a second and core", f"{bare:,.0f}", f"{ours:,.0f}", ""))
    progress("\n")
    return [*rows, *_memory(), *_restart()]


def _memory() -> Iterator[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="bench_") as folder,
        server("service", Path(folder), events=0, rate=0.0) as under_load,
    ):
        under_load.post("/api/sessions", {"prompt": "go"})
        before = under_load.memory
        ids = [under_load.post("/api/sessions", {"prompt": "go"})["id"] for _ in range(IDLE_SESSIONS)]
        idle = under_load.memory
        yield Row("memory of an idle session", "", f"{(idle - before) / IDLE_SESSIONS * 1024:.0f} KiB", "")
        for count in IDLE_READERS:
            before = under_load.memory
            with process("benchmarks.streaming.readers", str(under_load.port), str(count), "1", ids.pop()) as readers:
                assert line(readers) == "ready"
                each = (under_load.memory - before) / count * 1024
            what = f"memory of an idle reader, {count:,} of one session"
            yield Row(what, "", f"{each:.0f} KiB", "")


def _restart() -> Iterator[Row]:
    """Measure starts with an empty store, with closed sessions, and with open sessions whose sandboxes are gone."""
    none = [start(0, is_open=False) for _ in range(TIMES)]
    closed = [start(STORED_SESSIONS, is_open=False) for _ in range(TIMES)]
    left = [start(STORED_SESSIONS, is_open=True) for _ in range(TIMES)]
    before, after = (statistics.median(each.ready for each in of) * 1000 for of in (none, closed))
    what = f"start with {STORED_SESSIONS:,} closed sessions in the store, until it serves"
    yield Row(what, f"{before:.0f} ms (none)", f"{after:.0f} ms", f"{after - before:+.0f} ms")
    ready, settled, cpu = (statistics.median(values) for values in zip(*left, strict=True))
    what = f"start with {STORED_SESSIONS:,} open ones whose sandboxes are gone, until it serves"
    yield Row(what, f"{before:.0f} ms (none)", f"{ready * 1000:.0f} ms", f"{ready * 1000 - before:+.0f} ms")
    yield Row("… until each of them has been told of as failed", "", f"{settled:.1f} s", f"{cpu:.1f} s of CPU")

"""Measure the host's time per span in microseconds, from the line of its telemetry event to the outbox.

The events have 64 spans each, as the runner sends them, or one each. The time includes decoding the line, checking the
span, metrics, ledger, the sampler's decision, encoding, and the transaction that makes the span durable for three
destinations. A held trace is one that the ratio does not keep; it is decided when its session ends. An earlier session
has created the files of outbox and ledger, which is needed once per process.
"""

from __future__ import annotations

import asyncio
import base64
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec.structs

from agent_runner.contract.protocol import TelemetryData, TelemetryEvent, UnknownEvent, decode_event, encode
from host_client import AgentOptions
from host_client.client.session import common_attributes
from host_client.telemetry import SamplingConfig, SessionTrace, Telemetry, TelemetryConfig, Who, root_of
from host_client.telemetry.batch import Batch, spans_of
from host_client.telemetry.costs.ledger import Ledger
from host_client.telemetry.export.delivery import Delivery
from host_client.telemetry.export.destinations import Delivered, Outcome
from host_client.telemetry.export.spool import Spool
from host_client.telemetry.metrics.observer import metrics_of
from host_client.telemetry.otlp import halves

from .support import Row, interleaved, spread
from .turn import CONTEXT, recorded

CALLS = 450
"""Number of calls of a turn with fewer than 1,000 spans, as a trace with more is kept before its end."""

TIMES = 15
DESTINATIONS = 3
GOAL_TOGETHER, GOAL_ALONE = 150.0, 250.0
LIMIT_SECONDS = 60.0


class Nowhere:
    """A destination that sends nothing."""

    name = "nowhere"
    key = "nowhere"
    durable = True

    def send(self, request: bytes) -> Outcome:
        return Delivered()

    def close(self) -> None:
        pass


def relayed(data: bytes) -> list[TelemetryEvent]:
    """Return the telemetry events in a recorded stream."""
    events = [decode_event(line) for line in data.split(b"\n") if line]
    return [event for event in events if not isinstance(event, UnknownEvent) and isinstance(event, TelemetryEvent)]


def singly(events: Sequence[TelemetryEvent]) -> list[TelemetryEvent]:
    """Return telemetry events with one span each, made from events with several."""

    def split(body: bytes, spans: int) -> list[bytes]:
        if spans <= 1:
            return [body]
        return [part for half in halves(body) for part in split(*half)]

    return [
        msgspec.structs.replace(event, data=TelemetryData(otlp=base64.b64encode(body).decode()))
        for event in events
        for body in split(base64.b64decode(event.data.otlp), 2)
    ]


class Watched(Delivery):
    """The real delivery, which sets `done` after `missing` further spans or when a trace is dropped."""

    def __init__(self, folder: Path) -> None:
        super().__init__([Nowhere() for _ in range(DESTINATIONS)], Spool(folder), linger=LIMIT_SECONDS)
        self.done = threading.Event()
        self.missing = 2

    def offer(self, batches: Sequence[Batch]) -> None:
        super().offer(batches)
        self.missing -= spans_of(batches)
        if not self.missing:
            self.done.set()

    def discard(self, trace_id: str) -> None:
        super().discard(trace_id)
        self.done.set()

    def wait(self) -> None:
        assert self.done.wait(LIMIT_SECONDS)
        self.done.clear()


def begun(telemetry: Telemetry, session_id: str) -> SessionTrace:
    """Start a session's trace and return it."""
    options = AgentOptions(user_id="ada", tenant_id="acme", user_tier="pro")
    who = Who(session_id=session_id, user_id=options.user_id, tenant_id=options.tenant_id, tier=options.user_tier)
    root = root_of(CONTEXT.traceparent if session_id == "s" else None)
    return SessionTrace(telemetry, common_attributes(options, session_id), root, who)


def microseconds(lines: Sequence[bytes], spans: int, rate: float) -> float:
    """Return the microseconds per span from the first line to the decision about the trace."""
    with tempfile.TemporaryDirectory(prefix="bench_") as folder:
        metrics, problems = metrics_of(TelemetryConfig(exporters=("prometheus",), prometheus_port=0))
        assert metrics is not None and not problems
        delivery = Watched(Path(folder))
        observers = (metrics, Ledger(Path(folder, "ledger.sqlite")))
        telemetry = Telemetry(delivery, observers, sampling=SamplingConfig(rate=rate, slow_rate=0.0))
        before = begun(telemetry, "before")
        with before.span("sandbox.create"):
            pass
        telemetry.flush()  # writes the held span, so that the files exist
        before.close(None, "")
        delivery.wait()
        delivery.missing = spans + 1
        trace = begun(telemetry, "s")
        began = time.perf_counter()
        for line in lines:
            event = decode_event(line)
            assert not isinstance(event, UnknownEvent)
            problem = trace.observe(event)
            assert problem is None, problem
        trace.close(None, "")
        delivery.wait()
        taken = time.perf_counter() - began
        assert telemetry.shutdown(LIMIT_SECONDS)
        exported = {name: of.get("exported", 0) for name, of in telemetry.counts().items()}
    assert list(exported.values()) == [spans + 3 if rate else 0] * DESTINATIONS, exported
    return taken / spans * 1e6


def measure() -> list[Row]:
    together = relayed(asyncio.run(recorded(CALLS)))
    alone = singly(together)
    assert 2 * CALLS < len(alone) < 1000
    many, one = [encode(event) for event in together], [encode(event) for event in alone]
    variants = {
        "64 a hand-over, kept": partial(microseconds, many, len(alone), 1.0),
        "64 a hand-over, held and dropped": partial(microseconds, many, len(alone), 0.0),
        "1 a hand-over, kept": partial(microseconds, one, len(alone), 1.0),
        "1 a hand-over, held and dropped": partial(microseconds, one, len(alone), 0.0),
    }
    measured = interleaved(TIMES, variants)
    return [
        _row(name, taken, GOAL_TOGETHER if name.startswith("64") else GOAL_ALONE) for name, taken in measured.items()
    ]


def _row(what: str, taken: list[float], goal: float) -> Row:
    middle = statistics.median(taken)
    return Row(
        f"host: a span to the outbox, {what}",
        "",
        f"{middle:.0f} us",
        f"({spread(taken)})",
        f"< {goal:g} us",
        middle < goal,
    )

"""Measure the time of a tool call in this process, for turns of 50, 500 and 5,000 calls.

It is the wall time from the first call's first message to the end of the SDK's client, in one process, with the
transport's own work on both sides. The runner's side includes the SDK's hook request, the spans' OTLP and the journal.
"""

from __future__ import annotations

import statistics
from functools import partial

from .support import Row, added, interleaved
from .turn import Variant, bare, no_op_hook, ours, seconds

SIZES = {50: 40, 500: 15, 5000: 9}
"""Number of repetitions for each number of calls in a turn."""

GOAL_MICROSECONDS = 200
GOAL_GROWTH = 1.2


def measure() -> list[Row]:
    rows: list[Row] = []
    costs: dict[int, float] = {}
    for variant in (bare, no_op_hook, ours):
        seconds(variant, 200)  # fills caches of imports and regular expressions
    for calls, times in SIZES.items():
        measured = interleaved(
            times,
            {
                name: partial(_microseconds_per_call, variant, calls)
                for name, variant in (("bare", bare), ("hook", no_op_hook), ("ours", ours))
            },
        )
        costs[calls] = added(measured)
        hook = added(measured, "hook")
        plain, whole = (statistics.median(measured[name]) for name in ("bare", "ours"))
        rows.append(
            Row(
                f"per call, {calls:,} calls in a turn",
                f"{plain:,.0f} us",
                f"{whole:,.0f} us",
                f"{costs[calls]:+,.0f} us ({hook:,.0f} of them the SDK's hook)",
                f"<= {GOAL_MICROSECONDS} us",
                costs[calls] <= GOAL_MICROSECONDS,
            )
        )
    growth = costs[max(SIZES)] / costs[min(SIZES)]
    rows.append(
        Row(
            "added at 5,000 calls over added at 50",
            "",
            "",
            f"{growth:.2f}x",
            f"<= {GOAL_GROWTH}x",
            growth <= GOAL_GROWTH,
        )
    )
    return rows


def _microseconds_per_call(variant: Variant, calls: int) -> float:
    return seconds(variant, calls) / calls * 1e6

"""Telemetry events of turns for a ledger, and the cost sums that ``host_client costs`` prints for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent_runner.contract import protocol as p

COSTS_BY = ("user", "tenant", "model", "day")
NEW = ("from", "to", "failed_turns", "failed_nano_usd")
"""Fields of the output that recordings do not have."""


def costs(ledger: Path, by: str, *more: str) -> dict[str, Any]:
    """Run ``host_client costs --json`` and return its sums, without the fields that recordings do not have."""
    command = [sys.executable, "-m", "host_client", "costs", "--by", by, "--json", *more]
    env = {"PATH": os.environ["PATH"], "HOME": str(ledger.parent), "SANDSPAN_LEDGER": str(ledger)}
    done = subprocess.run(command, env=env, cwd=Path(__file__).parents[2], check=True, capture_output=True, timeout=60)
    told = without_new(json.loads(done.stdout))
    return {**told, "rows": list(map(without_new, told["rows"])), "total": without_new(told["total"])}


def without_new(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in NEW}


def event_of(data: p.EventData, number: int) -> p.AnyEvent:
    """Return a telemetry event with a numbered span."""
    return p.event_of(data, seq=1, ts=1_795_500_000.0, trace_id="1" * 32, span_id=f"{number + 1:016x}")

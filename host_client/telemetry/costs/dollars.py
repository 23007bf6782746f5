"""Add up amounts of US dollars. Pure.

This is the only place that does. The session, the terminal's summary, the service's state and a tenant's budget read
their sums from here; the ledger adds up the same whole 1e-9 US dollars in SQL. So they agree, which sums of floats
need not.
"""

from __future__ import annotations

from agent_runner.contract.protocol import Result
from host_client.telemetry.turns import MAX_COST_USD, NANO


def cost_of(event: Result) -> float:
    """Return the cost of a turn in US dollars; 0.0 for an impossible amount, because a sandbox is not trusted."""
    cost = event.data.cost_usd
    return cost if 0.0 <= cost <= MAX_COST_USD else 0.0


def total_usd(*amounts: float) -> float:
    """Return the sum of amounts in US dollars, exact to 1e-9."""
    return sum(round(amount * NANO) for amount in amounts) / NANO

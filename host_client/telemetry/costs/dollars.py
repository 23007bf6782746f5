"""Add up amounts of US dollars. Pure.

The session, the terminal's summary, the service's state and a tenant's budget use these sums of whole 1e-9 US dollars.
The ledger and the stores add up the same whole numbers in SQL. So all of them agree, which sums of floats need not.
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

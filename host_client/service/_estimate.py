"""Estimate of the cost of a turn without a result, from the session's events and spans in the store."""

from __future__ import annotations

import asyncio

from agent_runner.contract.protocol import AnyEvent, Result, ToolUse, TurnStart, decode_event
from host_client.store.base import Store, StoredSession

from ._kept import RELAYED


async def estimated_usd(store: Store, stored: StoredSession) -> float:
    """Return the cost in US dollars of the session's unfinished turn: its model requests at list price."""
    from host_client.telemetry.costs.estimate import unfinished_usd  # OpenTelemetry: not with telemetry off

    session_id = stored.record.id
    events = await _turns(store, session_id)
    relayed = [each[1:].decode() async for each in store.spans(session_id) if each.startswith(RELAYED)]
    trace_ids = frozenset((stored.record.root.trace_id, *(stored.state.whereabouts or {}).get("trace_ids", ())))
    return round(await asyncio.to_thread(unfinished_usd, events, relayed, trace_ids), 9)


async def _turns(store: Store, session_id: str) -> list[AnyEvent]:
    """Return the log's events at the start and end of turns and the start of tool calls."""
    events: list[AnyEvent] = []
    last = 0
    while entries := await store.read(session_id, last):
        last = entries[-1].id
        decoded = (decode_event(entry.data) for entry in entries)
        events += [event for event in decoded if isinstance(event, TurnStart | ToolUse | Result)]
    return events

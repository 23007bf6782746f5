"""Estimate the cost of turns that have no result. Importing this module imports OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterable

from agent_runner.contract.protocol import AnyEvent
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.otlp import ended_spans, spans_of
from host_client.telemetry.relay.decoding import decode
from host_client.telemetry.turns import MAX_COST_USD, NANO

from ._unfinished import Spending, parent_of_request
from .dollars import total_usd


def unfinished_usd(events: Iterable[AnyEvent], relayed: Iterable[str], trace_ids: frozenset[str]) -> float:
    """Return the cost of a session's unfinished turns in US dollars, at list price, as far as their spans have arrived.

    ``relayed`` are the payloads of the session's ``telemetry`` events; ``trace_ids`` are the session's traces.
    """
    calls, seen = ToolCalls(), set[bytes]()
    spending = Spending(calls)
    for event in events:
        calls.observe(event)
        spending.observe(event)
    for otlp in relayed:
        try:
            request = decode(otlp, trace_ids=trace_ids, common={})
        except ValueError:  # forged by the sandbox
            continue
        for message, span in zip(spans_of(request), ended_spans(request), strict=True):
            if message.span_id not in seen and (parent := parent_of_request(span)) is not None:
                spending.request(parent, span.attributes)
            seen.add(message.span_id)
    amounts = [unfinished.figures.nano / NANO for unfinished in spending.so_far()]
    return total_usd(*(amount for amount in amounts if amount <= MAX_COST_USD))  # a forged amount is left out

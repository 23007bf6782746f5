"""Estimates the cost of turns that never had a result. Importing this module imports OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterable

from agent_runner.contract.protocol import AnyEvent
from host_client.telemetry.calls import ToolCalls
from host_client.telemetry.otlp import ended_spans, spans_of
from host_client.telemetry.relay.decoding import decode
from host_client.telemetry.turns import MAX_COST_USD, NANO

from ._unfinished import Spending, parent_of_request


def unfinished_usd(events: Iterable[AnyEvent], relayed: Iterable[str], trace_ids: frozenset[str]) -> float:
    """Return what the unfinished turns of a session cost at list price, in US dollars, as far as their spans came.

    ``relayed`` is what the session's ``telemetry`` events carry, ``trace_ids`` are the traces that the session is in.
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
        for sent, span in zip(spans_of(request), ended_spans(request), strict=True):
            if sent.span_id not in seen and (parent := parent_of_request(span)) is not None:
                spending.request(parent, span.attributes)
            seen.add(sent.span_id)
    amounts = [left.figures.nano / NANO for left in spending.so_far()]
    return sum(amount for amount in amounts if amount <= MAX_COST_USD)  # a forged amount is left out

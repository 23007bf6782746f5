"""Replay recorded runs through the real host, and collect result, events, spans, costs and metrics."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from host_client import Session, Telemetry, open_session, take_over
from host_client import events as p
from host_client.telemetry import TelemetryConfig, initialize_telemetry
from host_client.telemetry.export import endpoints
from tests.compat.adapter import outcome_of
from tests.compat.canonical import CONVENTIONS, by_id, metrics_in, readable_spans
from tests.compat.canonical import spans_of as spans_in
from tests.compat.costs import costs
from tests.compat.player import Played
from tests.compat.recordings import Json, Recording
from tests.telemetry.receiver import METRICS_PATH, WAIT_SECONDS, http_receiver

MODEL_ENVIRONMENT = {
    "ANTHROPIC_API_KEY": "sk-ant-not-a-key",
    "ANTHROPIC_BASE_URL": "http://model.example",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
}
"""The model's environment in the recorded hosts, with another address."""


class Collected(SpanExporter):
    """An exporter that keeps all spans."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.extend(spans)
        return SpanExportResult.SUCCESS


def play_all(recordings: Sequence[Recording]) -> Json:
    """Replay runs in turn with one telemetry; return each run's outcome and the costs and metrics of all."""
    with http_receiver() as receiver, tempfile.TemporaryDirectory() as folder:
        ledger, collected = Path(folder, "ledger"), Collected()
        config = TelemetryConfig(
            conventions=CONVENTIONS,
            exporters=(),
            custom_exporters=[collected],
            otlp_metrics=endpoints.otlp("metrics", receiver.url),
            ledger=ledger,
        )
        telemetry = initialize_telemetry(config)
        runs = {each.name: play_one(each, Played(each), telemetry) for each in recordings}
        assert telemetry.shutdown(WAIT_SECONDS), telemetry.counts()
        for each in recordings:
            runs[each.name]["spans"] = spans_of(each, collected)
        last = [request.body for request in receiver.requests if request.path == METRICS_PATH][-1]
        sums = {by: costs(ledger, by) for by in ("user", "tenant", "model")}
    return {"runs": runs, "costs": sums, "metrics": _steady(metrics_in(last))}


def play_alone(recording: Recording, *, loses_after: int | None = None, seen: int = 0) -> Json:
    """Replay a run whose stream fails or that another host takes over, with a telemetry of its own; see `Played`."""
    collected = Collected()
    telemetry = initialize_telemetry(
        TelemetryConfig(exporters=(), custom_exporters=[collected], conventions=CONVENTIONS)
    )
    played = play_one(recording, Played(recording, loses_after=loses_after, seen=seen), telemetry, seen)
    assert telemetry.shutdown(WAIT_SECONDS), telemetry.counts()
    return {**played, "spans": spans_of(recording, collected)}


def play_one(recording: Recording, sandbox: Played, telemetry: Telemetry, seen: int = 0) -> Json:
    """Replay a run in a sandbox; return the host's output, its commands and the values that it gave the sandbox."""
    opening = taken_over(recording, sandbox, telemetry, seen) if seen else opened(recording, sandbox, telemetry)
    return asyncio.run(play(recording, sandbox, opening, seen))


def _steady(metrics: dict[str, Json]) -> dict[str, Json]:
    """Remove values that depend on this machine: sandbox creation times and counts of delivered spans."""
    metrics["claude.agent.telemetry.spans"].pop("points")
    made = metrics["claude.agent.sandbox.creation.duration"]
    made["points"] = {labels: point["count"] for labels, point in made["points"].items()}
    return metrics


def opened(recording: Recording, sandbox: Played, telemetry: Telemetry) -> AbstractAsyncContextManager[Session]:
    """Open a session whose sandbox replays a recording."""
    return open_session(
        recording.prompt,
        recording.options,
        sandbox=sandbox,
        telemetry=telemetry,
        root=recording.root,
        session_id=recording.about["session_id"],
        environ=MODEL_ENVIRONMENT,
    )


def taken_over(
    recording: Recording, sandbox: Played, telemetry: Telemetry, seen: int
) -> AbstractAsyncContextManager[Session]:
    """Take over a session whose sandbox replays a recording of which an earlier host has read a part."""
    return take_over(
        recording.taken_over(),
        recording.options,
        session_id=recording.about["session_id"],
        root=recording.root,
        seen_seq=seen,
        sandbox=sandbox,
        telemetry=telemetry,
        environ={},
    )


async def play(
    recording: Recording, sandbox: Played, opening: AbstractAsyncContextManager[Session], seen: int = 0
) -> Json:
    """Send a session the commands of the recorded host, each after the same event; return its outcome and events.

    ``seen`` is the sequence number of the last event that an earlier host has read.
    """
    events: list[Json] = []
    # The first command is the prompt, which opens the session.
    left = [(seq, command) for seq, command in recording.commands_after[1:] if seq >= seen]
    async with asyncio.timeout(WAIT_SECONDS), opening as session:
        await _command(session, left, seen)
        async for event in session:
            events.append(json.loads(p.encode(event)))
            if event.seq is not None:
                await _command(session, left, event.seq)
    return {
        "outcome": outcome_of(session),
        "events": [event for event in events if not is_own(event)],
        "own_events": [{"type": event["type"], "data": event["data"]} for event in events if is_own(event)],
        "commands": sandbox.commands,
        "environment": sandbox.environments.get("run", {}),
        "metadata": sandbox.metadata,
    }


def is_own(event: Json) -> bool:
    """Return whether the host itself made an event: it has no number and is not a text delta."""
    return "seq" not in event and event["type"] != "text_delta"


async def _command(session: Session, left: list[tuple[int, Json]], seq: int) -> None:
    """Send and remove the commands that the recorded host wrote after the event with this sequence number."""
    while left and left[0][0] == seq:
        _, command = left.pop(0)
        await _send(session, command)


async def _send(session: Session, command: Json) -> None:
    match command:
        case {"type": "prompt", "text": text}:
            await session.send(text, traceparent=command.get("traceparent"), tracestate=command.get("tracestate", ""))
        case {"type": "approval", "approval_id": key, "decision": "allow"}:
            await session.approve(
                key,
                updated_input=command.get("updated_input"),
                remember=command.get("remember", False),
                decided_by=command.get("decided_by"),
            )
        case {"type": "approval", "approval_id": key}:
            await session.deny(key, command.get("message"), decided_by=command.get("decided_by"))
        case {"type": "answer", "question_id": key, "answers": answers}:
            await session.answer(key, answers, decided_by=command.get("decided_by"))
        case {"type": "interrupt"}:
            await session.interrupt()
        case {"type": "finish"}:
            await session.finish()
        case {"type": "stop"}:
            await session.stop()
        case _:
            raise AssertionError(command)


def spans_of(recording: Recording, collected: Collected) -> dict[str, Any]:
    """Return the spans of a run's traces by span id; host spans with a random id are returned by name.

    Times of the replay, as opposed to recorded ones, are replaced by ``now``; measured durations are removed.
    """
    traces = {recording.root.trace_id, *(event["trace_id"] for event in recording.events)}
    spans = by_id([span for span in readable_spans(collected.spans) if span["trace_id"] in traces])
    known = recorded_ids(recording)
    newest = (max(event["ts"] for event in recording.events) + 1.0) * 1e9
    named: dict[str, Any] = {}
    for span_id, span in spans.items():
        for name in ("start_time_unix_nano", "end_time_unix_nano"):
            if int(span[name]) > newest:
                span[name] = "now"
        _forget_process(span)
        if span_id in known:
            name = span_id
        else:
            name, span["span_id"] = span["name"], ""
            span["attributes"] = [pair for pair in span["attributes"] if pair[0] != "sandbox.creation_duration_ms"]
        assert name not in named, name
        named[name] = span
    return named


def _forget_process(span: Json) -> None:
    """Remove the process id and the versions from the resource and scope of a span that a host made."""
    attributes = span["resource"]["attributes"]
    if any(name == "service.instance.id" for name, _ in attributes):
        left_out = ("service.instance.id", "service.version", "telemetry.sdk.version")
        span["resource"] = {**span["resource"], "attributes": [pair for pair in attributes if pair[0] not in left_out]}
        span["scope"] = {name: value for name, value in span["scope"].items() if name != "version"}


def recorded_ids(recording: Recording) -> set[str]:
    """Return the span ids in a recording: of its events, of relayed spans, and of the earlier host's own spans."""
    told = [event["data"]["otlp"] for event in recording.events if event["type"] == "telemetry"]
    requests = [*map(base64.b64decode, told), recording.whereabouts.own_spans]
    spans = [span["span_id"] for request in requests for span in spans_in(request)]
    return {recording.root.span_id, *spans, *(event["span_id"] for event in recording.events)}

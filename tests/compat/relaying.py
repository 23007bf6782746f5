"""Send telemetry events of a sandbox through the real host, and collect the spans of each destination."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from host_client import events as p
from host_client.telemetry import Telemetry, TelemetryConfig, initialize_telemetry
from host_client.telemetry.export import endpoints
from tests.compat.canonical import CONVENTIONS, readable_spans, spans_of
from tests.compat.player import Played
from tests.compat.playing import Collected, opened
from tests.compat.recordings import Json, Recording, Step
from tests.telemetry.receiver import WAIT_SECONDS, http_receiver

TRACE, OTHER_TRACE = (
    bytes.fromhex("0af7651916cd43dd8448eb211c80319c"),
    bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736"),
)
TRACESTATE = "vendor=x,other=y"
ROOT = "b7ad6b7169203331"

OWN = ("agent.session", "sandbox.create", "sandbox.cleanup")
"""Names of the host's own spans, which differ from all relayed names."""

DAY = 86_400 * 10**9
HOUR = 3_600 * 10**9
PATIENCE = 4 * WAIT_SECONDS
"""Seconds to wait; the large amount of spans takes long on a busy machine."""

PATHS = {"/v1/traces": "otlp", "/api/public/otel/v1/traces": "langfuse"}

_OPTIONS: Json = {
    "user_id": "ada@example.com",
    "tenant_id": "acme",
    "user_tier": "pro",
    "attributes": {"org": "acme", "region": "eu"},
}


def relayed(inputs: Sequence[str], sanitize: Callable[[str], str] | None = None) -> Json:
    """Send each input as a ``telemetry`` event of a session's runner and collect the results.

    Return under ``refused`` the host's error messages by the index of the refused input, and for each destination the
    spans that it received, by trace and span id.
    """
    recording, collected = _recording(inputs), Collected()
    began = time.time_ns()
    with http_receiver() as receiver, tempfile.TemporaryDirectory() as folder:
        telemetry = initialize_telemetry(
            TelemetryConfig(
                environment="Staging 1",
                conventions=CONVENTIONS,
                exporters=("otlp", "langfuse"),
                otlp=endpoints.otlp("traces", receiver.url),
                langfuse=endpoints.langfuse(receiver.url, "pk-lf-compat", "sk-lf-compat"),
                custom_exporters=[collected],
                sanitize_prompt=sanitize,
                spool_directory=Path(folder),
            )
        )
        sandbox = Played(recording)
        refused = asyncio.run(_refused(recording, sandbox, opened(recording, sandbox, telemetry)))
        flush_all(telemetry, PATIENCE)
        assert telemetry.shutdown(WAIT_SECONDS), telemetry.counts()
        requests = [(PATHS[request.path], request.body) for request in receiver.requests]
    found: dict[str, list[Json]] = {name: [] for name in PATHS.values()}
    for name, body in requests:
        found[name] += spans_of(body)
    found["custom"] = readable_spans(collected.spans)
    return {"refused": refused, **{name: _by_id(spans, began) for name, spans in found.items()}}


def flush_all(telemetry: Telemetry, seconds: float) -> None:
    """Flush until no span waits, and assert that no span was dropped.

    A single flush gives up on a destination that does not answer for two seconds, as one may on a busy machine.
    """
    until = time.monotonic() + seconds
    while not telemetry.flush(max(0.0, until - time.monotonic())):
        counts = telemetry.counts()
        assert time.monotonic() < until, counts
        assert not any("dropped" in name for count in counts.values() for name in count), counts
        time.sleep(0.1)  # the destination's answer is awaited


def relayed_sanitized(inputs: Sequence[tuple[str, str]]) -> Json:
    """Return the result of `relayed` for the inputs with content, with a sanitizer on the host."""
    return relayed([otlp for name, otlp in inputs if name.partition(" ")[0] in HOLD_CONTENT], sanitize)


HOLD_CONTENT = ("real", "texts", "altered")
"""First words in the descriptions of inputs that contain prompts, answers or tool calls."""


def sanitize(text: str) -> str:
    """Return the text in capitals; raise an error for a text of over 2,000 characters."""
    if len(text) > 2000:
        raise ValueError("too long")
    return text.upper()


def _recording(inputs: Sequence[str]) -> Recording:
    """Return a run with two turns, the second in another trace, whose only events before the end are telemetry."""
    caller = f"00-{OTHER_TRACE.hex()}-00f067aa0ba902b7-01"
    commands = [{"type": "prompt", "text": "go"}, {"type": "prompt", "text": "on", "traceparent": caller}]
    data: list[tuple[str, Json]] = [("telemetry", {"otlp": otlp}) for otlp in inputs]
    data.append(("end", {"reason": "completed", "exit_code": 0}))
    envelope = {"v": 1, "ts": 1_767_225_600.5, "trace_id": TRACE.hex(), "span_id": ROOT}
    lines = [{"type": kind, **envelope, "seq": seq, "data": each} for seq, (kind, each) in enumerate(data, 1)]
    root = {"trace_id": TRACE.hex(), "span_id": ROOT, "parent_span_id": None, "tracestate": TRACESTATE, "start": 10**18}
    info = {"id": "played", "kind": "e2b", "work": "/home/user/work", "journal": "/var/lib/sandspan/journal"}
    about: Json = {
        "prompt": "go",
        "options": _OPTIONS,
        "session_id": "session-1",
        "root": root,
        "whereabouts": {"run_id": "run", "info": info, "process_id": "7", "trace_ids": []},
        "exit_code": 0,
    }
    steps = [*(Step(json.dumps(each), True) for each in commands), *(Step(json.dumps(each), False) for each in lines)]
    return Recording("relay", about, tuple(steps))


async def _refused(recording: Recording, sandbox: Played, opening: Any) -> dict[str, str]:
    """Return the host's error message for each refused input; it comes just before the input's own event."""
    refused: dict[str, str] = {}
    said = ""
    async with asyncio.timeout(PATIENCE), opening as session:
        await session.send("on", traceparent=recording.commands[1]["traceparent"])
        async for event in session:
            if isinstance(event, p.Error) and event.seq is None:
                said = event.data.message
            elif isinstance(event, p.Telemetry):
                assert event.seq is not None
                if said:
                    refused[str(event.seq - 1)] = said
                said = ""
    assert sandbox.has_ended
    return refused


def _by_id(spans: list[Json], began: int) -> dict[str, Json]:
    """Return the relayed spans by trace and span id, with present times replaced by words."""
    found: dict[str, Json] = {}
    for span in spans:
        if span.get("name") in OWN:
            continue
        key = f"{span['trace_id'][:4]}-{span.pop('span_id')}"
        assert key not in found, key
        found[key] = span
        _forget_moments(span, began)
    return dict(sorted(found.items()))


def _forget_moments(span: Json, began: int) -> None:
    for of, name in [
        *((span, name) for name in ("start_time_unix_nano", "end_time_unix_nano")),
        *((event, "time_unix_nano") for event in span.get("events", [])),
    ]:
        of[name] = _moment(int(of.get(name, 0)), began)
    if span["start_time_unix_nano"] in ("now", "tomorrow"):
        for attribute in span.get("attributes", []):
            if attribute[0] == "langfuse.observation.completion_start_time":
                attribute[1] = span["start_time_unix_nano"]


def _moment(nanoseconds: int, began: int) -> int | str:
    """Return a time; a present one as ``now`` and one a day ahead as ``tomorrow``."""
    for name, moment in (("now", began), ("tomorrow", began + DAY)):
        if moment <= nanoseconds < moment + HOUR:
            return name
    return nanoseconds

"""Records what a sandbox may send as telemetry, and what the host makes of it for each destination."""

from __future__ import annotations

import base64
import json

from tests.compat.files import RELAY, RELAYED, write_xz
from tests.compat.recorders.hostile import Maker
from tests.compat.recordings import Json, load, recorded_names
from tests.compat.relaying import TRACE, relayed, relayed_sanitized


def record() -> None:
    """Write 2,000 inputs, some of them of the recorded runs, and what became of them; the same twice."""
    inputs = Maker(_real()).inputs()
    write_xz(RELAY, "".join(json.dumps(each) + "\n" for each in inputs).encode())
    once, again = (_relayed([(name, otlp) for name, otlp in inputs]) for _ in range(2))
    assert once == again, "what is compared differs from one time to the next"
    write_xz(RELAYED, json.dumps(once, indent=0, ensure_ascii=False).encode())


def _real() -> list[bytes]:
    """Return the requests of the recorded runs, all in one trace."""
    found: list[bytes] = []
    for name in recorded_names():
        recording = load(name)
        told = [event["data"]["otlp"] for event in recording.events if event["type"] == "telemetry"]
        trace_id = bytes.fromhex(recording.root.trace_id)
        found += [base64.b64decode(otlp).replace(trace_id, TRACE) for otlp in told]
    return found


def _relayed(inputs: list[tuple[str, str]]) -> Json:
    return json.loads(
        json.dumps({"whole": relayed([otlp for _, otlp in inputs]), "sanitized": relayed_sanitized(inputs)})
    )

"""Read and write the files of recordings in ``fixtures/``."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.compat.adapter import Role

FIXTURES = Path(__file__).parent / "fixtures"

SQLITE = "stores/service.sqlite.gz"
REDIS = "stores/redis.jsonl.gz"
STORES = "stores/contents.json.gz"
REST = "stores/rest.json.gz"
PUBLIC = "public.json"
SANDBOXES = "sandboxes.json.gz"
RELAY, RELAYED = "relay/inputs.jsonl.xz", "relay/outputs.json.xz"
RUNS, PLAYED = "runs", "played.json.gz"
SPOOL, DELIVERED = "telemetry/spool", "telemetry/delivered.json.gz"
LEDGER, COSTS = "telemetry/ledger", "telemetry/costs.json.gz"

VIEWER, APPROVER, OPERATOR, OPERATOR_OF_BOLT = (f"sst_{letter * 43}" for letter in "VAOB")
"""The secret tokens of the recorded stores, one for each holder."""

TOKENS: dict[str, tuple[str, str, Role]] = {
    VIEWER: ("vera", "acme", "viewer"),
    APPROVER: ("grace", "acme", "approver"),
    OPERATOR: ("ada", "acme", "operator"),
    OPERATOR_OF_BOLT: ("bob", "bolt", "operator"),
}
"""Name, tenant and role of each token's holder."""

FIRST_KEY, TURN_KEY, IN_FLIGHT_KEY = "make-mend", "turn-2-of-mend", "in-flight"
"""Idempotency keys in the recorded stores."""

MEND = (
    b'{"prompt":"Mend the parser","user_id":"ada","user_tier":"pro","max_budget_usd":2.5,"model":"claude-sonnet-4-5",'
    b'"metadata":{"org":"acme","ref":"x y"}}'
)
"""The body of the request sent with `FIRST_KEY`; a repetition must have the same bytes."""

TURN = b'{"text":"Now the docs"}'
"""The body of the request sent with `TURN_KEY`."""

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
"""The traceparent header of a caller whose trace is not the session's."""


def read_gzip(name: str) -> bytes:
    """Return the content of a gzip file."""
    return gzip.decompress((FIXTURES / name).read_bytes())


def unpack(name: str, folder: Path) -> Path:
    """Decompress all gzip files of a recorded folder into a folder, which is made if missing; return that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (FIXTURES / name).iterdir():
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


def read_json(name: str) -> Any:
    """Return the value in a gzip-compressed JSON file."""
    return json.loads(read_gzip(name))


def read_text(name: str) -> Any:
    """Return the value in an uncompressed JSON file."""
    return json.loads((FIXTURES / name).read_bytes())


def read_lines(name: str) -> list[Any]:
    """Return the JSON value of each line of a gzip file."""
    return [json.loads(line) for line in read_gzip(name).split(b"\n") if line]


def write(name: str, content: bytes) -> None:
    """Write a new file; fail if it exists, as recorded files are never replaced."""
    path = FIXTURES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)


def write_gzip(name: str, content: bytes) -> None:
    """Write a gzip file without a timestamp, so that the same content gives the same bytes."""
    write(name, gzip.compress(content, 9, mtime=0))


def read_xz(name: str) -> bytes:
    """Return the content of an xz file."""
    return lzma.decompress((FIXTURES / name).read_bytes())


def write_xz(name: str, content: bytes) -> None:
    """Write an xz file."""
    write(name, lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def write_text(name: str, value: dict[str, Any]) -> None:
    """Write a small dict as an uncompressed JSON file with one name per line."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(each)}" for key, each in value.items())
    write(name, f"{{\n{lines}\n}}\n".encode())


def write_lines(name: str, values: Iterable[Any]) -> None:
    """Write values as JSON, one per line, into a gzip file."""
    write_gzip(name, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in values).encode())


def write_json(name: str, value: Any) -> None:
    """Write a value as indented JSON into a gzip file."""
    write_gzip(name, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")

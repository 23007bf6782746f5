"""Read and write the recorded files."""

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
"""The tokens in the recorded stores, as their holders have them."""

TOKENS: dict[str, tuple[str, str, Role]] = {
    VIEWER: ("vera", "acme", "viewer"),
    APPROVER: ("grace", "acme", "approver"),
    OPERATOR: ("ada", "acme", "operator"),
    OPERATOR_OF_BOLT: ("bob", "bolt", "operator"),
}
"""Name, tenant and role of each."""

FIRST_KEY, TURN_KEY, IN_FLIGHT_KEY = "make-mend", "turn-2-of-mend", "in-flight"
"""Idempotency keys in the recorded stores."""

MEND = (
    b'{"prompt":"Mend the parser","user_id":"ada","user_tier":"pro","max_budget_usd":2.5,"model":"claude-sonnet-4-5",'
    b'"metadata":{"org":"acme","ref":"x y"}}'
)
"""The body of the request with `FIRST_KEY`, which must be the same to the byte where it is repeated."""

TURN = b'{"text":"Now the docs"}'
"""The body of the request with `TURN_KEY`."""

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
"""The traceparent of a caller in another trace."""


def read_gzip(name: str) -> bytes:
    """Return the content of a packed file."""
    return gzip.decompress((FIXTURES / name).read_bytes())


def unpack(name: str, folder: Path) -> Path:
    """Unpack a folder of packed files into a new or existing folder; return that folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (FIXTURES / name).iterdir():
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return folder


def read_json(name: str) -> Any:
    """Return a packed JSON file."""
    return json.loads(read_gzip(name))


def read_text(name: str) -> Any:
    """Return a JSON file that is not packed."""
    return json.loads((FIXTURES / name).read_bytes())


def read_lines(name: str) -> list[Any]:
    """Return the JSON of each line of a packed file."""
    return [json.loads(line) for line in read_gzip(name).split(b"\n") if line]


def write(name: str, content: bytes) -> None:
    """Write a new file; a recorded file is never replaced."""
    path = FIXTURES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(content)


def write_gzip(name: str, content: bytes) -> None:
    """Pack a file; the same content gives the same bytes."""
    write(name, gzip.compress(content, 9, mtime=0))


def read_xz(name: str) -> bytes:
    """Return the content of an xz file."""
    return lzma.decompress((FIXTURES / name).read_bytes())


def write_xz(name: str, content: bytes) -> None:
    """Pack a file as xz."""
    write(name, lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def write_text(name: str, value: dict[str, Any]) -> None:
    """Write a small value as JSON with a line per name."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(each)}" for key, each in value.items())
    write(name, f"{{\n{lines}\n}}\n".encode())


def write_lines(name: str, values: Iterable[Any]) -> None:
    """Pack values, each as the JSON of a line."""
    write_gzip(name, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in values).encode())


def write_json(name: str, value: Any) -> None:
    """Pack a value as JSON that a person can read."""
    write_gzip(name, json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n")

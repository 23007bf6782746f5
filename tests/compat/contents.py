"""The whole content of a store as JSON, read through the Store protocol and compared with a recording."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tests.compat.adapter import Store

Json = dict[str, Any]

FAR_DAY = "2126-11-29"
"""A day that no store forgets as past."""

FAR_SECONDS = 1e10
"""How long what expires by itself is kept in the recorded stores, and how wide their window of a count is."""


async def contents_of(store: Store, expected: Mapping[str, Any]) -> Json:
    """Return the content of a store; ``expected`` has the keys that a store does not list."""
    found = {
        "sessions": [await _session(store, each["record"]["id"], each) for each in expected["sessions"]],
        "tokens": [msgspec.to_builtins(token) for token in await store.tokens()],
        "spent": [[tenant, day, await store.spent(tenant, day)] for tenant, day, _ in expected["spent"]],
        "remembered": [await _remembered(store, each) for each in expected["remembered"]],
    }
    return json.loads(json.dumps(found))  # with lists for tuples


async def _session(store: Store, session_id: str, expected: Mapping[str, Any]) -> Json:
    stored = await store.get(session_id)
    assert stored is not None, session_id
    entries = await store.read(session_id, 0, limit=100_000)
    decisions = [await store.decision(session_id, each["request_id"]) for each in expected["decisions"]]
    record: Json = msgspec.to_builtins(stored.record)
    assert record["root"].pop("flags") == 1  # added since; old roots have the default
    return {
        "record": record,
        "state": msgspec.to_builtins(stored.state),
        "oldest": await store.oldest(session_id),
        "events": [[entry.id, json.loads(entry.data)] for entry in entries],
        "spans": [base64.b64encode(data).decode() async for data in store.spans(session_id)],
        "commands": [[each.position, json.loads(each.data)] for each in await store.commands(session_id, 0)],
        "decisions": [msgspec.to_builtins(each) for each in decisions],
    }


async def _remembered(store: Store, expected: Mapping[str, Any]) -> Json:
    """Look an idempotency key up by reserving it, which does not change an existing one."""
    there = await store.reserve(expected["tenant_id"], expected["key"], expected["digest"], FAR_SECONDS)
    assert there is not None, expected["key"]
    answer = base64.b64encode(there.answer).decode() if there.answer is not None else None
    return {"tenant_id": expected["tenant_id"], "key": expected["key"], "digest": there.digest, "answer": answer}


def request_ids(events: list[Json], commands: list[Json]) -> Iterator[str]:
    """Yield the ids under which a session's decisions may be kept, given its events and queued commands."""
    for event in events:
        data = event["data"]
        match event["type"]:
            case "approval_request":
                yield data["approval_id"]
            case "question_request":
                yield data["question_id"]
            case "prompt":
                yield f"turn:{data['turn_id']}"
            case _:
                pass
    for command in commands:
        if command["type"] == "prompt":
            yield f"turn:{command['turn_id']}"

"""Read the whole content of a store through the Store protocol as JSON, to compare it with a recording."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tests.compat.adapter import Store

Json = dict[str, Any]

FAR_DAY = "2126-11-29"
"""A day in the future, so that no store deletes its data as expired."""

FAR_SECONDS = 1e10
"""Seconds for which the recorded stores keep expiring entries, and length of their counting windows."""


async def contents_of(store: Store, expected: Mapping[str, Any]) -> Json:
    """Return the content of a store as JSON; ``expected`` supplies the keys that a store cannot list."""
    found = {
        "sessions": [await _session(store, each["record"]["id"], each) for each in expected["sessions"]],
        "tokens": [msgspec.to_builtins(token) for token in await store.tokens()],
        "spent": [[tenant, day, await store.spent(tenant, day)] for tenant, day, _ in expected["spent"]],
        "remembered": [await _remembered(store, each) for each in expected["remembered"]],
    }
    return json.loads(json.dumps(found))  # a round trip through JSON turns tuples into lists


async def _session(store: Store, session_id: str, expected: Mapping[str, Any]) -> Json:
    stored = await store.get(session_id)
    assert stored is not None, session_id
    entries = await store.read(session_id, 0, limit=100_000)
    decisions = [await store.decision(session_id, each["request_id"]) for each in expected["decisions"]]
    record: Json = msgspec.to_builtins(stored.record)
    assert record["root"].pop("flags") == 1  # f6f5305 did not store the flags; they default to 1
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
    """Read an idempotency key by reserving it again, which does not change an existing entry."""
    there = await store.reserve(expected["tenant_id"], expected["key"], expected["digest"], FAR_SECONDS)
    assert there is not None, expected["key"]
    answer = base64.b64encode(there.answer).decode() if there.answer is not None else None
    return {"tenant_id": expected["tenant_id"], "key": expected["key"], "digest": there.digest, "answer": answer}


def request_ids(events: list[Json], commands: list[Json]) -> Iterator[str]:
    """Yield the ids under which a session's decisions may be stored, given its events and queued commands."""
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

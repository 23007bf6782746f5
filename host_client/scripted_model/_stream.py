"""Turns a reply into the server-sent events of the Anthropic Messages API, in the order of the real API. Pure.

The order is from the API's streaming documentation: message_start, content_block_start / _delta / _stop, message_delta,
message_stop; pings anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from ._script import Reply, ScriptedTool

Timed = tuple[float, dict[str, Any]]
"""An event, after the seconds to wait before it."""


def message_events(reply: Reply, *, message_id: str, model: str) -> Iterator[Timed]:
    """Yield all events of one reply with the seconds to wait before each; the reply's ``delay`` is not included."""
    usage = msgspec.to_builtins(reply.usage)
    at_end = usage.pop("at_end")
    more = usage.pop("more")
    zeros = dict.fromkeys(usage, 0)
    usage |= more
    yield (
        0.0,
        {
            "type": "message_start",
            "message": {
                "id": message_id,
                "type": "message",
                "role": "assistant",
                "model": reply.model or model,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                # The real API reports a small number of output tokens here and the final one in message_delta.
                "usage": zeros if at_end else {**usage, "output_tokens": 1},
            },
        },
    )
    yield from ((0.0, {"type": "ping"}) for _ in range(reply.pings))
    yield from _blocks(reply, message_id)
    stop_reason = reply.stop_reason or ("tool_use" if reply.tools else "end_turn")
    yield (
        0.0,
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": None},
            "usage": usage if at_end else {"output_tokens": usage["output_tokens"]},
        },
    )
    yield 0.0, {"type": "message_stop"}


def _blocks(reply: Reply, message_id: str) -> Iterator[Timed]:
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    if reply.thinking is not None:
        deltas = [{"type": "thinking_delta", "thinking": part} for part in _cut(reply.thinking, reply.chunk)]
        deltas.append({"type": "signature_delta", "signature": "c2NyaXB0ZWQ="})
        blocks.append(({"type": "thinking", "thinking": "", "signature": ""}, deltas))
    if reply.text is not None:
        deltas = [{"type": "text_delta", "text": part} for part in _cut(reply.text, reply.chunk)]
        blocks.append(({"type": "text", "text": ""}, deltas))
    blocks.extend(_tool_block(tool, message_id, n) for n, tool in enumerate(reply.tools, 1))
    wait = reply.first_token_after
    for index, (start, deltas) in enumerate(blocks):
        yield 0.0, {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield wait, {"type": "content_block_delta", "index": index, "delta": delta}
            wait = reply.pace
        yield 0.0, {"type": "content_block_stop", "index": index}


def _tool_block(tool: ScriptedTool, message_id: str, n: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    tool_id = tool.id or f"toolu_{message_id.removeprefix('msg_')}_{n}"
    # The real API cuts JSON at any place, so the size is odd on purpose.
    parts = _cut(json.dumps(tool.input), 4093)
    deltas: list[dict[str, Any]] = [{"type": "input_json_delta", "partial_json": ""}]
    deltas += [{"type": "input_json_delta", "partial_json": part} for part in parts]
    return {"type": "tool_use", "id": tool_id, "name": tool.name, "input": {}}, deltas


def _cut(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)] or [""]


def encode_event(event: dict[str, Any]) -> bytes:
    """Return one event in the text format of server-sent events."""
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()

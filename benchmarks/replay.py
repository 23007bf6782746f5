"""A transport that replays the CLI's messages and answers without a delay.

The messages have the form of CLI 2.1.330 (captured from a run against the scripted model). As with the
CLI, the hook's request is sent only to a client that registered a hook, and the tool's result waits for the answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from claude_agent_sdk import Transport

Wire = dict[str, Any]

SESSION = "7c827243-ef46-4c7a-9873-a7aa6514fd94"
UUID = "78299a76-d2a6-491a-a2aa-075432c744e3"
MODEL = "claude-sonnet-4-5"
STARTED_USAGE = {
    "input_tokens": 20,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 1,
}
OUTPUT = {"stdout": "", "stderr": "", "interrupted": False, "isImage": False, "noOutputExpected": False}


def memory(name: str) -> float:
    """Return this process's memory in MiB by its name in /proc: ``VmRSS`` is the present, ``VmHWM`` the maximum."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.split("\n") if line.startswith(f"{name}:")) / 1024


def memory_from_here() -> float:
    """Reset the maximum of this process's memory; return the present value in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


async def at_once() -> None:
    """Answer a model request without delay."""


class ReplayTransport(Transport):
    """A transport that plays one turn with this number of tool calls.

    ``seconds`` is the time from the first call to the end of the SDK's client.
    """

    def __init__(self, calls: int, before_first_call: Callable[[], Awaitable[None]] = at_once) -> None:
        self._calls = calls
        self._before_first_call = before_first_call
        self._hook: str | None = None
        self._initialize: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._prompted = asyncio.Event()
        self._answered = asyncio.Event()
        self._closed = asyncio.Event()
        self.began = self.ended = 0.0
        self.rss_at_start = self.peak_rss = 0.0

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    async def connect(self) -> None:
        pass

    def is_ready(self) -> bool:
        return not self._closed.is_set()

    async def end_input(self) -> None:
        pass

    async def close(self) -> None:
        if not self._closed.is_set():
            self.ended = time.perf_counter()
            self.peak_rss = memory("VmHWM")
            self._closed.set()

    async def write(self, data: str) -> None:
        if data.startswith('{"type": "control_response"'):
            self._answered.set()
            return
        message: Wire = json.loads(data)
        if message["type"] == "user":
            self._prompted.set()
        elif message["request"]["subtype"] == "initialize":
            hooks: Wire = message["request"]["hooks"] or {}
            self._hook = hooks["PostToolUse"][0]["hookCallbackIds"][0] if hooks else None
            self._initialize.set_result(message["request_id"])

    async def read_messages(self) -> AsyncIterator[Wire]:
        response: Wire = {"subtype": "success", "request_id": await self._initialize, "response": {"commands": []}}
        yield {"type": "control_response", "response": response}
        await self._prompted.wait()
        yield system("session_state_changed", state="running")
        yield system("init", cwd="/srv/agent", tools=["Bash"], model=MODEL, permissionMode="default")
        await self._before_first_call()
        self.rss_at_start = memory_from_here()
        self.began = time.perf_counter()
        for n in range(self._calls):
            for message in request(n, tool_block(n), json.dumps(tool_input(n))):
                yield message
            if self._hook is not None:
                self._answered.clear()
                yield hook_request(n, self._hook)
                await self._answered.wait()
            yield tool_result(n)
        for message in request(self._calls, {"type": "text", "text": "Done."}, "Done."):
            yield message
        yield result(self._calls)
        yield system("session_state_changed", state="idle")
        await self._closed.wait()


def system(subtype: str, **more: object) -> Wire:
    return {"type": "system", "subtype": subtype, "session_id": SESSION, "uuid": UUID, **more}


def tool_input(n: int) -> Wire:
    return {"command": f"grep -rn 'needle {n}' src", "description": "Look for the needle"}


def tool_block(n: int) -> Wire:
    return {"type": "tool_use", "id": f"toolu_{n:08d}", "name": "Bash", "input": tool_input(n)}


def request(n: int, block: Wire, text: str) -> Iterator[Wire]:
    """Return the messages of one model request with one content block: its stream events and the whole message."""
    message = f"msg_{n:08d}"
    start: Wire = {"id": message, "type": "message", "role": "assistant", "model": MODEL, "content": []}
    start |= {"stop_reason": None, "stop_sequence": None, "usage": dict(STARTED_USAGE)}
    is_tool = block["type"] == "tool_use"
    empty: Wire = {**block, "input": {}} if is_tool else {**block, "text": ""}
    yield system("status", status="requesting")
    yield stream(message, {"type": "message_start", "message": start})
    yield stream(message, {"type": "content_block_start", "index": 0, "content_block": empty})
    for part in ("", text) if is_tool else (text,):
        delta = {"type": "input_json_delta", "partial_json": part} if is_tool else {"type": "text_delta", "text": part}
        yield stream(message, {"type": "content_block_delta", "index": 0, "delta": delta})
    yield {
        "type": "assistant",
        "message": {**start, "content": [block], "context_management": None},
        "parent_tool_use_id": None,
        "session_id": SESSION,
        "uuid": UUID,
        "timestamp": "2026-11-23T04:46:04.084Z",
        "request_id": f"req_{n}",
    }
    yield stream(message, {"type": "content_block_stop", "index": 0})
    reason = {"stop_reason": "tool_use" if is_tool else "end_turn", "stop_sequence": None}
    yield stream(message, {"type": "message_delta", "delta": reason, "usage": {"output_tokens": 10}})
    yield stream(message, {"type": "message_stop"})


def stream(message: str, event: Wire) -> Wire:
    return {
        "type": "stream_event",
        "event": event,
        "session_id": SESSION,
        "parent_tool_use_id": None,
        "uuid": UUID,
        "api_message_id": message,
    }


def hook_request(n: int, callback: str) -> Wire:
    given = {
        "session_id": SESSION,
        "transcript_path": f"/home/user/.claude/projects/-work/{SESSION}.jsonl",
        "cwd": "/srv/agent",
        "permission_mode": "default",
        "hook_event_name": "PostToolUse",
        "tool_name": "Bash",
        "tool_input": tool_input(n),
        "tool_response": OUTPUT,
        "tool_use_id": f"toolu_{n:08d}",
        "duration_ms": 7,
    }
    asked = {"subtype": "hook_callback", "callback_id": callback, "input": given, "tool_use_id": f"toolu_{n:08d}"}
    return {"type": "control_request", "request_id": f"hook-{n}", "request": asked}


def tool_result(n: int) -> Wire:
    content = f"src/haystack.py:{n}: needle {n}\n" * 4
    block = {"tool_use_id": f"toolu_{n:08d}", "type": "tool_result", "content": content, "is_error": False}
    return {
        "type": "user",
        "message": {"role": "user", "content": [block]},
        "parent_tool_use_id": None,
        "session_id": SESSION,
        "uuid": UUID,
        "tool_use_result": {**OUTPUT, "stdout": content},
    }


def result(calls: int) -> Wire:
    return {
        "type": "result",
        "subtype": "success",
        "is_error": False,
        "result": "Done.",
        "stop_reason": "end_turn",
        "session_id": SESSION,
        "total_cost_usd": 0.01,
        "duration_ms": 100,
        "duration_api_ms": 84,
        "num_turns": calls + 1,
        "usage": {"input_tokens": 60, "output_tokens": 30},
        "modelUsage": {},
        "uuid": UUID,
    }

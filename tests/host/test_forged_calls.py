"""A sandbox that calls the host's functions as it likes gets errors and no more calls than it may have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry import trace

from agent_runner.contract.protocol import CallbackRequestData, CallbackResolvedData
from host_client import Session, current_call, open_session
from host_client.client import _callbacks
from tests.support.told_sandbox import START, ToldSandbox

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def told(*tools: Callable[..., Any]) -> AsyncGenerator[tuple[ToldSandbox, Session]]:
    """Open a session with these tools whose sandbox says what it is told to."""
    sandbox = ToldSandbox("1" * 32)
    sandbox.start = replace(START, sdk_options=["host_tools"])
    async with asyncio.timeout(30):
        async with open_session(sandbox=sandbox, host_tools=tools, environ={}) as session:
            yield sandbox, session


def call(key: str, name: str = "count", **given: Any) -> CallbackRequestData:
    return CallbackRequestData(callback_id=key, kind="tool", name=name, input=given, expires_at=0.0)


async def test_an_unknown_function_is_an_error() -> None:
    async with told() as (sandbox, _):
        sandbox.say(call("a", "count"), replace(call("b", "hook"), kind="hook"), replace(call("c"), server="other"))
        errors = {(await sandbox.responses.get()).error for _ in range(3)}
    assert errors == {"the host has no tool named 'count'", "the host has no hook named 'hook'"}


async def test_a_call_is_made_once_however_often_it_is_read() -> None:
    calls: list[str] = []

    async def count() -> int:
        """Count."""
        calls.append(current_call().idempotency_key)
        return len(calls)

    async with told(count) as (sandbox, _):
        sandbox.say(call("a"), call("a"), call("b"))
        answers = [await sandbox.responses.get() for _ in range(2)]
        sandbox.say(call("a"), call("c"))
        answers.append(await sandbox.responses.get())
    assert calls == [answer.callback_id for answer in answers] == ["a", "b", "c"]
    assert [answer.command_id for answer in answers] == calls


async def test_calls_beyond_the_limit_wait_and_those_that_have_ended_are_not_made() -> None:
    gate, running, most = asyncio.Event(), 0, 0

    async def count() -> None:
        """Count."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    number = _callbacks.MAX_RUNNING + 20
    async with told(count) as (sandbox, _):
        sandbox.say(*[call(f"{n}") for n in range(number)])
        sandbox.say(CallbackResolvedData(callback_id=f"{number - 1}", outcome="cancelled", wait_ms=1.0))
        sandbox.say(call("last", "nothing"))
        assert (await sandbox.responses.get()).callback_id == "last"
        gate.set()
        done = {(await sandbox.responses.get()).callback_id for _ in range(number - 1)}
    assert most == _callbacks.MAX_RUNNING
    assert done == {f"{n}" for n in range(number - 1)}


async def test_too_many_open_calls_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_callbacks, "MAX_OPEN", 2)
    gate = asyncio.Event()

    async def count() -> None:
        """Count."""
        await gate.wait()

    async with told(count) as (sandbox, session):
        sandbox.say(*[call(f"{n}") for n in range(4)])
        while (event := await anext(aiter(session))).seq != 5:
            pass
        assert event.type == "callback_request"
        gate.set()
        assert [(await sandbox.responses.get()).callback_id for _ in range(2)] == ["0", "1"]
        sandbox.say(call("4"))
        assert (await sandbox.responses.get()).callback_id == "4"


async def test_a_function_runs_below_the_sessions_span_if_the_trace_is_not_the_sessions() -> None:
    async def where() -> str:
        """Return the span."""
        context = trace.get_current_span().get_span_context()
        return f"{context.trace_id:032x} {context.span_id:016x}"

    async with told(where) as (sandbox, session):
        sandbox.say(call("a", "where"))
        answer = await sandbox.responses.get()
        root = session.trace.root
    assert answer.result["content"][0]["text"] == f"{root.trace_id} {root.span_id}"


async def test_a_function_in_a_thread_may_raise_stop_iteration() -> None:
    def count() -> int:
        """Count."""
        return next(iter(()))

    async with told(count) as (sandbox, _):
        sandbox.say(call("a"))
        assert (await sandbox.responses.get()).error == "the function raised StopIteration"


async def test_a_function_that_is_cancelled_by_itself_is_an_error() -> None:
    async def count() -> None:
        """Count."""
        asyncio.get_running_loop().call_soon(waiting.cancel)
        await waiting

    async with told(count) as (sandbox, _):
        waiting = asyncio.get_running_loop().create_future()
        sandbox.say(call("a"))
        assert (await sandbox.responses.get()).error == "CancelledError"

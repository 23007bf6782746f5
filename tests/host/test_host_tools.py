"""The agent calls functions of the host, in each sandbox: results, errors, timeouts, approvals, spans, takeover."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import tool
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agent_runner.contract import protocol as p
from host_client import AgentOptions, HostCall, current_call, events, host_tool, open_session, run_agent
from host_client.client import _callbacks
from host_client.errors import ConfigurationError
from tests.compat.recordings import load
from tests.compat.test_old_sandboxes import old_template
from tests.host.test_e2b_sessions import until
from tests.host.test_takeover import check_whole, rest_of, taken_over
from tests.support.dying_host import DyingHost, plan_of
from tests.support.hosts import E2BLab, HostLab, e2b_lab, host_lab, views
from tests.support.pictures import png

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

ALLOWED = AgentOptions(allowed_tools=("mcp__host",))


def script(*calls: tuple[str, dict[str, Any]], together: bool = False) -> str:
    """Return a script whose model calls these tools of the host, one a reply or all in one."""
    tools = [{"name": f"mcp__host__{name}", "input": given} for name, given in calls]
    replies = [{"tools": tools}] if together else [{"tools": [each]} for each in tools]
    return json.dumps({"conversations": {"main": {"replies": [*replies, {"text": "Done."}]}}})


async def results_of(lab: HostLab, *tools: Any, options: AgentOptions = ALLOWED, **more: Any) -> list[p.ToolResultData]:
    """Run a prompt with these tools; return the results of all calls."""
    found: list[p.ToolResultData] = []

    def note(event: p.AnyEvent) -> None:
        if isinstance(event, events.ToolResult):
            found.append(event.data)

    result = await run_agent("go", options, host_tools=tools, on_event=note, environ=lab.environ, **more)
    assert (result.error_message, result.text) == (None, "Done.")
    return found


def shown(result: p.ToolResultData) -> Any:
    """Return a result's only text, or its content if it has more than that."""
    match result.content:
        case [{"type": "text", "text": text}]:
            return text
        case content:
            return content


async def search_orders(customer: str, limit: int = 10) -> list[str]:
    """Find the orders of a customer."""
    return [f"{customer} {number}" for number in range(limit)]


def picture() -> bytes:
    """Draw a picture."""
    return png(2, 2)


def on_day(day: date) -> str:
    """Find the orders of a day."""
    return str(day)


def lost(name: str) -> str:
    """Fail."""
    raise KeyError(f"there is no {name}")


async def test_the_agent_calls_functions_of_the_host() -> None:
    calls = script(("search_orders", {"customer": "ada", "limit": 2}), ("picture", {}), ("mean", {"of": [1, 2]}))

    @tool("mean", "Return the mean.", {"of": list[float]})
    async def mean(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": str(sum(arguments["of"]) / len(arguments["of"]))}]}

    with host_lab(calls) as lab:
        orders, drawn, averaged = await results_of(lab, search_orders, picture, mean)
        offered = {each["name"]: each for each in lab.model.requests[0].body["tools"]}
        (seen,) = lab.model.requests[2].body["messages"][-1]["content"]
    assert offered["mcp__host__search_orders"]["description"] == "Find the orders of a customer."
    assert offered["mcp__host__search_orders"]["input_schema"]["required"] == ["customer"]
    assert (orders.is_error, shown(orders)) == (False, '["ada 0","ada 1"]')
    assert seen["content"][0]["type"] == "image"  # a text of Claude Code about it follows
    assert drawn.is_error is False
    assert shown(averaged) == "1.5"


async def test_in_e2b() -> None:
    with e2b_lab(script(("search_orders", {"customer": "ada", "limit": 1}))) as lab:
        (orders,) = await results_of(lab, search_orders, sandbox=lab.sandbox())
    assert shown(orders) == '["ada 0"]'


async def test_the_model_sees_the_text_of_an_error(caplog: pytest.LogCaptureFixture) -> None:
    calls = script(("lost", {"name": "order"}), ("on_day", {"day": "soon"}), ("on_day", {"day": 3}))
    with host_lab(calls) as lab, caplog.at_level(logging.WARNING):
        raised, unfit, untyped = await results_of(lab, lost, on_day)
    assert [each.is_error for each in (raised, unfit, untyped)] == [True, True, True]
    assert shown(raised) == "KeyError: 'there is no order'"
    assert shown(unfit) == "the arguments do not fit: Invalid RFC3339 encoded date - at `$.day`"
    assert "3 is not of type 'string'" in str(shown(untyped))  # the runner checks the schema
    (record,) = [each for each in caplog.records if "the host tool lost failed" in each.getMessage()]
    assert record.exc_info is not None
    assert "Traceback" not in str(shown(raised))


async def test_a_result_that_is_too_large_is_an_error() -> None:
    def everything() -> str:
        """Return too much."""
        return "x" * (_callbacks.MAX_RESPONSE + 1)

    with host_lab(script(("everything", {}))) as lab:
        (result,) = await results_of(lab, everything)
    assert result.is_error
    assert "bytes as JSON, at most 16,711,680 can be sent: return less" in str(shown(result))


async def test_a_call_that_takes_too_long_ends_and_its_function_is_cancelled() -> None:
    cancelled = asyncio.Event()

    @host_tool(timeout=0.2)
    async def endless() -> None:
        """Wait."""
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with host_lab(script(("endless", {}))) as lab:
        (result,) = await results_of(lab, endless)
    assert result.is_error
    assert "the host did not answer within 0.2 seconds" in str(shown(result))
    assert cancelled.is_set()


async def test_an_interrupt_cancels_the_function() -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        """Wait."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with host_lab(script(("endless", {}))) as lab:
        async with open_session("go", ALLOWED, host_tools=[endless], environ=lab.environ) as session:
            async with asyncio.timeout(60):
                await begun.wait()
                await session.interrupt()
                await cancelled.wait()
            await session.finish()
            resolved = [event async for event in session if isinstance(event, events.CallbackResolved)]
    assert [event.data.outcome for event in resolved] == ["cancelled"]


async def test_a_session_that_is_closed_waits_for_no_function() -> None:
    begun, cancelled, in_thread, gate = asyncio.Event(), asyncio.Event(), threading.Event(), threading.Event()

    @host_tool(read_only=True)
    async def endless() -> None:
        """Wait."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    @host_tool(read_only=True)
    def stuck() -> None:
        """Wait in a thread."""
        in_thread.set()
        gate.wait(60)

    try:
        with host_lab(script(("endless", {}), ("stuck", {}), together=True)) as lab:
            async with asyncio.timeout(60):
                async with open_session("go", ALLOWED, host_tools=[endless, stuck], environ=lab.environ):
                    await begun.wait()
                    await asyncio.to_thread(in_thread.wait, 60)
        assert cancelled.is_set()
    finally:
        gate.set()


async def test_a_call_waits_for_its_approval_unless_the_tool_is_allowed() -> None:
    with host_lab(script(("search_orders", {"customer": "ada"}))) as lab:
        result = await run_agent("go", host_tools=[search_orders], environ=lab.environ)
    assert (result.denied_calls, result.denied_tools) == (1, ("mcp__host__search_orders",))
    with host_lab(script(("search_orders", {"customer": "ada", "limit": 1}))) as lab:
        only = AgentOptions(allowed_tools=("mcp__host__search_orders",))
        (orders,) = await results_of(lab, search_orders, options=only)
    assert shown(orders) == '["ada 0"]'


async def test_calls_of_read_only_tools_run_side_by_side() -> None:
    meeting = asyncio.Barrier(2)
    in_threads = threading.Barrier(2)

    @host_tool(read_only=True)
    async def meet() -> None:
        """Wait for another call."""
        await meeting.wait()

    @host_tool(read_only=True)
    def meet_in_threads() -> None:
        """Wait for another call."""
        in_threads.wait(60)

    for function in (meet, meet_in_threads):
        with host_lab(script((function.name, {}), (function.name, {}), together=True)) as lab:
            found = await results_of(lab, function)
        assert [(each.is_error, shown(each)) for each in found] == [(False, "Done.")] * 2


async def test_the_functions_own_spans_are_below_the_call() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = trace.get_tracer("shop", tracer_provider=provider)
    calls: list[HostCall] = []

    @host_tool(timeout=30)
    async def query(text: str) -> str:
        """Query."""
        calls.append(current_call())
        with tracer.start_as_current_span("SELECT"):
            return text

    def read(text: str) -> str:
        """Read."""
        calls.append(current_call())
        with tracer.start_as_current_span("GET"):
            return text

    with host_lab(script(("query", {"text": "a"}), ("read", {"text": "b"}))) as lab:
        result = await run_agent("go", ALLOWED, host_tools=[query, read], environ=lab.environ)
    tools = [span for span in views(result.spans) if span.name.startswith("execute_tool")]
    own = exporter.get_finished_spans()
    assert [span.name for span in own] == ["SELECT", "GET"]
    assert [(f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") for span in own if span.parent] == [
        (span.trace_id, span.span_id) for span in tools
    ]
    assert [call.name for call in calls] == ["query", "read"]
    assert [call.tool_use_id for call in calls] == [span.attributes["gen_ai.tool.call.id"] for span in tools]
    assert {call.session_id for call in calls} == {tools[0].attributes["session.id"]}
    assert calls[0].idempotency_key != calls[1].idempotency_key


async def test_wrong_tools_are_refused_before_anything_starts() -> None:
    refused: list[tuple[Callable[..., Any], str]] = [
        (lambda: run_agent("go", host_tools=search_orders), "host_tools takes a list of functions"),  # type: ignore[arg-type]
        (lambda: run_agent("go", hooks=[search_orders]), "hooks takes matchers by event"),  # type: ignore[arg-type]
        (lambda: run_agent("go", host_tools=["search"]), "host_tools takes functions"),  # type: ignore[list-item]
        (
            lambda: run_agent("go", AgentOptions(mcp_servers={"host": "a:b"}), host_tools=[search_orders]),
            "mcp_servers: the name 'host'",
        ),
    ]
    for run, fault in refused:
        with pytest.raises(ConfigurationError, match=fault):
            await run()


async def test_a_runner_that_is_too_old_for_host_tools_ends_the_session(tmp_path: Path) -> None:
    with old_template(load("tools"), tmp_path) as lab:
        sandbox = lab.sandbox()
        async with open_session("go", host_tools=[search_orders], sandbox=sandbox, environ=lab.environ) as session:
            async for _ in session:
                pass
    assert session.failure is not None
    assert session.failure.message.startswith("the runner in this sandbox ignores host_tools: it is older")


# -- takeover -----------------------------------------------------------------------------------------


async def charge(path: str) -> str:
    """Charge a customer."""
    return await asyncio.to_thread(note_key, path)


@host_tool(idempotent=True)
def charge_once(path: str) -> str:
    """Charge a customer once, by the key of the call."""
    return note_key(path)


def note_key(path: str) -> str:
    with Path(path).open("a") as file:
        file.write(f"{current_call().idempotency_key}\n")
    return "charged"


@contextmanager
def dying_host(name: str, given: dict[str, Any]) -> Generator[tuple[E2BLab, DyingHost]]:
    """Run a host whose agent calls a tool of `tests.support.dying_host`."""
    plan = plan_of("e2b", allowed_tools=["mcp__host"], host_tools=[name])
    with e2b_lab(script((name, given))) as lab, DyingHost(plan, lab.environ) as host:
        yield lab, host


def the(kind: type[Any], events: list[p.AnyEvent]) -> Any:
    (found,) = [event.data for event in events if isinstance(event, kind)]
    return found


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
async def test_a_call_in_flight_when_the_host_dies_is_an_honest_error(tmp_path: Path, seen: bool) -> None:
    note = tmp_path / "note"
    with dying_host("charge", {"path": str(note)}) as (lab, host):
        await host.until(p.CallbackRequest)
        await until(note.exists)
        if not seen:  # the caller of the dead host had stored no event
            host.events.clear()
        async with taken_over(host, lab, host_tools=[charge]) as session:
            rest = await rest_of(session)
    check_whole(host, rest)
    result = the(p.ToolResult, rest)
    assert result.is_error
    assert shown(result) == "the host was restarted while this ran; whether the call took effect is not known"
    assert len(note.read_text().splitlines()) == 1


async def test_a_call_of_an_idempotent_tool_is_made_again_with_its_key(tmp_path: Path) -> None:
    note = tmp_path / "note"
    with dying_host("charge_once", {"path": str(note)}) as (lab, host):
        request = await host.until(p.CallbackRequest)
        await until(note.exists)
        async with taken_over(host, lab, host_tools=[charge_once]) as session:
            rest = await rest_of(session)
    result = the(p.ToolResult, rest)
    assert (result.is_error, shown(result)) == (False, "charged")
    assert note.read_text().splitlines() == [request.data.callback_id] * 2


async def test_a_call_that_the_dead_host_has_answered_is_not_made_again(tmp_path: Path) -> None:
    note = tmp_path / "note"

    @host_tool(idempotent=True)
    def look_up() -> str:
        """Look something up."""
        return note_key(str(note))

    with dying_host("look_up", {}) as (lab, host):
        await host.until(p.Result)
        host.events.clear()
        async with taken_over(host, lab, host_tools=[look_up]) as session:
            rest = await rest_of(session)
    check_whole(host, rest)
    assert the(p.CallbackResolved, rest).outcome == "returned"
    assert not note.exists()


async def test_a_tool_that_the_new_host_lacks_is_an_error(tmp_path: Path) -> None:
    with dying_host("charge", {"path": str(tmp_path / "note")}) as (lab, host):
        await host.until(p.CallbackRequest)
        async with taken_over(host, lab) as session:
            rest = await rest_of(session)
    assert shown(the(p.ToolResult, rest)) == "the host has no tool named 'charge'"

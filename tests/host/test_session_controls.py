"""A session changes and asks its running agent, in each sandbox; the changes are in its trace."""

from __future__ import annotations

import asyncio

import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, Session, open_session
from host_client.errors import CommandRefusedError, ConfigurationError, SessionClosedError
from tests.support.hosts import E2BLab, HostLab, e2b_lab, host_lab, views

pytestmark = [pytest.mark.anyio, pytest.mark.integration]

OTHER = "claude-haiku-4-5"
SCRIPT = """
conversations:
  main:
    replies:
      - text: One.
      - tools: [{name: Write, input: {file_path: made.txt, content: made}}]
      - text: Two.
"""
OPTIONS = AgentOptions(enable_file_checkpointing=True, user_id="ada")


async def until(session: Session, kind: type[p.Result] | type[p.TurnStart]) -> p.AnyEvent:
    async for event in session:
        if isinstance(event, kind):
            return event
    raise AssertionError(f"no {kind.__name__}")


async def converse(lab: HostLab | E2BLab, session: Session) -> None:
    """Change the agent between and after two turns."""
    await until(session, p.Result)
    await session.set_model(OTHER)
    await session.set_permission_mode("acceptEdits")
    await session.send("write")
    began = await until(session, p.TurnStart)
    assert isinstance(began, p.TurnStart) and began.data.user_message_id is not None
    await until(session, p.Result)
    assert lab.model.requests[-1].body["model"] == OTHER
    assert await session.read_file("made.txt", 100) == b"made"
    await session.rewind_files(began.data.user_message_id)
    assert (await session.get_context_usage())["model"] == OTHER
    assert await session.get_mcp_status() == []
    with pytest.raises(CommandRefusedError, match=r"^stop_task: no task b1 is running$"):
        await session.stop_task("b1")
    with pytest.raises(CommandRefusedError, match=r"^toggle_mcp_server: Server not found: x$"):
        await session.toggle_mcp_server("x", enabled=False)
    with pytest.raises(CommandRefusedError, match=r"^reconnect_mcp_server: Server not found: x$"):
        await session.reconnect_mcp_server("x")
    with pytest.raises(ConfigurationError, match="mode takes one of default, acceptEdits"):
        await session.set_permission_mode("yolo")  # pyright: ignore[reportArgumentType]


async def check(lab: HostLab | E2BLab, session: Session) -> None:
    """Check the session's span after `converse`."""
    (root,) = (span for span in views(session.trace.kept) if span.name == "agent.session")
    events = [about for name, about in root.events if name == "command"]
    assert events[0] == {
        "command.type": "set_model",
        "command.arguments": f'{{"model":"{OTHER}"}}',
        "command.requested_by": "ada",
    }
    assert [about["command.type"] for about in events[1:]] == [
        *("set_permission_mode", "rewind_files", "stop_task", "toggle_mcp_server", "reconnect_mcp_server")
    ]
    assert events[3]["command.error"] == "no task b1 is running"


async def test_in_a_local_sandbox() -> None:
    with host_lab(SCRIPT) as lab:
        async with open_session("go", OPTIONS, environ=lab.environ) as session:
            await converse(lab, session)
        await check(lab, session)


async def test_in_e2b() -> None:
    with e2b_lab(SCRIPT) as lab:
        async with open_session("go", OPTIONS, sandbox=lab.sandbox(), environ=lab.environ) as session:
            await converse(lab, session)
        await check(lab, session)


async def test_a_command_that_waits_ends_with_its_session() -> None:
    with host_lab("conversations: {main: {replies: [{text: One.}]}}") as lab:
        async with open_session(None, environ=lab.environ) as session:
            await session.stop()
            waiting = asyncio.ensure_future(session.get_context_usage())
            async for _ in session:
                pass
            with pytest.raises((SessionClosedError, CommandRefusedError), match="ended"):
                await waiting
            with pytest.raises(SessionClosedError, match="the session has ended"):
                await session.set_model(OTHER)

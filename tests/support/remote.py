"""Runs of the real host in a stand-in of E2B, and their events, spans and results."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from agent_runner.contract import protocol as p
from host_client import AgentOptions, AgentResult, Session, open_session
from host_client.client.agent import result_of
from host_client.client.options import ApprovalPolicy
from host_client.client.session import Approver
from tests.support.hosts import E2BLab, views
from tests.support.runs import MODEL, Fifo, Finished, SpanView, seqs

Reaction = Callable[[Session, p.AnyEvent], Awaitable[None]]
"""Called by a test's run for each event."""


@dataclass
class Remote(Finished):
    """`Finished`, with the host's view of the run: its spans are the whole trace."""

    session: Session | None = None

    @property
    def spans(self) -> list[SpanView]:
        assert self.session is not None
        return views(self.session.trace.kept)

    @property
    def types(self) -> list[str]:
        """Without `log`: the runner remarks on this machine's CLI, which the agent's account can read."""
        return [kind for kind in super().types if kind != "log"]

    @property
    def result(self) -> AgentResult:
        """Return the result that `run_agent` would return."""
        assert self.session is not None
        return result_of(self.session)


def trace_of(*turns: Any, session: str = "agent.session") -> list[Any]:
    """Return the tree of a whole trace, given its turns."""
    return [[session, ["sandbox.create"], *turns, ["sandbox.cleanup"]]]


async def _watch(_session: Session, _event: p.AnyEvent) -> None:
    """Do nothing."""


async def run_remotely(
    lab: E2BLab,
    *prompts: str,
    options: AgentOptions | None = None,
    approvals: ApprovalPolicy | Approver = "ask",
    react: Reaction = _watch,
) -> Remote:
    """Run prompts (default: one) to the runner's end, each after the result of the one before.

    Every event came once and in order, and the last is the runner's own end.
    """
    first, *rest = prompts or ("go",)
    options = replace(options or AgentOptions(), model=MODEL)
    events: list[p.AnyEvent] = []
    async with open_session(first, options, sandbox=lab.sandbox(), approvals=approvals, environ=lab.environ) as session:
        async for event in session:
            events.append(event)
            await react(session, event)
            if isinstance(event, p.Result):
                await (session.send(rest.pop(0)) if rest else session.finish())
    done = Remote(events, session.exit_code if session.exit_code is not None else -1, "", session=session)
    assert seqs(events) == list(range(1, len(seqs(events)) + 1))
    assert isinstance(events[-1], p.End)
    return done


def fifo_of(lab: E2BLab) -> Fifo:
    """Make the named pipe ``up`` that `HANG` writes to, for the agent's account too."""
    path = lab.work / "up"
    fifo = Fifo(path)
    path.chmod(0o622)
    return fifo


async def read(fifo: Fifo) -> int:
    """Wait for the pid of a tool's process while the session goes on."""
    return int(await asyncio.to_thread(fifo.read))


def runner_pid(lab: E2BLab) -> int:
    """Return the pid of the first sandbox's runner."""
    return lab.e2b.sandboxes[0].processes[0].pid

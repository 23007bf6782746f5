"""The session as its caller has it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from agent_runner.contract import protocol as p
from host_client.errors import SessionClosedError
from host_client.sandbox import SandboxInfo
from host_client.telemetry import SessionTrace, caller_of

from ._commander import Commander
from ._outcome import SessionFailure, SessionOutcome
from ._sandboxed_runner import SandboxedRunner, Whereabouts
from ._session_stream import Replay
from .mailbox import Mailbox
from .options import AgentOptions, runner_environment, sandbox_metadata


class Session:
    """A running conversation. Iterate over it for events, up to ``end``; see `open_session`.

    Most commands take a ``command_id``. The runner takes each id once, so a command can be sent again with the same
    id where its delivery is unsure, also by another process after this one died.
    """

    def __init__(
        self,
        session_id: str,
        options: AgentOptions,
        trace: SessionTrace,
        outcome: SessionOutcome,
        commander: Commander,
        runner: SandboxedRunner,
        mailbox: Mailbox[p.AnyEvent],
        ended: asyncio.Event,
    ) -> None:
        self.id = session_id
        self.options = options
        self.trace = trace
        self.ended = ended
        """Set when the runner's last event has been read; the caller may not have taken it yet."""
        self.outcome = outcome
        self._commander = commander
        self._runner = runner
        self._mailbox = mailbox

    async def __aiter__(self) -> AsyncIterator[p.AnyEvent]:
        """Yield events as they come, each once and in order, up to the runner's end."""
        while (event := await self._mailbox.get()) is not None:
            yield event

    # -- facts ------------------------------------------------------------------------------------

    @property
    def trace_id(self) -> str:
        """The id of the trace that the session's span is in."""
        return self.trace.root.trace_id

    @property
    def run_id(self) -> str:
        """The id of one sandbox's part of the session: a session that is resumed has several."""
        return self._runner.run_id

    @property
    def info(self) -> SandboxInfo | None:
        """The sandbox; None until it is created."""
        return self._runner.info

    @property
    def whereabouts(self) -> Whereabouts | None:
        """What another process needs to take over; None before the runner runs. `send` may add a trace to it."""
        return self._runner.whereabouts

    @property
    def left_behind(self) -> str | None:
        """Why the sandbox may still exist although the session is closed."""
        return self._runner.left_behind

    @property
    def waiting(self) -> Mapping[str, p.ApprovalRequest | p.QuestionRequest]:
        """The approval and question requests that wait for a reply, by id."""
        return self._commander.waiting

    @property
    def claude_session_id(self) -> str | None:
        """Claude's session id: `AgentOptions.resume` goes on from there."""
        return self.outcome.claude_session_id

    @property
    def cost_usd(self) -> float:
        """The cost of this session's turns so far, in US dollars."""
        return self.outcome.cost_usd

    @property
    def failure(self) -> SessionFailure | None:
        """Why the session failed, if it did."""
        return self.outcome.failure

    @property
    def last_error(self) -> p.ErrorData | None:
        """The last error that the runner told."""
        return self.outcome.last_error

    @property
    def exit_code(self) -> int | None:
        """The runner's exit code, negative for a signal; None while it runs."""
        return self.outcome.exit_code

    # -- commands ---------------------------------------------------------------------------------

    async def send(
        self, text: str, *, traceparent: str | None = None, tracestate: str = "", command_id: str | None = None
    ) -> None:
        """Begin the next turn, after the current one. Raise `SessionClosedError`."""
        caller = caller_of(traceparent, tracestate)
        if caller is not None:
            self.trace.admit(caller)
        prompt = p.Prompt(
            text=text,
            traceparent=caller.traceparent if caller else None,
            tracestate=(caller.tracestate or None) if caller else None,
            command_id=command_id,
        )
        await self._commander.write(prompt)

    async def approve(
        self,
        approval_id: str,
        *,
        updated_input: dict[str, Any] | None = None,
        remember: bool = False,
        decided_by: str | None = None,
        command_id: str | None = None,
    ) -> None:
        """Allow the call, with another input if one is given. Raise `NotWaitingError`."""
        await self.decide(
            p.Approval(
                approval_id=approval_id,
                decision="allow",
                updated_input=updated_input,
                remember=remember,
                decided_by=decided_by,
                command_id=command_id,
            )
        )

    async def deny(
        self,
        approval_id: str,
        message: str | None = None,
        *,
        decided_by: str | None = None,
        command_id: str | None = None,
    ) -> None:
        """Refuse the call; the agent is told the message. Raise `NotWaitingError`."""
        await self.decide(
            p.Approval(
                approval_id=approval_id,
                decision="deny",
                message=message,
                decided_by=decided_by,
                command_id=command_id,
            )
        )

    async def answer(
        self,
        question_id: str,
        answers: Mapping[str, Any],
        *,
        decided_by: str | None = None,
        command_id: str | None = None,
    ) -> None:
        """Answer a question, by its whole text. Raise `NotWaitingError`, and `NotAskedError` for any other key."""
        await self.decide(
            p.Answer(question_id=question_id, answers=dict(answers), decided_by=decided_by, command_id=command_id)
        )

    async def decide(self, reply: p.Approval | p.Answer) -> None:
        """Send a whole reply to a request; without ``decided_by`` it is the session's user's.

        Raise `NotWaitingError`, and `NotAskedError` where the reply does not fit its request, which waits on.
        """
        await self._commander.decide(reply)

    async def interrupt(self, *, command_id: str | None = None) -> None:
        """End the current turn; the conversation goes on."""
        await self._commander.write(p.Interrupt(command_id=command_id))

    async def stop(self) -> None:
        """End the current turn, then the runner; its last events still come."""
        await self._commander.write(p.Stop())

    async def finish(self) -> None:
        """Send no more prompts: the runner ends when nothing is left to do. Replies are still taken."""
        with contextlib.suppress(SessionClosedError):  # it has ended: nothing is left to do
            await self._commander.write(p.Finish())

    # -- life -------------------------------------------------------------------------------------

    async def start(
        self, prompt: str | None, upload: Path | None, environ: Mapping[str, str], preview: Callable[[str], str]
    ) -> None:
        """Create the sandbox, start the runner and send the prompt (called by `open_session`)."""
        context, shown = self.trace.context, preview(prompt) if prompt else None
        metadata = sandbox_metadata(self.options, self.id, context, shown)
        environment = partial(runner_environment, self.options, self.id, environ, context)
        await self._runner.start(metadata, environment, upload)
        if prompt is not None:
            with contextlib.suppress(SessionClosedError):  # a runner that died at once: its stream tells why
                await self.send(prompt)

    async def adopt(self, whereabouts: Whereabouts, replay: Replay, patience: float) -> None:
        """Take over the runner of a dead host (called by `take_over`); see `SessionStream.caught_up`."""
        await self._runner.adopt(whereabouts, replay, patience)

    def failed(self, error: BaseException) -> None:
        """Note why the session ends early (called by `until_closed`)."""
        self._runner.failed(error)

    def hurry(self) -> None:
        """Kill the runner without waiting for it to stop. The sandbox is still removed."""
        self._runner.hurry()

    async def close(self) -> None:
        """Stop the runner, take its last events, remove the sandbox, end the trace. A second call does nothing.

        If the caller is cancelled, the closing is hurried and still done to its end: nothing may be left behind.
        """
        await self._runner.close()

    async def abandon(self) -> None:
        """Leave the sandbox and its runner to another process that has taken them over: read and end nothing more.

        That process ends the session's span. Iterating ends; a later `close` does nothing.
        """
        await self._runner.abandon()

    # -- files ------------------------------------------------------------------------------------

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return a file of the agent's working directory; ``path`` is relative to that.

        Raise `FileRefusedError` or one of its kind, another `SandboxError`, and `SessionClosedError`.
        """
        return await self._runner.read_file(path, max_bytes)

    async def download(self, target: Path) -> None:
        """Copy the agent's working directory to a folder."""
        await self._runner.download(target)

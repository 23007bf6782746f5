"""The session as its caller uses it: facts, commands, closing, files. Controls of the agent are in the base class."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from agent_runner.contract import protocol as p
from agent_runner.contract.callbacks import given_to_runner
from agent_runner.contract.spans import Attributes
from agent_runner.contract.trace_context import TraceContext
from host_client.errors import ConfigurationError, SandboxError, SessionClosedError
from host_client.sandbox import Process, Sandbox, SandboxInfo
from host_client.telemetry import OnOwnSpans, Root, SessionTrace, Telemetry, caller_of
from host_client.workspace import Changes, SentFolder, SessionFolder

from ._arguments import check_arguments
from ._callbacks import CallbackRunner
from ._commander import Commander
from ._host_functions import HostFunctions
from ._outcome import SessionFailure, SessionOutcome
from ._policy import Approver
from ._session_controls import SessionControls
from ._session_stream import Replay, SessionStream
from ._shared import SharedParts, too_old_for
from ._stopping import RunnerStopper
from ._stream import RunnerStream
from .attachments import Attachable, prompt_of
from .mailbox import Mailbox, Outlet
from .options import (
    AgentOptions,
    ApprovalPolicy,
    common_attributes,
    runner_environment,
    sandbox_metadata,
    who_of,
)

SPOOL_SECONDS = 5.0
"""Maximum number of seconds that the end of a session waits until its spans are in the spool."""

_logger = logging.getLogger(__name__)


class Whereabouts(msgspec.Struct, frozen=True, kw_only=True):
    """All that another process needs to take a session over (`take_over`); it can be stored as JSON.

    ``own_spans`` are the spans that the host itself has ended, as an OTLP request, in case it dies before delivery.
    """

    run_id: str
    info: SandboxInfo
    process_id: str
    trace_ids: tuple[str, ...]
    own_spans: bytes = b""


class Session(SessionControls):
    """A running conversation with an agent. Iterate over it for events, up to ``end``; see `open_session`.

    Most commands take a ``command_id``. The runner runs each id once, so a command whose delivery is unsure can be
    sent again with the same id, also by another process after this one died.
    """

    def __init__(
        self,
        options: AgentOptions,
        sandbox: Sandbox,
        *,
        session_id: str,
        root: Root,
        approvals: ApprovalPolicy | Approver,
        functions: HostFunctions,
        telemetry: Telemetry,
        stop_timeout: float,
        on_own_spans: OnOwnSpans | None,
        outlet: Outlet[p.AnyEvent] | None,
        folder: SessionFolder | None = None,
    ) -> None:
        functions.check(options)
        self.id = session_id
        self.options = options
        self.ended = asyncio.Event()
        """Set when the runner's last event has been read; it may still wait for the caller."""
        self.trace = SessionTrace(
            telemetry, common_attributes(options, session_id), root, who_of(options, session_id), on_own_spans
        )
        self.outcome = SessionOutcome(self.trace.calls)
        """Facts from the session's events so far."""
        self._mailbox = Mailbox[p.AnyEvent]()
        if outlet is None:
            outlet = self._mailbox
        else:
            self._mailbox.finish()  # no event comes there: iterating ends at once
        self.run_id = str(uuid.uuid4())
        """Id of this sandbox's part of the session; each resumption has a new one."""
        self.info: SandboxInfo | None = None
        """Facts of the sandbox; None until it is created."""
        self.left_behind: str | None = None
        """Why the sandbox may still exist after the session was closed; None if it was removed."""
        self.sent_folder: SentFolder | None = None
        """Facts of the folder that was sent to the sandbox; None if there is none, or the agent works in it itself."""
        self._folder = folder
        self._shared = SharedParts(self.trace, self.outcome, outlet, self.ended)
        self._commander = Commander(self._shared, approvals, options.user_id)
        self._functions = functions
        self._callbacks = CallbackRunner(self._shared, functions, session_id, self._commander.write)
        given = given_to_runner(options.document, functions.definitions, options.messages)
        self._stream = SessionStream(self._shared, self._commander, self._callbacks, given)
        self._stopper = RunnerStopper(self.ended, stop_timeout)
        self._stop_timeout = stop_timeout
        self._sandbox = sandbox
        self._process: Process | None = None
        self._source: RunnerStream | None = None
        self._closing: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[p.AnyEvent]:
        """Yield each event once, in order, up to the runner's ``end``."""
        while (event := await self._mailbox.get()) is not None:
            yield event

    # -- facts ------------------------------------------------------------------------------------

    @property
    def trace_id(self) -> str:
        """Return the id of the trace that holds the session's span."""
        return self.trace.root.trace_id

    @property
    def whereabouts(self) -> Whereabouts | None:
        """Return the data that `take_over` needs in another process; None before the runner runs.

        `send` may add a trace to it.
        """
        if self.info is None or self._process is None:
            return None
        return Whereabouts(
            run_id=self.run_id,
            info=self.info,
            process_id=self._process.id,
            trace_ids=self.trace.trace_ids,
            own_spans=self.trace.own,
        )

    @property
    def waiting(self) -> Mapping[str, p.ApprovalRequest | p.QuestionRequest]:
        """Return the approval and question requests that wait for a reply, by id."""
        return self._commander.waiting

    @property
    def claude_session_id(self) -> str | None:
        """Return Claude's session id, which `AgentOptions.resume` takes to continue the conversation."""
        return self.outcome.claude_session_id

    @property
    def cost_usd(self) -> float:
        """Return the cost of this session's turns so far, in US dollars."""
        return self.outcome.cost_usd

    @property
    def failure(self) -> SessionFailure | None:
        """Return the reason why the session failed; None if it has not."""
        return self.outcome.failure

    @property
    def last_error(self) -> p.ErrorData | None:
        """Return the data of the runner's last ``error`` event."""
        return self.outcome.last_error

    @property
    def exit_code(self) -> int | None:
        """Return the runner's exit code, negative for a signal; None while it runs."""
        return self.outcome.exit_code

    # -- commands ---------------------------------------------------------------------------------

    async def send(
        self,
        text: str,
        *,
        attachments: Sequence[Attachable] = (),
        traceparent: str | None = None,
        tracestate: str = "",
        command_id: str | None = None,
    ) -> None:
        """Send a prompt, which begins the next turn after the current one.

        ``attachments`` are images, PDFs and texts, of at most 10 MiB together. Raise `SessionClosedError`, and
        `ConfigurationError` for an attachment that cannot be sent.
        """
        check_arguments(attachments=attachments)
        prompt = replace(await prompt_of(text, attachments), command_id=command_id)
        await self._prompt(prompt, traceparent, tracestate)

    async def _prompt(self, prompt: p.Prompt, traceparent: str | None = None, tracestate: str = "") -> None:
        if prompt.content and self.outcome.takes_attachments is False:
            raise ConfigurationError(too_old_for(["attachments"]))
        caller = caller_of(traceparent, tracestate)
        if caller is not None:
            self.trace.admit(caller)
            prompt = replace(prompt, traceparent=caller.traceparent, tracestate=caller.tracestate or None)
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
        """Allow a tool call, with ``updated_input`` in place of its input if that is given. Raise `NotWaitingError`."""
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
        """Deny a tool call; the agent receives the message. Raise `NotWaitingError`."""
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
        """Answer a question request. The keys of ``answers`` are the whole texts of its questions.

        Raise `NotWaitingError`, and `NotAskedError` for any other key.
        """
        await self.decide(
            p.Answer(question_id=question_id, answers=dict(answers), decided_by=decided_by, command_id=command_id)
        )

    async def decide(self, reply: p.Approval | p.Answer) -> None:
        """Send a complete reply to a request; without ``decided_by``, the session's user is named as the decider.

        Raise `NotWaitingError`, and `NotAskedError` if the reply does not fit its request, which then still waits.
        """
        await self._commander.decide(reply)

    async def interrupt(self, *, command_id: str | None = None) -> None:
        """End the current turn, or between turns all background tasks; the conversation can continue."""
        await self._commander.write(p.Interrupt(command_id=command_id))

    async def request(self, command: p.AnyControl) -> Any:
        """Send a command that changes or asks the running agent, and return its answer; see `SessionControls`."""
        return await self._commander.request(command)

    async def submit(self, command: p.AnyControl) -> None:
        """Send a command that changes or asks the running agent; its outcome is a ``command_result`` event."""
        await self._commander.submit(command)

    async def stop(self) -> None:
        """End the current turn, then the runner; its last events can still be read."""
        await self._commander.write(p.Stop())

    async def finish(self) -> None:
        """Announce that no more prompts follow: the runner ends after its last turn. Replies are still accepted."""
        with contextlib.suppress(SessionClosedError):  # the runner has ended already
            await self._commander.write(p.Finish())

    # -- life -------------------------------------------------------------------------------------

    async def start(
        self, prompt: p.Prompt | None, upload: Path | None, environ: Mapping[str, str], preview: Callable[[str], str]
    ) -> None:
        """Create the sandbox, start the runner in it and send the prompt (called by `open_session`)."""
        context, shown = self.trace.context, preview(prompt.text) if prompt and prompt.text else None
        metadata = {**sandbox_metadata(self.options, self.id, context, shown), "sandspan.run_id": self.run_id}
        if self._folder is not None:
            await self._folder.begin(self._sandbox)
        with self.trace.span("sandbox.create") as span:
            began = time.monotonic()
            info = self.info = await self._sandbox.create(metadata)
            milliseconds = round((time.monotonic() - began) * 1000, 3)
            about = {"sandbox.id": info.id, "sandbox.kind": info.kind, "sandbox.creation_duration_ms": milliseconds}
            span.attributes.update(about | dict(info.attributes))
        with self.trace.current():
            if self._folder is not None:
                self._note_sent(await self._folder.send(self._sandbox))
            if upload is not None:
                await self._sandbox.upload(upload)
            env = runner_environment(self.options, self.id, environ, context, info, self._functions.document)
            self._follow(await self._sandbox.run(("run",), env), info, Replay())
        if prompt is not None:
            with contextlib.suppress(SessionClosedError):  # the runner died at once; its stream reports why
                await self._prompt(prompt)

    def _note_sent(self, sent: SentFolder | None) -> None:
        if sent is not None:
            self.sent_folder = sent
            about: Attributes = {
                "sandbox.upload.files": sent.files,
                "sandbox.upload.bytes": sent.size,
                "sandbox.upload.duration_ms": sent.duration_ms,
            }
            self.trace.root.add_event("upload", time.time_ns(), about)

    async def adopt(self, whereabouts: Whereabouts, replay: Replay, patience: float) -> None:
        """Take over the sandbox and runner of a dead host, and wait for the replay; see `SessionStream.caught_up`."""
        self.run_id = whereabouts.run_id
        for trace_id in whereabouts.trace_ids:
            self.trace.admit(TraceContext(trace_id, ""))
        await asyncio.to_thread(self.trace.take_over)
        self.trace.replay_own(whereabouts.own_spans)
        with self.trace.current():
            process = await self._sandbox.adopt(whereabouts.info, whereabouts.process_id)
            self.info = whereabouts.info
            if self._functions.definitions.kinds and replay.agent_lost is None:
                progress = await self._sandbox.progress(whereabouts.info.journal, process.id)
                replay = dataclasses.replace(replay, written_seq=progress.last_seq)
            self._follow(process, whereabouts.info, replay)
            await self._stream.caught_up(patience)

    def _follow(self, process: Process, info: SandboxInfo, replay: Replay) -> None:
        self._process = process
        self._source = RunnerStream(self._sandbox, process, info.journal, self._stop_timeout)
        self._commander.connect(process, self._source.expect)
        self._stream.follow(self._source, replay)

    def failed(self, error: BaseException) -> None:
        """Note the exception that ends the session early as the reason of its failure."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt):
            self.outcome.fail("cancelled", "the session was cancelled")
            return
        error_type: p.ErrorType = getattr(error, "error_type", "internal")
        if self.outcome.failure is None and isinstance(error, SandboxError):  # the stream has not reported it
            self._shared.host_error(error_type, str(error))
        self.outcome.fail(error_type, str(error))

    def hurry(self) -> None:
        """Skip the waits for the runner to stop, and kill it; the sandbox is still removed."""
        self._stopper.hurry()

    async def close(self) -> None:
        """Stop the runner, read its last events, remove the sandbox and end the trace. A second call does nothing.

        If the caller is cancelled, the closing is hurried but still completed, so that nothing is left behind.
        """
        closing, cancelled = self._begin_closing(self._close), False
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                cancelled = True
                self.hurry()
        closing.result()
        if cancelled:
            raise asyncio.CancelledError

    async def abandon(self) -> None:
        """Stop reading, and leave the sandbox and its runner to another process, which takes the session over.

        That process ends the session's span. Iterating ends; a later `close` does nothing.
        """
        await asyncio.shield(self._begin_closing(self._abandon))

    def _begin_closing(self, how: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        """Return the task that closes the session; only the first call starts one."""
        if self._closing is None:
            self._commander.close()
            self._callbacks.close()
            self._shared.outlet.close()
            self._closing = asyncio.ensure_future(how())
        return self._closing

    async def _close(self) -> None:
        try:
            with self.trace.span("sandbox.cleanup"):
                if self._process is not None and self._source is not None:
                    ended = await self._stopper.stop(self._process, self._source.expect)
                    if not ended:
                        await self._stream.cancel()
                    # The journal is removed with the sandbox, and no other process can read the runner's spans then.
                    await asyncio.to_thread(self.trace.write, SPOOL_SECONDS)
                if self._folder is not None:
                    await self._folder.close(self._sandbox, is_created=self._process is not None)
                await self._sandbox.close()
        except SandboxError as error:  # not raised, as the run has ended and its result must reach the caller
            self.left_behind = str(error)
            _logger.warning("sandbox %s may be left behind: %s", self.info.id if self.info else "", error)
        finally:
            self._commander.cancel()
            await self._callbacks.closed(self._stop_timeout)
            why = self.outcome.failure or SessionFailure("sandbox", "the runner never sent this span")
            self.trace.end_orphans(why.error_type, why.message)
            error = self.outcome.error_of_trace
            self.trace.close(error.error_type if error else None, error.message if error else "")

    async def _abandon(self) -> None:
        self._commander.cancel()
        await self._stream.cancel()
        if self._folder is not None:
            await self._folder.close(self._sandbox, is_created=False)
        await self._sandbox.leave()
        self.trace.leave()
        self._shared.outlet.forget()

    # -- files ------------------------------------------------------------------------------------

    async def changes(self) -> Changes:
        """Return the changes of the session's folder since it began; after its end, those up to then.

        Raise `ConfigurationError` if it has no folder, and `SandboxError` if the sandbox was lost with the changes.
        """
        if self._folder is None:
            raise ConfigurationError(
                "the session has no folder: give open_session a cwd (a session that was taken over has none)"
            )
        with self.trace.current():
            return await self._folder.changes(self._sandbox)

    @property
    def last_changes(self) -> Changes | None:
        """Return the changes of the folder at the session's end; None before it, and if they are not known."""
        return self._folder.last if self._folder is not None else None

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return the content of a file of the agent's working directory; ``path`` is relative to that directory.

        Raise `FileRefusedError` or a subclass of it, another `SandboxError`, and `SessionClosedError`.
        """
        if self.info is None or self._closing is not None:
            raise SessionClosedError("the session has ended, so its files can no longer be read")
        with self.trace.current():
            return await self._sandbox.read_file(path, max_bytes)

    async def download(self, target: Path) -> None:
        """Copy the contents of the agent's working directory into a folder."""
        with self.trace.current():
            await self._sandbox.download(target)

"""Carry out the commands and signals of the host: prompts, interrupts, replies, control, and the end of a run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from ._callbacks import Callbacks
from ._cli import Cli
from ._control_requests import ControlRequests, PromptOrder
from ._events import Events
from ._permissions import Permissions
from ._requests import RefusedError
from ._translate import Translator
from .contract.attachments import view_of
from .contract.protocol import (
    Answer,
    AnyCommand,
    Approval,
    CallbackResponse,
    ControlCommand,
    ErrorData,
    Finish,
    Interrupt,
    Prompt,
    Stop,
)

MAX_ATTACHED_BYTES = 64 * 1024 * 1024
"""Maximum size of the attachments of all prompts that wait, which are kept in memory."""

_MAX_REMEMBERED = 1000
"""Number of command ids that are kept to recognise repeated commands."""


class _WaitingPrompt(NamedTuple):
    """A prompt that waits, the number of commands that came before it, and the size of its attachments in bytes."""

    prompt: Prompt
    commands_before: int
    attached: int


class Control:
    """The prompts that wait, and whether the turn or the run is to end. Call the methods in the run's event loop."""

    def __init__(
        self,
        prompt: str | None,
        events: Events,
        translator: Translator,
        permissions: Permissions,
        callbacks: Callbacks,
        cli: Cli,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """Begin with the configured prompt; ``spawn`` starts a task of the run."""
        self.prompts: deque[_WaitingPrompt] = deque()
        self._order = PromptOrder()
        self.more_prompts = True
        """False when no further prompts can come."""
        self.stopping = False
        self.signal: int | None = None
        """The exit code for the signal that ends the run."""
        self.interrupt_early = False
        """True to interrupt a turn as soon as the CLI can: when it has sent a model request."""
        self.changed = asyncio.Event()
        """Set when the run may have something to do."""
        self._prompted = prompt is not None
        self._command_ids: deque[str] = deque(maxlen=_MAX_REMEMBERED)
        self._events = events
        self._translator = translator
        self._permissions = permissions
        self._callbacks = callbacks
        self._cli = cli
        self._spawn = spawn
        self.requests = ControlRequests(cli, events, translator, self._order, spawn, self.changed.set)
        if prompt is not None:
            self._queue(Prompt(text=prompt))

    @property
    def unprompted(self) -> bool:
        """Return whether no prompt was given and none can follow."""
        return not self.more_prompts and not self._prompted

    async def unless_stopped(self, connecting: Coroutine[Any, Any, None]) -> bool:
        """Wait for the connection to the CLI or its servers; return False if the run ends without it."""
        task = asyncio.ensure_future(connecting)
        while not task.done() and not self.stopping and not self.unprompted:
            changed = asyncio.ensure_future(self.changed.wait())
            await asyncio.wait((task, changed), return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            self.changed.clear()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))  # the client cannot be disconnected while it connects
            return False
        await task
        return True

    # -- from the host ----------------------------------------------------------------------------

    def execute(self, command: AnyCommand) -> None:
        """Execute a command, unless a command with its id was executed before."""
        if command.command_id is not None:
            if command.command_id in self._command_ids:
                self.requests.repeat(command.command_id)
                return
            self._command_ids.append(command.command_id)
        match command:
            case Prompt():
                self._queue(command)
            case Interrupt():
                self._interrupt()
            case Stop():
                self._stop()
            case Finish():
                self.more_prompts = False
            case ControlCommand():
                self.requests.add(command, awaited=self.more_prompts)
            case _:
                self._answer(command)
        self.changed.set()

    def _answer(self, reply: Approval | Answer | CallbackResponse) -> None:
        try:
            if isinstance(reply, CallbackResponse):
                self._callbacks.answer(reply)
            else:
                self._permissions.answer(reply)
        except RefusedError as refused:
            self.refuse(str(refused))

    def _queue(self, prompt: Prompt) -> None:
        self._prompted = True
        waiting = sum(each.attached for each in self.prompts)
        attached = sum(view_of(block).size for block in prompt.content)
        if waiting and waiting + attached > MAX_ATTACHED_BYTES:
            self.refuse(
                f"a prompt was refused: those that wait have attachments of {waiting:,} bytes, with it more than"
                f" {MAX_ATTACHED_BYTES:,}; send it again when a turn has ended"
            )
            return
        self.prompts.append(_WaitingPrompt(prompt, self._order.commands, attached))
        self._order.prompts += 1

    @property
    def may_begin_turn(self) -> bool:
        """Return whether a prompt waits, and no command before it and no end of the run."""
        return bool(self.prompts) and not self.stopping and self._order.allows_prompt(self.prompts[0].commands_before)

    def take_prompt(self) -> Prompt:
        """Return the next prompt, which begins a turn."""
        self._order.prompt_taken()
        return self.prompts.popleft().prompt

    def refuse(self, why: str) -> None:
        """Emit a ``protocol`` error for a command that cannot be executed; the run continues."""
        self._events.emit(ErrorData(error_type="protocol", message=why))

    def end_of_input(self) -> None:
        """Note that stdin has ended: no prompts follow, all approvals are denied, and the host cannot be called."""
        self.more_prompts = False
        self._permissions.close()
        self._callbacks.close()
        self.changed.set()

    def signalled(self, exit_code: int) -> None:
        """End the run because of a signal: SIGHUP (129), SIGINT (130) or SIGTERM (143)."""
        self.signal = self.signal or exit_code
        self._stop()

    def _stop(self) -> None:
        self.stopping = True
        self.prompts.clear()
        self._interrupt()
        self.changed.set()

    # -- interrupts -------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        turns, background = self._translator.turns, self._translator.background
        turn = turns.current
        # A prompt that waits or has not reached the model must be interrupted too, and so must a turn that the CLI is
        # about to begin. The CLI has nothing to interrupt before a turn's first model request: it is sent then.
        comes = bool(self.prompts) or turns.own_expected
        self.interrupt_early = comes if turn is None else not turn.requested
        if turn is not None:
            turn.interrupted = True
        if turn is None and not self.stopping:
            background.interrupted()
            self._spawn(self._cli.stop_tasks(background.running.values()))
        elif turn is not None and not self.interrupt_early:
            self._interrupt_turn()

    def cancel_requests(self) -> None:
        """End all waits for a person or the host as cancelled."""
        self._permissions.cancel_all()
        self._callbacks.cancel_all()

    def _interrupt_turn(self) -> None:
        self.cancel_requests()
        self._translator.background.interrupted()
        self._spawn(self._cli.interrupt())

    def request_begun(self) -> None:
        """Let waiting commands go on, and interrupt the turn if that was asked for before there was a request."""
        self._order.turn_begun()
        if self.interrupt_early:
            self._interrupt()

    def turn_ended(self) -> None:
        """Let waiting commands go on."""
        self._order.turn_begun()
        self.changed.set()

    def give_up(self) -> None:
        """Interrupt a turn whose model request is retried although a retry cannot succeed."""
        turn = self._translator.turns.current
        if turn is not None and turn.given_up is not None and not turn.interrupted:
            self._interrupt_turn()

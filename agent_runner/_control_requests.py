"""Carry out the commands that change or ask a running agent, by control requests to the CLI."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from ._cli import Cli
from ._events import Events
from ._translate import Translator
from .contract.protocol import (
    AnyControl,
    CommandResultData,
    GetContextUsage,
    GetMcpStatus,
    ReconnectMcpServer,
    RewindFiles,
    SetModel,
    SetPermissionMode,
    StopTask,
    ToggleMcpServer,
    outcome_of_command,
)
from .contract.sanitize import single_line

_MAX_ERROR = 1000
_MAX_RESULTS = 100
"""Number of results that are kept to answer repeated commands."""

_IN_ORDER = (SetModel, SetPermissionMode, RewindFiles, ToggleMcpServer)
"""Commands that change the turns after them. The others can take long or come often, and nothing waits for them."""

_ONLY_DRAWN = frozenset({"gridRows"})
"""Fields of the context usage that the CLI's terminal draws."""


class PromptOrder:
    """Keeps prompts and the commands `_IN_ORDER` in the order in which they came, as far as one affects the other.

    A prompt waits for the commands before it. A command waits for the prompts before it only while no turn runs: during
    a turn, from its first model request on, it is carried out at once.
    """

    def __init__(self) -> None:
        self.commands = 0
        """Number of commands that have come."""
        self.prompts = 0
        """Number of prompts that have come."""
        self._done = 0
        self._taken = 0
        self._begun = 0
        self._progress = asyncio.Event()

    def allows_prompt(self, commands_before: int) -> bool:
        """Return whether all commands before a prompt have been carried out."""
        return self._done >= commands_before

    def prompt_taken(self) -> None:
        """Note that a prompt is about to begin a turn."""
        self._taken += 1

    def turn_begun(self) -> None:
        """Note that the turn of the last prompt has reached the model, or has ended without that."""
        self._begun = self._taken
        self._progress.set()

    def command_done(self) -> None:
        """Note that a command was carried out."""
        self._done += 1

    async def prompts_before(self, number: int, turn_runs: Callable[[], bool]) -> None:
        """Wait until the turns of this many prompts have begun, or another turn runs."""
        while self._begun < number and not (turn_runs() and self._begun == self._taken):
            self._progress.clear()
            await self._progress.wait()


class _OpenCommand(NamedTuple):
    """A command that has no outcome yet, and whether the end of the run waits for it."""

    command: AnyControl
    is_awaited: bool


class ControlRequests:
    """Carries out control commands once the CLI is connected, and reports their results."""

    def __init__(
        self,
        cli: Cli,
        events: Events,
        translator: Translator,
        order: PromptOrder,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        changed: Callable[[], None],
    ) -> None:
        """Begin without commands; ``spawn`` starts a task of the run, ``changed`` is called after each command."""
        self._cli = cli
        self._events = events
        self._translator = translator
        self._order = order
        self._spawn = spawn
        self._changed = changed
        self._in_order = asyncio.Lock()
        self._open: dict[int, _OpenCommand] = {}
        self._results: OrderedDict[str, CommandResultData] = OrderedDict()
        self._count = 0

    @property
    def awaited(self) -> bool:
        """Return whether the end of the run waits for a command."""
        return any(each.is_awaited for each in self._open.values())

    def add(self, command: AnyControl, *, awaited: bool) -> None:
        """Carry out a command; if it is ``awaited``, the end of the run waits for it."""
        self._count += 1
        key = self._count
        self._open[key] = _OpenCommand(command, awaited)
        if isinstance(command, _IN_ORDER):
            self._order.commands += 1
            self._spawn(self._carry_out_in_order(key, command, self._order.prompts))
        else:
            self._spawn(self._carry_out(key, command))

    def repeat(self, command_id: str) -> None:
        """Report a result again, for a host that has sent a command again; if there is none yet, it will come."""
        if (result := self._results.get(command_id)) is not None:
            self._events.emit(result, self._translator.turns.current_span)

    def end(self) -> None:
        """Report that the commands that are left are not carried out, as the run ends."""
        for key in list(self._open):
            self._report(key, "the run ended before this was done", None)

    async def _carry_out_in_order(self, key: int, command: AnyControl, prompts: int) -> None:
        try:
            async with self._in_order:
                await self._order.prompts_before(prompts, lambda: self._translator.turns.current is not None)
                await self._carry_out(key, command)
        finally:
            self._order.command_done()
            self._changed()

    async def _carry_out(self, key: int, command: AnyControl) -> None:
        await self._cli.connected.wait()
        error, value = None, None
        try:
            value = await self._request(command)
        except Exception as failed:  # the SDK raises a plain exception for what the CLI refuses
            error = single_line(str(failed) or repr(failed), _MAX_ERROR)
        self._report(key, error, value)
        self._changed()

    def _report(self, key: int, error: str | None, value: Any) -> None:
        done = self._open.pop(key, None)
        if done is None:  # the end of the run was faster
            return
        data = outcome_of_command(done.command, error, value)
        if data.command_id is not None:
            self._results[data.command_id] = data
            if len(self._results) > _MAX_RESULTS:
                self._results.popitem(last=False)
        self._events.emit(data, self._translator.turns.current_span)

    async def _request(self, command: AnyControl) -> Any:
        """Send a command's request to the CLI and return its answer."""
        client = self._cli.client
        match command:
            case SetModel():
                await client.set_model(command.model)
                # The CLI tells the model's whole name when the next turn begins.
                self._translator.agents.model = command.model
            case SetPermissionMode():
                await client.set_permission_mode(command.mode)
            case StopTask():
                await self._stop_task(command.task_id)
            case RewindFiles():
                self._refuse_while_tools_run()
                await client.rewind_files(command.user_message_id)
            case ReconnectMcpServer():
                await client.reconnect_mcp_server(command.server_name)
            case ToggleMcpServer():
                await client.toggle_mcp_server(command.server_name, command.enabled)
            case GetMcpStatus():
                return await self._cli.mcp.status()
            case GetContextUsage():
                usage = await client.get_context_usage()
                return {name: value for name, value in usage.items() if name not in _ONLY_DRAWN}
        return None

    def _refuse_while_tools_run(self) -> None:
        if self._translator.turns.current is not None:
            raise ValueError("a turn is running, whose tools may change files: interrupt it first")
        if any(task.kind == "local_agent" for task in self._translator.background.running.values()):
            raise ValueError("a subagent works in the background, whose tools may change files: stop it first")

    async def _stop_task(self, task_id: str) -> None:
        """Stop a task that runs; the CLI would accept any id."""
        with self._translator.background.stopping(task_id):
            await self._cli.client.stop_task(task_id)

"""Runs the host's tools and hooks when the agent calls them, and sends their results to the runner."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from agent_runner.contract.callbacks import SERVER
from agent_runner.contract.protocol import (
    MAX_LINE_BYTES,
    AnyCommand,
    AnyEvent,
    CallbackRequest,
    CallbackRequestData,
    CallbackResolved,
    CallbackResponse,
    Log,
    LogData,
    encode,
)
from agent_runner.contract.trace_context import TraceContext
from host_client.errors import SessionClosedError, StreamLostError

from ._host_functions import HostFunctions
from ._shared import SharedParts
from ._tool_results import hook_output, tool_result
from .hooks import HostHook
from .host_tools import Call, HostCall, HostTool, begin_call

MAX_RUNNING = 100
"""Maximum number of functions of a session that run at the same time; further calls wait."""

MAX_OPEN = 1000
MAX_OPEN_BYTES = 64 * 1024 * 1024
"""Limits of calls that wait or run, in number and in bytes, as a sandbox could make any number."""

MAX_REMEMBERED = 10_000
"""Maximum number of ids of calls that are remembered; an agent makes each call once."""

MAX_RESPONSE = MAX_LINE_BYTES - 64 * 1024
MAX_ERROR = 10_000
"""Maximum characters of an error that the model is shown."""

_UNSURE = "the host was restarted while this ran; whether the call took effect is not known"

_logger = logging.getLogger(__name__)


class CallbackRunner:
    """Runs the functions of one session for the requests in its events, after `begin`; `write` sends the responses."""

    def __init__(
        self,
        shared: SharedParts,
        functions: HostFunctions,
        session_id: str,
        write: Callable[[AnyCommand], Awaitable[None]],
    ) -> None:
        self._shared = shared
        self._functions = functions
        self._session_id = session_id
        self._write = write
        self._has_begun = self._is_closed = False
        self._known: dict[str, None] = {}
        """Ids of the latest requests, in order."""
        self._open: dict[str, tuple[CallbackRequest, int]] = {}
        """Requests that are not answered, with their sizes in bytes."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(MAX_RUNNING)
        self._threads = ThreadPoolExecutor(MAX_RUNNING, "host-tool")  # it starts a thread only when one is needed

    def observe(self, event: AnyEvent, size: int) -> None:
        """Run the function of a request of ``size`` bytes, or cancel that of a call that has ended."""
        match event:
            case CallbackRequest():
                self._take(event, size)
            case CallbackResolved():
                self._forget(event.data.callback_id)
            case Log(data=LogData(stream="stderr", text=line)) if self._has_begun:
                self._pass_stderr(line)
            case _:
                pass

    def _pass_stderr(self, line: str) -> None:
        if self._functions.on_stderr is not None:
            try:
                self._functions.on_stderr(line)
            except Exception:  # the caller's function must not end the session
                _logger.exception("session %s: on_stderr failed, and gets no further lines", self._session_id)
                self._functions.on_stderr = None

    def begin(self) -> None:
        """Run the functions of requests from now on.

        The requests so far were in the journal of a runner whose host died, so that host may have run their functions.
        """
        if not self._has_begun and not self._is_closed:
            self._has_begun = True
            for request, _ in list(self._open.values()):
                self._start(request, is_repeated=True)

    def close(self) -> None:
        """Cancel the functions that run, and run no more; a function in a thread goes on, but has no effect here."""
        self._is_closed = True
        for key in list(self._open):
            self._forget(key)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def closed(self, timeout: float) -> None:
        """Wait until the cancelled functions have ended, at most ``timeout`` seconds."""
        if tasks := set(self._tasks.values()):
            await asyncio.wait(tasks, timeout=timeout)

    # -- requests -------------------------------------------------------------------------------------

    def _take(self, request: CallbackRequest, size: int) -> None:
        key = request.data.callback_id
        if self._is_closed or key in self._known:
            return
        if len(self._open) >= MAX_OPEN or sum(held for _, held in self._open.values()) + size > MAX_OPEN_BYTES:
            _logger.warning("session %s: too many calls of host tools wait, so one is ignored", self._session_id)
            return
        if len(self._known) >= MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[key] = None
        self._open[key] = (request, size)
        if self._has_begun:
            self._start(request, is_repeated=False)

    def _start(self, request: CallbackRequest, is_repeated: bool) -> None:
        key = request.data.callback_id
        task = self._tasks[key] = asyncio.create_task(self._answer(request, is_repeated))
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def _forget(self, key: str) -> None:
        self._open.pop(key, None)
        if (task := self._tasks.get(key)) is not None:
            task.cancel()

    async def _answer(self, request: CallbackRequest, is_repeated: bool) -> None:
        key, name = request.data.callback_id, request.data.name
        try:
            answer = await self._answer_to(request, is_repeated)
            # The command's id is that of the call, so that a runner takes one answer, also from two hosts.
            response = CallbackResponse(command_id=key, callback_id=key, result=answer.result, error=answer.error)
            if (size := len(encode(response))) > MAX_RESPONSE:
                too_large = f"the result has {size:,} bytes as JSON, at most {MAX_RESPONSE:,} can be sent: return less"
                response = CallbackResponse(command_id=key, callback_id=key, error=too_large)
            await self._write(response)
            if answer.failed_hook is not None:
                await self._shared.report("internal", answer.failed_hook)
        except (TimeoutError, SessionClosedError):
            return  # the runner does not wait any more
        except StreamLostError as error:
            await self._shared.report("network", f"the result of {name} could not be delivered: {error}")
        finally:
            self._open.pop(key, None)

    # -- one call -------------------------------------------------------------------------------------

    async def _answer_to(self, request: CallbackRequest, is_repeated: bool) -> _Answer:
        data = request.data
        function = self._function(data)
        if function is None:
            return _Answer(error=f"the host has no {data.kind} named {data.name!r}")
        if is_repeated and not function.is_repeatable:
            return _Answer(error=_UNSURE)
        # By this clock and not by `expires_at`, as the sandbox's clock may be another one.
        deadline = time.time() + function.timeout
        async with asyncio.timeout(function.timeout), self._room:
            with self._shared.trace.current(TraceContext(request.trace_id, request.span_id)):
                begin_call(
                    HostCall(
                        session_id=self._session_id,
                        name=function.name,
                        tool_use_id=data.tool_use_id,
                        idempotency_key=data.callback_id,
                        deadline=deadline,
                    )
                )
                return await self._call(function)

    def _function(self, data: CallbackRequestData) -> _Function | None:
        if data.kind == "tool":
            tool = self._functions.tools.get((data.server or SERVER, data.name))
            return _function_of_tool(tool, data.input) if tool is not None else None
        hook = self._functions.hooks.get(data.name)
        return _function_of_hook(hook, data) if hook is not None else None

    async def _call(self, function: _Function) -> _Answer:
        try:
            call = function.prepare()
        except Exception as error:  # the caller's types may raise any
            return _Answer(error=f"the arguments do not fit: {_text(error)}")
        try:
            return _Answer(result=function.result(await self._value(function, call)))
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # by this module, not by the function
                raise
            _logger.warning("session %s: %s failed", self._session_id, function.title, exc_info=error)
            failed_hook = f"{function.title} failed: {error!r}"[:MAX_ERROR] if function.is_hook else None
            return _Answer(error=_text(error), failed_hook=failed_hook)

    async def _value(self, function: _Function, call: Call) -> object:
        if function.is_async:
            value = call()
        else:
            context, loop = contextvars.copy_context(), asyncio.get_running_loop()
            value = await loop.run_in_executor(self._threads, lambda: context.run(_outcome, call))
        return await value if inspect.isawaitable(value) else value


class _Answer(NamedTuple):
    result: dict[str, Any] = {}  # noqa: RUF012 - it is not changed
    error: str | None = None
    failed_hook: str | None = None


class _Function(NamedTuple):
    """A function to call for one request. ``is_repeatable`` if it may run again after the host was restarted."""

    name: str
    title: str
    prepare: Callable[[], Call]
    result: Callable[[object], dict[str, Any]]
    is_async: bool
    is_hook: bool
    is_repeatable: bool
    timeout: float


def _function_of_tool(tool: HostTool, arguments: dict[str, Any]) -> _Function:
    return _Function(
        name=tool.name,
        title=f"the host tool {tool.name}",
        prepare=partial(tool.prepare, arguments),
        result=tool_result,
        is_async=inspect.iscoroutinefunction(tool.function),
        is_hook=False,
        is_repeatable=tool.idempotent,
        timeout=tool.timeout,
    )


def _function_of_hook(hook: HostHook, data: CallbackRequestData) -> _Function:
    definition, function = hook
    return _Function(
        name=definition.event,
        title=f"the {definition.event} hook {definition.id}",
        prepare=lambda: partial(function, data.input, data.tool_use_id, {"signal": None}),
        result=hook_output,
        is_async=inspect.iscoroutinefunction(function),
        is_hook=True,
        is_repeatable=True,
        timeout=definition.timeout,
    )


def _outcome(call: Call) -> object:
    """Return what a call in a thread returns."""
    try:
        return call()
    except StopIteration as error:  # asyncio cannot pass it on, and would wait forever
        raise RuntimeError("the function raised StopIteration") from error


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError):  # whose text is the key alone
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text[:MAX_ERROR]

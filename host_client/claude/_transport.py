"""The transport by which the SDK's client talks to the Claude Code of a session."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any, TypedDict, Unpack, cast

from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKError, CLIConnectionError, ProcessError, Transport

from agent_runner.contract import protocol as p
from host_client.client.attachments import Attachment
from host_client.client.options import ApprovalPolicy
from host_client.client.session import Approver, Session, open_session
from host_client.errors import SandspanError
from host_client.sandbox import FolderSandbox, Sandbox
from host_client.telemetry import Telemetry

MAX_WAITING = 16
"""Maximum number of messages that wait for the SDK's client; the session's further events wait in its journal."""

_PASSED = frozenset({"system", "assistant", "user", "result", "stream_event", "rate_limit_event", "tool_progress"})
"""Types of the messages that are passed on. What comes from a sandbox must not act on the SDK's client."""

CLOSE_SECONDS = 10.0
"""Maximum seconds to wait for in-process servers, after the session was closed."""

_HOOK_MESSAGES = frozenset({"hook_started", "hook_progress", "hook_response"})
_REPLAY = "replay-user-messages"


class SessionArguments(TypedDict, total=False):
    """The arguments of `query` and `ClaudeSDKClient` beside the SDK's, for the session.

    ``sandbox``, ``telemetry``, ``traceparent`` and ``environ`` are those of `open_session`. ``approvals`` decides where
    the options have no ``can_use_tool``: ``deny`` (default), as Claude Code does without one, ``auto``, or a function.
    ``further_options`` are fields of `AgentOptions` that the SDK does not have, such as ``user_id``.
    """

    sandbox: Sandbox | None
    approvals: ApprovalPolicy | Approver
    telemetry: Telemetry | None
    traceparent: str | None
    environ: Mapping[str, str] | None
    further_options: Mapping[str, Any] | None


class SandboxTransport(Transport):
    """A transport of the SDK to the Claude Code of a session.

    The session calls the options' functions itself, so the SDK's client gets no control requests. Its own requests
    become commands of the session, its prompts those of the session.
    """

    def __init__(
        self,
        options: ClaudeAgentOptions,
        on_session: Callable[[Session], None] | None = None,
        **arguments: Unpack[SessionArguments],
    ) -> None:
        """Prepare a session with these options."""
        self._options = options
        self._on_session = on_session
        self._arguments = arguments
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """Return the session; raise the SDK's `CLIConnectionError` before there is one."""
        if self._session is None:
            raise CLIConnectionError("not connected: call connect() first")
        return self._session

    # -- the SDK's transport ----------------------------------------------------------------------

    async def connect(self) -> None:
        """Begin a session, and end an earlier one; raise `CLIConnectionError` if it cannot begin."""
        if self._session is not None:
            await self.close()
        self._session = None
        self._is_closed = False
        self._prompts: deque[Any] = deque()
        self._has_prompts = False
        self._fault: CLIConnectionError | None = None
        self._messages: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue(MAX_WAITING)
        self._description: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        begun: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._serving = asyncio.create_task(self._serve(begun))
        try:
            self._session = await begun
        except BaseException:
            await self.close()
            raise

    async def write(self, data: str) -> None:
        """Take a prompt or a control request of the SDK's client."""
        if self.session.ended.is_set():
            raise CLIConnectionError("the agent has ended")
        frame: dict[str, Any] = json.loads(data)
        match frame.get("type"):
            case "user":
                try:
                    await self._prompt(frame["message"]["content"])
                except SandspanError as error:
                    raise CLIConnectionError(str(error)) from error
            case "control_request":
                task = asyncio.create_task(self._control(frame["request_id"], frame["request"]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case _:
                pass  # there are no control requests that a response could answer

    async def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield Claude Code's messages; raise `ProcessError` at the end if the agent ended in an error."""
        while (message := await self._messages.get()) is not None:
            if isinstance(message, Exception):
                raise message
            yield message

    async def end_input(self) -> None:
        """Announce that no prompts follow."""
        await self.session.finish()

    def is_ready(self) -> bool:
        """Return whether the session can take prompts."""
        return self._session is not None and not self._session.ended.is_set()

    async def close(self) -> None:
        """End the session, and remove its sandbox."""
        self._is_closed = True
        while not self._messages.empty():  # so that what waits for room goes on
            self._messages.get_nowait()
        if self._session is not None:
            await self._session.close()
            await asyncio.wait((self._serving,), timeout=CLOSE_SECONDS)
        for task in (*self._tasks, self._serving):
            task.cancel()
            await asyncio.wait((task,))

    # -- the session ------------------------------------------------------------------------------

    async def _serve(self, begun: asyncio.Future[Session]) -> None:
        """Run a session to its end, and pass its messages to the SDK's client."""
        end: ClaudeSDKError | None = None
        try:
            async with self._open() as session:
                begun.set_result(session)
                if self._on_session is not None:
                    self._on_session(session)
                async for event in session:
                    await self._take(event)
            # Without a prompt, a runner ends in an error, and Claude Code does not.
            end = _error_of(session) if self._has_prompts or not self._description.done() else self._fault
        except Exception as error:  # the program gets it as an error of the SDK
            end = CLIConnectionError(str(error) or repr(error))
            end.__cause__ = error
        for waiting in (begun, self._description):
            if not waiting.done():
                end = end or CLIConnectionError("the agent ended before it began")
                waiting.set_exception(end)
                waiting.exception()  # not everybody waits for it
        if end is not None:
            await self._pass(end)
        await self._pass(None)

    async def _pass(self, message: dict[str, Any] | Exception | None) -> None:
        """Pass a message to the SDK's client, an error with which the messages end, or None for their end."""
        if not self._is_closed:
            await self._messages.put(message)

    def _open(self) -> AbstractAsyncContextManager[Session]:
        mode = "partial" if self._options.include_partial_messages else "on"
        sandbox = self._arguments.get("sandbox")
        takes_folder = sandbox is None or isinstance(sandbox, FolderSandbox)
        arguments: dict[str, Any] = {
            "approvals": "deny",
            **self._arguments,
            "further_options": {"messages": mode, **(self._arguments.get("further_options") or {})},
            "cwd": self._options.cwd or ("." if takes_folder else None),
        }
        extra = {name: value for name, value in self._options.extra_args.items() if name != _REPLAY}
        return open_session(None, replace(self._options, extra_args=extra), **arguments)

    async def _take(self, event: p.AnyEvent) -> None:
        match event:
            case p.CliMessage(data=p.CliMessageData(message=message)) if message.get("type") == "control_response":
                self._take_description(message)
            case p.CliMessage(data=p.CliMessageData(message=message)):
                if self._is_wanted(message):
                    await self._pass(message)
            case p.TurnStart() if event.data.user_message_id is not None and self._prompts:
                await self._replay(self._prompts.popleft(), event.data.user_message_id)
            case _:
                pass

    def _take_description(self, message: dict[str, Any]) -> None:
        response = cast("dict[str, Any]", message.get("response") or {})
        description = cast("dict[str, Any]", response.get("response") or {})
        if not self._options.hooks:
            description.pop("hooks_applied", None)  # the runner's own hooks
        if not self._description.done():
            self._description.set_result(description)

    async def _replay(self, content: Any, user_message_id: str) -> None:
        """Pass a prompt on to the program with its UUID, as Claude Code does if it is asked to."""
        if _REPLAY in self._options.extra_args:
            message = {"role": "user", "content": content}
            ids = {"uuid": user_message_id, "session_id": self.session.claude_session_id or ""}
            await self._pass({"type": "user", "message": message, "parent_tool_use_id": None, "isReplay": True, **ids})

    def _is_wanted(self, message: dict[str, Any]) -> bool:
        """Return whether Claude Code would send a message with the program's own options."""
        if message.get("type") not in _PASSED:
            return False
        match message:
            case {"type": "system", "subtype": "session_state_changed"}:
                message["sdk_host_only"] = True  # the SDK reads it, and does not pass it on
                return True
            case {"type": "system", "subtype": str(kind)} if kind in _HOOK_MESSAGES:
                return self._options.include_hook_events
            case {"type": "assistant", "parent_tool_use_id": str(), "message": {"content": content}}:
                return self._options.forward_subagent_text or _has_tools(content)
            case _:
                return True

    # -- prompts and control requests -------------------------------------------------------------

    async def _prompt(self, content: Any) -> None:
        blocks: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = [str(block.get("text", "")) for block in blocks if block.get("type") == "text"]
        try:
            others = [_attachment_of(block) for block in blocks if block.get("type") != "text"]
        except CLIConnectionError as error:  # the SDK only logs it, if the prompt comes from a stream
            self._fault = error
            raise
        self._prompts.append(content)
        self._has_prompts = True
        await self.session.send("\n\n".join(texts), attachments=others)

    async def _control(self, request_id: str, request: dict[str, Any]) -> None:
        response: dict[str, Any] = {"subtype": "success", "request_id": request_id}
        try:
            response["response"] = await self._carry_out(request)
        except Exception as error:  # the SDK raises it in the program
            response = {"subtype": "error", "request_id": request_id, "error": str(error) or repr(error)}
        await self._pass({"type": "control_response", "response": response})

    async def _carry_out(self, request: dict[str, Any]) -> dict[str, Any]:
        session = self.session
        match request.get("subtype"):
            case "initialize":
                return await self._description
            case "interrupt":
                await session.interrupt()
            case "set_model":
                await session.set_model(request.get("model"))
            case "set_permission_mode":
                await session.set_permission_mode(request["mode"])
            case "rewind_files":
                await session.rewind_files(request["user_message_id"])
            case "stop_task":
                await session.stop_task(request["task_id"])
            case "mcp_reconnect":
                await session.reconnect_mcp_server(request["serverName"])
            case "mcp_toggle":
                await session.toggle_mcp_server(request["serverName"], request["enabled"])
            case "mcp_status":
                servers = await session.get_mcp_status()
                named = [{**each, "tools": [{"name": name} for name in each["tools"]]} for each in servers]
                return {"mcpServers": named}
            case "get_context_usage":
                return await session.get_context_usage()
            case other:
                raise CLIConnectionError(f"the control request {other!r} cannot be sent to a sandbox")
        return {}


def _has_tools(content: object) -> bool:
    blocks = cast("list[Any]", content) if isinstance(content, list) else []
    kinds = {cast("dict[str, Any]", block).get("type") for block in blocks if isinstance(block, dict)}
    return not kinds <= {"text", "thinking", "redacted_thinking"}


def _attachment_of(block: dict[str, Any]) -> Attachment:
    match block:
        case {"type": "image" | "document", "source": {"type": "base64", "data": str(data)}}:
            return Attachment(base64.b64decode(data), block.get("title"))
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return Attachment(text.encode(), block.get("title"))
        case _:
            raise CLIConnectionError(
                f"a prompt's block of type {block.get('type')!r} cannot be sent to a sandbox: it takes text, and images"
                " and documents as base64 or text"
            )


def _error_of(session: Session) -> ProcessError | None:
    """Return the error that the SDK raises for a Claude Code that has ended with an error."""
    failure, error, code = session.failure, session.last_error, session.exit_code
    if failure is not None:
        return ProcessError(failure.message, exit_code=code)
    if code in (None, 0, 130):
        return None
    return ProcessError(error.message if error is not None else "the agent ended in an error", exit_code=code)

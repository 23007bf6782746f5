"""Envd: the daemon in each sandbox that starts processes and serves files."""

from __future__ import annotations

import asyncio
import signal
from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .accounts import basic_name
from .answers import error_response, proxy_response
from .connect_protocol import FrameReader, RpcError, end_frame, message_frame
from .files import Files, resolve
from .image import Image
from .processes import MARK, Command, Process, Subscription, environment_of
from .sandboxes import DEFAULT_TIMEOUT, Sandbox, Sandboxes
from .streams import Ending, EventStream, lost

KEEPALIVE_SECONDS = 90
"""Seconds between keepalives if a request names none, as in envd."""

_SIGNALS = {"SIGNAL_SIGKILL": signal.SIGKILL, "SIGNAL_SIGTERM": signal.SIGTERM}


class Envd:
    """Answers the requests that the proxy passes to a sandbox."""

    def __init__(self, sandboxes: Sandboxes, image: Image) -> None:
        self._sandboxes = sandboxes
        self._image = image
        self._files = Files(image)
        self._streams: dict[EventStream, Sandbox] = {}
        self.pace = 0.0
        """Seconds to wait after each event."""

    def routes(self) -> list[Route]:
        """Return the routes of envd."""
        return [
            Route("/health", self._through(self._health), methods=["GET"]),
            Route("/files", self._through(self._secured(self._files.read)), methods=["GET"]),
            Route("/files", self._through(self._secured(self._files.write)), methods=["POST"]),
            Route("/filesystem.Filesystem/{method}", self._through(self._secured(self._files.call)), methods=["POST"]),
            Route("/process.Process/{method}", self._through(self._secured(self._call)), methods=["POST"]),
        ]

    def live_streams(self, sandbox: Sandbox | None = None) -> list[EventStream]:
        """Return the streams of one sandbox, or of all."""
        return [stream for stream, owner in self._streams.items() if sandbox is None or owner is sandbox]

    def _through(self, answer: _Answer) -> Callable[[Request], Awaitable[Any]]:
        """Answer for the proxy if the sandbox cannot be reached, else pass the request on."""

        async def proxied(request: Request) -> Any:
            sandbox_id = request.headers.get("e2b-sandbox-id", "")
            sandbox = self._sandboxes.existing(sandbox_id)
            if sandbox is not None and sandbox.state == "paused" and sandbox.lifecycle["autoResume"]:
                self._sandboxes.resume(sandbox, DEFAULT_TIMEOUT)
            if sandbox is None or sandbox.state != "running":
                return proxy_response(sandbox_id, "The sandbox was not found")
            if not sandbox.port_open:
                port = int(request.headers.get("e2b-sandbox-port", 49983))
                return proxy_response(sandbox_id, "The sandbox is running but port is not open", port=port)
            return await answer(sandbox, request)

        return proxied

    def _secured(self, answer: _Answer) -> _Answer:
        async def checked(sandbox: Sandbox, request: Request) -> Any:
            if request.headers.get("x-access-token") != sandbox.access_token:
                return error_response(401, "unauthorized access, please provide a valid access token")
            try:
                return await answer(sandbox, request)
            except RpcError as error:
                return JSONResponse(error.to_dict(), error.status)

        return checked

    async def _health(self, sandbox: Sandbox, request: Request) -> Response:
        return Response(status_code=204)

    async def _call(self, sandbox: Sandbox, request: Request) -> Any:
        method = request.path_params["method"]
        if method in ("Start", "Connect"):
            return await self._stream(sandbox, request, method)
        if method == "StreamInput":
            return await _stream_input(sandbox, request)
        calls = {
            "List": _list,
            "Update": _update,
            "SendInput": _send_input,
            "SendSignal": _send_signal,
            "CloseStdin": _close_stdin,
        }
        if method not in calls:
            raise RpcError("unimplemented", f"no method {method}")
        return JSONResponse(await calls[method](sandbox, await request.json()))

    async def _stream(self, sandbox: Sandbox, request: Request, method: str) -> Any:
        message = next(FrameReader().feed(await request.body()))
        timeout = int(request.headers.get("connect-timeout-ms", 0)) / 1000
        try:
            if method == "Start":
                process = await _start(sandbox, self._image, request, message)
            else:
                process = sandbox.table.find_or_ended(message.get("process") or {})
        except RpcError as error:
            return _failed_stream(error)
        stream = self._open(sandbox, process, float(request.headers.get("keepalive-ping-interval", KEEPALIVE_SECONDS)))
        if timeout:
            expire = _end_both if method == "Start" else _end_stream
            timer = asyncio.get_running_loop().call_later(timeout, expire, stream, process)
            process.finished.add_done_callback(lambda _: timer.cancel())
        return stream

    def _open(self, sandbox: Sandbox, process: Process, keepalive: float) -> EventStream:
        subscription = process.subscribe() if process.end is None else _of_the_end(process)

        def leave() -> None:
            process.unsubscribe(subscription)
            self._streams.pop(stream, None)

        start = {"start": {"pid": process.pid}}
        stream = EventStream(start, subscription, leave=leave, pace=lambda: self.pace, keepalive=keepalive)
        self._streams[stream] = sandbox
        return stream


_Answer = Callable[[Sandbox, Request], Awaitable[Any]]


async def _start(sandbox: Sandbox, image: Image, request: Request, message: dict[str, Any]) -> Process:
    account = sandbox.accounts.find(basic_name(request.headers.get("authorization", "")))
    if "pty" in message:
        raise RpcError("unimplemented", "the stand-in has no terminals")
    config: dict[str, Any] = message.get("process") or {}
    cwd = resolve(account, str(config.get("cwd") or ""))
    if not cwd.exists():
        raise RpcError("invalid_argument", f"cwd '{cwd}' does not exist")
    envs = image.environment(config.get("envs") or {})
    own = {"E2B_SANDBOX": "true", MARK: sandbox.id, "E2B_TEMPLATE_ID": sandbox.template.id}
    command = Command(
        cmd=str(config["cmd"]),
        args=tuple(map(image.located, config.get("args") or ())),
        environment=environment_of(account, own, sandbox.envs, envs),
        cwd=cwd,
        account=account,
        stdin=bool(message.get("stdin", True)),
        tag=message.get("tag"),
        envs=envs,
    )
    process = await sandbox.table.start(command)
    if sandbox.state != "running":  # it was killed or paused meanwhile, and the process not known yet
        sandbox.signal_all(signal.SIGSTOP if sandbox.state == "paused" else signal.SIGKILL)
        raise lost()
    return process


def _end_stream(stream: EventStream, process: Process) -> None:
    stream.cut(Ending.DEADLINE)


def _end_both(stream: EventStream, process: Process) -> None:
    """End a stream whose time is up and the process that was started with it."""
    stream.cut(Ending.DEADLINE)
    process.signal(signal.SIGKILL)


def _of_the_end(process: Process) -> Subscription:
    subscription = Subscription()
    subscription.put_now({"end": process.end})
    subscription.put_now(None)
    return subscription


def _failed_stream(error: RpcError) -> Response:
    return Response(end_frame(error), media_type="application/connect+json")


async def _list(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    return {"processes": [_info(process) for process in sandbox.table.living]}


def _info(process: Process) -> dict[str, Any]:
    tag = {} if process.command.tag is None else {"tag": process.command.tag}
    return {"pid": process.pid, "config": process.command.to_dict(), **tag}


async def _update(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    sandbox.table.find(message.get("process") or {})
    raise RpcError("internal", "error resizing tty: tty not assigned to process")


async def _send_input(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    process = sandbox.table.find(message.get("process") or {})
    await _feed(process, message)
    return {}


async def _feed(process: Process, message: dict[str, Any]) -> None:
    given: dict[str, str] = message.get("input") or {}
    if "stdin" not in given:
        raise RpcError("failed_precondition", "error writing to tty: tty not assigned to process")
    await process.write(b64decode(given["stdin"]))


async def _send_signal(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    process = sandbox.table.find(message.get("process") or {})
    name = message.get("signal", "")
    if name not in _SIGNALS:
        raise RpcError("unimplemented", f"invalid signal: {name}")
    process.signal(_SIGNALS[name])
    return {}


async def _close_stdin(sandbox: Sandbox, message: dict[str, Any]) -> dict[str, Any]:
    await sandbox.table.find(message.get("process") or {}).close_stdin()
    return {}


async def _stream_input(sandbox: Sandbox, request: Request) -> Response:
    reader = FrameReader()
    process: Process | None = None
    try:
        async for data in request.stream():
            for message in reader.feed(data):
                if "start" in message:
                    process = sandbox.table.find(message["start"].get("process") or {})
                elif "data" in message and process is not None:
                    await _feed(process, message["data"])
    except RpcError as error:
        return _failed_stream(error)
    return Response(message_frame({}) + end_frame(), media_type="application/connect+json")

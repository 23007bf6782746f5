"""A server of the page with the service's routes, whose event logs the tests write."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

import host_client
from agent_runner.contract.attachments import media_type_of
from agent_runner.contract.protocol import EventData, event_of, input_digest, to_json
from tests.support.e2b.server import Server, loop_in_a_thread, run_in

PAGE = Path(host_client.__file__).parent / "service" / "page"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"
WAIT_SECONDS = 60.0
OPERATOR = {"name": "local", "tenant_id": "default", "role": "operator", "auth": False}


@dataclass
class Log:
    """A session: its record as the API tells it, and its events as JSON, numbered from 1.

    ``clock`` is the time of the next event, in seconds since the epoch; a test moves it on.
    """

    id: str
    record: dict[str, Any] = field(default_factory=dict[str, Any])
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    clock: float = field(default_factory=time.time)
    readers: list[asyncio.Queue[tuple[int | None, bytes] | None]] = field(
        default_factory=list["asyncio.Queue[tuple[int | None, bytes] | None]"]
    )
    waiting: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    decided: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    turn_texts: list[str] = field(default_factory=list[str])
    first_kept: int = 1

    def add(self, data: EventData, after: float = 0.0) -> int:
        """Append an event of the runner, this number of seconds after the one before; return its number."""
        self.clock += after
        event = event_of(data, seq=len(self.events) + 1, ts=self.clock, trace_id=TRACE_ID, span_id=SPAN_ID)
        return self.put(json.loads(to_json(event)))

    def say(self, kind: str, after: float = 0.0, /, **data: Any) -> int:
        """Append an event of the service."""
        self.clock += after
        return self.put(self._envelope(kind, data))

    def live(self, kind: str, /, **data: Any) -> None:
        """Send an event without a number to the present readers."""
        self._send(None, json.dumps(self._envelope(kind, data)).encode())

    def put(self, event: dict[str, Any]) -> int:
        """Append an event as it is."""
        self.events.append(event)
        data = event["data"]
        if event["type"].endswith("_request"):
            self.waiting[data.get("approval_id") or data["question_id"]] = data
        elif event["type"].endswith("_resolved"):
            key = data.get("approval_id") or data["question_id"]
            self.waiting.pop(key, None)
            self.decided[key] = {
                "decision": data["decision"],
                "decided_by": data.get("decided_by"),
                "decided_at": self.clock,
            }
        self._send(len(self.events), json.dumps(event).encode())
        return len(self.events)

    def _envelope(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        envelope = {"v": 1, "ts": self.clock, "type": kind, "trace_id": TRACE_ID, "span_id": SPAN_ID}
        return {**envelope, "data": data}

    def _send(self, number: int | None, data: bytes) -> None:
        for reader in self.readers:
            reader.put_nowait((number, data))

    @property
    def is_closed(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] == "closed"

    def as_session(self) -> dict[str, Any]:
        """Return the session as the API tells it."""
        waiting = [
            {
                "id": key,
                "kind": "approval",
                "tool_name": data.get("tool_name", "AskUserQuestion"),
                "expires_at": data["expires_at"],
            }
            for key, data in self.waiting.items()
        ]
        status = "closed" if self.is_closed else "needs_you" if waiting else "running"
        return {
            "id": self.id,
            "tenant_id": "default",
            "user_id": "ana",
            "title": self.id,
            "status": status,
            "created_at": self.clock,
            "updated_at": self.clock,
            "closed_at": self.clock if self.is_closed else None,
            "model": "claude-sonnet-4-5",
            "cost_usd": 0.0,
            "max_budget_usd": None,
            "turns": 1,
            "waiting": waiting,
            "last_event_id": len(self.events),
            "trace_id": TRACE_ID,
            "trace_url": None,
            "sandbox": None,
            "metadata": {},
            "close_reason": None,
            "error_type": None,
            **self.record,
        }


def _problem(status: int, detail: str, **more: Any) -> Response:
    body = {"type": "about:blank", "title": detail, "status": status, "detail": detail, **more}
    return JSONResponse(body, status, media_type="application/problem+json")


class PageServer:
    """The routes of the service that the page uses, over logs. Its methods are called from the test's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.logs: dict[str, Log] = {}
        self.me: dict[str, Any] | None = dict(OPERATOR)
        self.token = "a-token"
        self.decisions: list[dict[str, Any]] = []
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, tuple[str, bytes]] = {}
        """Name and content of each upload by its id, which is also that of the attachment in each prompt with it."""
        self.refuses_uploads = False
        self.may_upload = threading.Event()
        """Uploads wait until it is set."""
        self.may_upload.set()
        self.streams_opened: list[int] = []
        self._server = Server(self._app(), 0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def session_url(self, log: Log, event: int | None = None) -> str:
        return f"{self.url}/#/s/{log.id}" + (f"/e/{event}" if event else "")

    def open(self) -> None:
        """Listen, on the same port each time."""
        run_in(self._loop, self._server.listen())

    def close(self) -> None:
        """Stop listening and reset every connection."""
        run_in(self._loop, self._server.close())

    def play(self, work: Any) -> Any:
        """Do something with the logs in the server's thread: ``play(lambda: log.add(…))``."""

        async def run() -> Any:
            return work()

        return run_in(self._loop, run())

    def log(self, name: str, **record: Any) -> Log:
        """Make a session without events; they may be added before the page is opened without `play`."""
        self.logs[name] = Log(name, record)
        return self.logs[name]

    # -- routes ---------------------------------------------------------------------------------------------------

    def _app(self) -> ASGIApp:
        session = "/api/sessions/{id}"
        routes = [
            Route("/", self._index),
            Route("/api/me", self._me),
            Route("/api/login", self._login, methods=["POST"]),
            Route("/api/sessions", self._list),
            Route("/api/sessions", self._create, methods=["POST"]),
            Route(session, self._session),
            Route(session, self._close_session, methods=["DELETE"]),
            Route(f"{session}/events", self._events),
            Route("/api/files", self._upload, methods=["POST"]),
            Route(f"{session}/attachments/{{key}}", self._attachment),
            Route(f"{session}/turns", self._turn, methods=["POST"]),
            Route(f"{session}/interrupt", self._interrupt, methods=["POST"]),
            Route(f"{session}/commands", self._command, methods=["POST"]),
            Route(f"{session}/approvals/{{key}}", self._decide, methods=["POST"]),
            Route(f"{session}/questions/{{key}}", self._answer, methods=["POST"]),
            Mount("/", StaticFiles(directory=PAGE)),
        ]
        app = Starlette(routes=routes)

        async def with_headers(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_with(message: Any) -> None:
                if message["type"] == "http.response.start":
                    headers = [(b"content-security-policy", CSP.encode()), (b"x-content-type-options", b"nosniff")]
                    message["headers"] = [*message["headers"], *headers]
                await send(message)

            await app(scope, receive, send_with)

        return with_headers

    async def _index(self, _request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def _me(self, _request: Request) -> Response:
        return JSONResponse(self.me) if self.me else _problem(401, "Sign in first.")

    async def _login(self, request: Request) -> Response:
        if (await request.json())["token"] != self.token:
            return _problem(401, "The token is not known.")
        self.me = {**OPERATOR, "name": "ana", "auth": True}
        return Response(status_code=204)

    async def _list(self, request: Request) -> Response:
        wanted = request.query_params.get("status")
        sessions = [log.as_session() for log in reversed(self.logs.values())]
        return JSONResponse({"sessions": [s for s in sessions if wanted in (None, s["status"])], "next": None})

    async def _create(self, request: Request) -> Response:
        body = await request.json()
        self.created.append({**body, "key": request.headers.get("idempotency-key")})
        log = self.log(f"made-{len(self.created)}", title=body["prompt"])
        files = self._attached(body)
        log.say("prompt", turn_id="t1", text=body["prompt"], sent_by="local", attachments=files)
        return JSONResponse(log.as_session(), 201)

    def _log(self, request: Request) -> Log | None:
        return self.logs.get(request.path_params["id"])

    async def _session(self, request: Request) -> Response:
        log = self._log(request)
        return JSONResponse(log.as_session()) if log else _problem(404, "There is no such session.")

    async def _close_session(self, request: Request) -> Response:
        log = self.logs[request.path_params["id"]]
        log.say("closed", reason="closed", cost_usd=0.0, closed_by="local")
        return JSONResponse(log.as_session(), 202)

    async def _turn(self, request: Request) -> Response:
        log = self.logs[request.path_params["id"]]
        body = await request.json()
        text = body["text"]
        log.turn_texts.append(text)
        files = self._attached(body)
        log.say("prompt", turn_id=f"t{len(log.turn_texts)}", text=text, sent_by="local", attachments=files)
        return JSONResponse({"turn_id": "t", "session_id": log.id, "trace_id": TRACE_ID}, 202)

    async def _upload(self, request: Request) -> Response:
        data = await request.body()
        await asyncio.to_thread(self.may_upload.wait, WAIT_SECONDS)
        if self.refuses_uploads:
            return _problem(503, "The store cannot be reached.")
        assert request.headers["content-type"] == "application/octet-stream"
        file_id = f"f{len(self.files) + 1}"
        self.files[file_id] = request.query_params["name"], data
        return JSONResponse({"file_id": file_id}, 201)

    def _attached(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        ids = [each["file_id"] for each in body.get("attachments", [])]
        return [self.attachment(file_id) for file_id in ids]

    def attachment(self, file_id: str) -> dict[str, Any]:
        """Return an upload as an attachment of a prompt's event."""
        name, data = self.files[file_id]
        return {"id": file_id, "name": name, "size": len(data), "media_type": media_type_of(data)}

    async def _attachment(self, request: Request) -> Response:
        file = self.files.get(request.path_params["key"])
        if file is None:
            return _problem(404, "There is no such attachment.")
        headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(file[0])}"}
        return Response(file[1], media_type=media_type_of(file[1]), headers=headers)

    async def _interrupt(self, request: Request) -> Response:
        self.decisions.append({"interrupt": request.path_params["id"]})
        return Response(status_code=202)

    async def _command(self, request: Request) -> Response:
        self.decisions.append(await request.json())
        return JSONResponse({"command_id": "c1"}, 202)

    async def _decide(self, request: Request) -> Response:
        body = await request.json()
        log, key = self.logs[request.path_params["id"]], request.path_params["key"]
        self.decisions.append({"id": key, **body})
        if key in log.decided:
            return _problem(409, "It was decided already.", **log.decided[key])
        if body["input_sha256"] != input_digest(log.waiting[key]["input"]):
            return _problem(422, "input_sha256 is not the digest of the requested input.")
        decision = "allow_edited" if body.get("updated_input") is not None else body["decision"]
        return self._resolve(log, key, "approval", decision, body, {})

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        log, key = self.logs[request.path_params["id"]], request.path_params["key"]
        self.decisions.append({"id": key, **body})
        if key in log.decided:
            return _problem(409, "It was decided already.", **log.decided[key])
        return self._resolve(log, key, "question", "answered", body, {"answers": body["answers"]})

    def _resolve(self, log: Log, key: str, kind: str, decision: str, body: Any, more: dict[str, Any]) -> Response:
        by = body.get("decided_by", "local")
        ids = {f"{kind}_id": key, "tool_use_id": log.waiting[key]["tool_use_id"]}
        log.say(f"{kind}_resolved", **ids, decision=decision, decided_by=by, wait_ms=1200.0, **more)
        return JSONResponse({"request_id": key, **log.decided[key]})

    async def _events(self, request: Request) -> Response:
        log = self._log(request)
        if log is None:
            return _problem(404, "There is no such session.")
        after = int(request.query_params["after"])
        self.streams_opened.append(after)
        if log.is_closed and after >= len(log.events):
            return Response(status_code=204)
        return StreamingResponse(self._stream(log, after), media_type="text/event-stream")

    async def _stream(self, log: Log, after: int) -> AsyncGenerator[bytes]:
        queue: asyncio.Queue[tuple[int | None, bytes] | None] = asyncio.Queue()
        log.readers.append(queue)
        try:
            yield b"retry: 1000\n\n: heartbeat\n\n"
            if after + 1 < log.first_kept:
                gap = log._envelope("gap", {"first": after + 1, "last": log.first_kept - 1})  # pyright: ignore[reportPrivateUsage]
                yield b"data: " + json.dumps(gap).encode() + b"\n\n"
                after = log.first_kept - 1
            for number, event in itertools.islice(enumerate(list(log.events), 1), after, None):
                yield _frame(number, json.dumps(event).encode())
            last = len(log.events)
            while not log.is_closed or last < len(log.events):
                entry = await queue.get()
                if entry is None:
                    return
                if entry[0] is None or entry[0] > last:
                    last = entry[0] or last
                    yield _frame(*entry)
        finally:
            log.readers.remove(queue)


def _frame(number: int | None, data: bytes) -> bytes:
    return (b"id: %d\n" % number if number is not None else b"") + b"data: " + data + b"\n\n"


@contextmanager
def page_server() -> Generator[PageServer]:
    """Serve the page on a free port until the end of the block."""
    with loop_in_a_thread() as loop:
        server = PageServer(loop)
        server.open()
        try:
            yield server
        finally:
            server.close()

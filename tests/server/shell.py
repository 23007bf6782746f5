"""The service's HTTP shell with simple test routes, served by a real uvicorn protocol on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from host_client.service import _auth as auth
from host_client.service import _problems as problems
from host_client.service._auth import Approver, Authenticator, Operator, Reader
from host_client.service._body import JsonRoute
from host_client.service._guard import Guard
from host_client.service._limits import ServiceLimits
from host_client.store.base import StoreError, Token, TooManyError, UnknownSessionError
from tests.support.e2b.server import Server

BASE = "http://localhost:8765"
PATIENCE = 20.0


class Note(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str
    deep: Any = None


class NoTokens:
    """A store of tokens for a service that requires none; a lookup fails the test."""

    async def find_token(self, digest: str) -> Token | None:
        raise AssertionError("no token is to be looked up")


def shell(authenticator: Authenticator, *, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None)
    problems.install(app)
    app.state.authenticator = authenticator
    app.include_router(auth.router)
    app.router.route_class = JsonRoute
    app.add_middleware(Guard, hosts=hosts, origins=origins, limits=ServiceLimits(max_body=64 * 1024))
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    app.add_api_route("/", _page)
    app.add_api_route("/healthz", _page)
    app.add_api_route("/api/reads", _reads)
    app.add_api_route("/api/decides", _decides, methods=["POST"])
    app.add_api_route("/api/operates", _operates, methods=["POST"])
    app.add_api_route("/api/notes", _notes, methods=["POST"])
    app.add_api_route("/api/raw", _raw, methods=["POST"])
    app.add_api_route("/api/events", _events)
    app.add_api_route("/api/half", _half)
    app.add_api_route("/api/named", _named)
    app.add_api_route("/api/fails/{how}", _fails)


async def _page() -> Response:
    return PlainTextResponse("the page")


async def _reads(who: Reader) -> str:
    return who.name


async def _decides(who: Approver) -> str:
    return who.name


async def _operates(who: Operator) -> str:
    return who.name


async def _notes(note: Note) -> Note:
    return note


async def _raw(request: Request) -> int:
    return len(await request.body())


async def _events() -> Response:
    async def told() -> AsyncIterator[bytes]:
        yield b"data: 1\n\n"
        await asyncio.Event().wait()  # the first event must arrive while the response is still open

    return StreamingResponse(told(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


async def _half() -> Response:
    async def told() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("in the middle")

    return StreamingResponse(told())


async def _named(name: str) -> Response:
    return Response("", headers={"content-disposition": f"attachment; filename={name}"})


async def _fails(how: str) -> None:
    raise {
        "unknown": UnknownSessionError("no session s-1 in /srv/secret.sqlite"),
        "many": TooManyError(3),
        "store": StoreError("/srv/secret.sqlite is full"),
        "bug": ValueError("the key is sk-secret"),
    }[how]


def client(app: FastAPI, **headers: str) -> httpx.AsyncClient:
    """Return an HTTP client that calls an application directly, without a network."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=BASE, headers=named)


@contextlib.asynccontextmanager
async def served(app: FastAPI) -> AsyncGenerator[int]:
    """Serve an application on loopback; yield the port."""
    server = Server(app, 0)
    await server.listen()
    try:
        yield server.port
    finally:
        await server.close()


@dataclass(frozen=True)
class RawAnswer:
    """A raw HTTP answer; header names are in lower case, and ``body`` still has its chunk encoding."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def slug(self) -> str:
        return json.loads(self.body)["type"].removeprefix("/problems/")


async def send_raw(port: int, *parts: bytes) -> RawAnswer:
    """Send the parts of a raw request one after the other, then read until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            with contextlib.suppress(ConnectionError):  # the server may answer and close before it has read everything
                await asyncio.wait_for(writer.drain(), PATIENCE)
        came = await asyncio.wait_for(reader.read(), PATIENCE)
    finally:
        writer.close()
    head, _, body = came.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(": ") for line in lines)
    return RawAnswer(int(first.split()[1]), {name.lower(): value for name, _, value in fields}, body)


def slug(answer: httpx.Response) -> str:
    """Return the slug of a problem answer after checking the fields that every problem has."""
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["title"]
    assert body["detail"]
    return body["type"].removeprefix("/problems/")

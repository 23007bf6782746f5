"""A stand-in of the model's API whose answers a test writes byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11

WAIT_SECONDS = 60.0

Answering = Callable[["Asked", "Wire"], Awaitable[None]]


@dataclass(frozen=True)
class Asked:
    """A received request; its headers are pairs in their order."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header == name]


@dataclass
class Wire:
    """The connection of a request."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: str = "200 OK", *headers: str) -> None:
        """Begin an answer whose body comes in chunks."""
        lines = [f"HTTP/1.1 {status}", *headers, "Transfer-Encoding: chunked"]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def whole(self, data: bytes, status: str = "200 OK", *headers: str) -> None:
        await self.head(status, *headers)
        await self.chunk(data)
        await self.end()

    async def closed(self) -> bool:
        """Wait until the client has disconnected."""
        async with asyncio.timeout(WAIT_SECONDS):
            try:
                return await self.reader.read(1) == b""
            except ConnectionError:
                return True


@dataclass
class Upstream:
    """The received requests, and the address of the stand-in."""

    url: str
    asked: list[Asked] = field(default_factory=list[Asked])
    faults: list[BaseException] = field(default_factory=list[BaseException])


@asynccontextmanager
async def upstream(answering: Answering) -> AsyncGenerator[Upstream]:
    """Serve one answer per connection; an exception while answering fails the test."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await _read(reader)
            this.asked.append(asked)
            await answering(asked, Wire(reader, writer))
        except Exception as error:
            this.faults.append(error)
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    this = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield this
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert this.faults == []


async def _read(reader: asyncio.StreamReader) -> Asked:
    connection = h11.Connection(h11.SERVER)
    head: h11.Request | None = None
    body = b""
    while True:
        match connection.next_event():
            case h11.Request() as request:
                head = request
            case h11.Data(data=data):
                body += data
            case h11.EndOfMessage():
                assert head is not None
                headers = [(name.decode(), value.decode()) for name, value in head.headers]
                return Asked(head.method.decode(), head.target.decode(), headers, body)
            case h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            case other:
                raise AssertionError(f"no whole request: {other!r}")

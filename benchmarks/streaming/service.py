"""Run the measured service in a separate process, as in production but with the simulated runners of `runners`.

``python -m benchmarks.streaming.service SOCKET STORE EVENTS RATE``
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import uvicorn

from host_client.errors import SandboxGoneError, StreamLostError
from host_client.sandbox import Exit, Progress, SandboxInfo
from host_client.service._app import create_app
from host_client.service._hosting import House
from host_client.service._limits import ServiceLimits
from host_client.service._service import Service
from host_client.service.config import ServiceConfig
from host_client.service.run import exempt_from_collection, options_of
from host_client.store._sqlite import SqliteStore
from host_client.store.base import StoredSession
from host_client.telemetry import Telemetry

from .runners import Pace

CHUNK = 256 * 1024


class SocketProcess:
    """The process of a simulated runner, reached through a socket."""

    def __init__(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.id = name
        self._reader = reader
        self._writer = writer

    async def output(self) -> AsyncIterator[bytes]:
        while chunk := await self._reader.read(CHUNK):
            yield chunk

    async def disconnect(self) -> None:
        pass

    async def write(self, data: bytes) -> None:
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise StreamLostError(str(error)) from error

    async def close_input(self) -> None:
        self._writer.write_eof()

    async def wait(self) -> Exit:
        return Exit(0)

    async def terminate(self) -> None:
        self._writer.close()

    async def kill(self) -> None:
        self._writer.close()


class SocketSandbox:
    """A sandbox whose runner is a connection to the process of `runners`."""

    def __init__(self, stored: StoredSession, path: str, events: int, rate: float) -> None:
        self._name = stored.record.id
        self._pace = Pace(events=events, rate=rate, trace_id=stored.record.root.trace_id)
        self._path = path

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        return SandboxInfo(id=self._name, kind="socket", work="/", journal="/dev/null")

    async def progress(self, journal: str, process_id: str) -> Progress:
        return Progress(0, True)

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> SocketProcess:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=2**20)
        writer.write(msgspec.json.encode(self._pace) + b"\n")
        return SocketProcess(self._name, reader, writer)

    async def adopt(self, info: SandboxInfo, process_id: str) -> SocketProcess:
        raise SandboxGoneError(f"{info.id} is gone")

    async def upload(self, source: Path) -> None:
        raise NotImplementedError

    async def download(self, target: Path) -> None:
        raise NotImplementedError

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        raise NotImplementedError

    async def leave(self) -> None:
        pass

    async def close(self) -> None:
        pass


async def _nothing(_: StoredSession) -> None:
    pass


async def main(path: str, store: str, events: int, rate: float) -> None:
    house = House(
        store=SqliteStore(Path(store)),
        owner="bench",
        telemetry=Telemetry(),
        environ={},
        sandbox=lambda stored: SocketSandbox(stored, path, events, rate),
        options=options_of,
        forget=_nothing,
    )
    service = Service(house)
    await service.start()
    limits = ServiceLimits(
        sessions_per_tenant=None, turns_per_minute=None, readers_per_session=None, readers_per_tenant=None
    )
    app = create_app(service, ServiceConfig(limits=limits))
    exempt_from_collection()
    await serve(app)


async def serve(app: object) -> None:
    """Serve on a free port of loopback and print the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    config = uvicorn.Config(app, lifespan="off", log_level="error", access_log=False, ws="none")  # pyright: ignore[reportArgumentType]
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))

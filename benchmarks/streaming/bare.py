"""The baseline of the service: a Starlette app that only streams the same lines to the same number of readers.

It stores and checks nothing, and a late reader misses earlier lines. Each reader has a queue.
``python -m benchmarks.streaming.bare SOCKET EVENTS RATE``
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .runners import Pace
from .service import serve


class Bare:
    def __init__(self, path: str, events: int, rate: float) -> None:
        self._path = path
        self._events = events
        self._rate = rate
        self._readers: dict[str, list[asyncio.Queue[bytes | None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, request: Request) -> Response:
        session_id = f"{len(self._readers):032x}"
        self._readers[session_id] = []
        return JSONResponse({"id": session_id})

    async def start(self, request: Request) -> Response:
        task = asyncio.create_task(self._follow(request.path_params["id"]))
        self._tasks.add(task)
        return Response(status_code=202)

    async def _follow(self, session_id: str) -> None:
        reader, writer = await asyncio.open_unix_connection(self._path, limit=2**24)
        trace_id = f"{int(session_id, 16) * 7919 % 65_536:04x}{session_id[4:]}"
        pace = Pace(events=self._events, rate=self._rate, trace_id=trace_id, prompts=0)
        writer.write(msgspec.json.encode(pace) + b"\n")
        number = 0
        while line := await reader.readline():
            number += 1
            frame = b"id: %d\ndata: %b\n\n" % (number, line[:-1])
            for queue in self._readers[session_id]:
                queue.put_nowait(frame)
        for queue in self._readers[session_id]:
            queue.put_nowait(None)
        writer.close()

    async def events(self, request: Request) -> Response:
        queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._readers[request.path_params["id"]].append(queue)

        async def frames() -> AsyncIterator[bytes]:
            yield b"retry: 1000\n\n"
            while (frame := await queue.get()) is not None:
                yield frame

        return StreamingResponse(frames(), media_type="text/event-stream")


async def main(path: str, events: int, rate: float) -> None:
    bare = Bare(path, events, rate)
    app = Starlette(
        routes=[
            Route("/api/sessions", bare.create, methods=["POST"]),
            Route("/api/sessions/{id}/turns", bare.start, methods=["POST"]),
            Route("/api/sessions/{id}/events", bare.events),
        ]
    )
    await serve(app)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))

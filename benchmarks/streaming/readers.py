"""Simulated browsers in a separate process: several connections per session, each for a number of events.

``python -m benchmarks.streaming.readers PORT READERS EVENTS SESSION…`` prints ``ready`` once all are connected, and at
the end a `Seen` as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import NamedTuple

LIMIT_SECONDS = 120.0

# Matches an event of the measured turn; its `ts` stands near the beginning.
_TEXT = re.compile(rb'data: \{"type":"text",[^\n]*?"ts":([0-9.]+)')


class Seen(NamedTuple):
    """The readers' results: number of events, seconds of each from its writing, seconds from the first to the last."""

    events: int
    latencies: list[float]
    seconds: float


class Reader:
    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.first = self.last = 0.0

    async def connect(self, port: int, session_id: str) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        request = f"GET /api/sessions/{session_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        self._writer.write(request.encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower(), head
        self._raw = b""
        self._rest = await self._body()  # and events that the log had already
        assert self._rest.startswith(b"retry: 1000\n\n"), self._rest

    async def _body(self) -> bytes:
        """Return the next part of the answer's body without the chunk encoding, or nothing at its end.

        Parsed by hand: a library in Python reads more slowly than browsers, and slow readers cost the server less.
        """
        parts: list[bytes] = []
        while not parts:
            read = await self._reader.read(2**20)
            raw, at = self._raw + read, 0
            while (end := raw.find(b"\r\n", at)) > 0:
                after = end + 2 + int(raw[at:end], 16)
                if len(raw) < after + 2:
                    break
                parts.append(raw[end + 2 : after])
                at = after + 2
            self._raw = raw[at:]
            if not read:
                break
        return b"".join(parts)

    async def read(self, events: int) -> None:
        rest = self._rest
        while len(self.latencies) < events and (part := await self._body()):
            now = time.time()
            *frames, rest = (rest + part).split(b"\n\n")
            for frame in frames:
                if found := _TEXT.search(frame):
                    self.first = self.first or now
                    self.last = now
                    self.latencies.append(now - float(found[1]))
        assert len(self.latencies) == events, f"a stream ended after {len(self.latencies)} events"


async def main(port: int, readers: int, events: int, session_ids: list[str]) -> Seen:
    every = [(Reader(), session_id) for session_id in session_ids for _ in range(readers)]
    for start in range(0, len(every), 50):
        await asyncio.gather(*(reader.connect(port, session_id) for reader, session_id in every[start : start + 50]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    async with asyncio.timeout(LIMIT_SECONDS):
        await asyncio.gather(*(reader.read(events) for reader, _ in every))
    latencies = sorted(latency for reader, _ in every for latency in reader.latencies)
    seconds = max(reader.last for reader, _ in every) - min(reader.first for reader, _ in every)
    return Seen(len(latencies), latencies[:: max(1, len(latencies) // 1000)], seconds)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))))

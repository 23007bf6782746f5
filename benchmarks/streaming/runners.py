"""Many simulated runners in a separate process: each connection to its socket is one runner.

A runner sends `start` and, once it has received its prompts, a number of events at a set rate, each with the time of
writing. ``python -m benchmarks.streaming.runners SOCKET`` serves them; a connection's first line is its `Pace`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

import msgspec

from agent_runner.contract.protocol import EventData, StartData, TextData, TurnStartData, encode, event_of

DELAY_SECONDS = 2.5
"""Seconds from a turn's start to its first event, in which the CPU time of sending turns is measured."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The load by one runner: number of events, events per second (0: as fast as they are read), size of the text."""

    events: int
    rate: float
    trace_id: str
    text_size: int = 200
    prompts: int = 2
    """Number of lines to wait for before events: the session's first turn, and the turn that is measured."""


class Runner:
    """A simulated runner on one connection."""

    def __init__(self, pace: Pace, writer: asyncio.StreamWriter) -> None:
        self._pace = pace
        self._writer = writer
        self._seq = 0

    async def say(self, data: EventData, span: str = "1" * 16) -> None:
        self._seq += 1
        event = event_of(data, seq=self._seq, ts=time.time(), trace_id=self._pace.trace_id, span_id=span)
        self._writer.write(encode(event))
        await self._writer.drain()

    async def work(self) -> None:
        pace = self._pace
        await self.say(TurnStartData(turn=1, prompt_size=2))
        await asyncio.sleep(DELAY_SECONDS)
        text, began = "x" * pace.text_size, time.monotonic()
        for number in range(pace.events):
            if pace.rate:
                # All runners start together; the offset keeps them from writing at the same moments.
                due = began + (number + int(pace.trace_id[:4], 16) / 65_536) / pace.rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self.say(TextData(text=text, message_id=f"msg_{number}"))


async def serve(path: str) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            pace = msgspec.json.decode(await reader.readline(), type=Pace)
            runner = Runner(pace, writer)
            await runner.say(
                StartData(
                    session_id="s", model="m", tools=[], cwd="/", permission_mode="default", resumed=False,
                    runner_version="0",
                )
            )  # fmt: skip
            for _ in range(pace.prompts):
                await reader.readline()
            await runner.work()
            await reader.read()  # keeps the session open, so that its end is not measured
        writer.close()

    server = await asyncio.start_unix_server(connected, path, limit=2**20)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))

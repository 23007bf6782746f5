"""Faults on demand, in place of or in addition to the right answer.

e2b.fail("POST /v2/sandboxes", Answer(503), times=2)
e2b.fail("POST /process.Process/*", CutAfterEvents(3, Ending.EOF))
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import error_response
from .streams import Ending, abort, end


class Fault(Protocol):
    """Answers a request in place of ``app``."""

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None: ...


@dataclass(frozen=True)
class Answer:
    """Answer with an error in E2B's form, and headers such as ``Retry-After``."""

    status: int
    message: str = "as asked for by the test"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await error_response(self.status, self.message, dict(self.headers))(scope, receive, send)


@dataclass(frozen=True)
class Slow:
    """Give the right answer after a delay in seconds."""

    seconds: float

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(self.seconds)
        await app(scope, receive, send)


class Hold:
    """Give the right answer when the test releases it; ``met`` is done when the request has arrived."""

    def __init__(self) -> None:
        self.met: Future[None] = Future()
        self._released: Future[None] = Future()

    def release(self) -> None:
        """Let the request go on."""
        if not self._released.done():
            self._released.set_result(None)

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.met.done():
            self.met.set_result(None)
        await asyncio.shield(asyncio.wrap_future(self._released))
        await app(scope, receive, send)


@dataclass(frozen=True)
class Reset:
    """Reset the connection when the request has arrived."""

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await abort(scope, receive)


@dataclass(frozen=True)
class ResetAfter:
    """Execute the request, and reset the connection in place of the answer."""

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def swallow(message: Message) -> None:
            pass

        await app(scope, receive, swallow)
        await abort(scope, receive)


@dataclass(frozen=True)
class CutAfterBytes:
    """The first bytes of the body, and then its end; `Ending.LOST`, an event, comes after a whole one."""

    count: int
    ending: Ending = Ending.RESET
    on_cut: Callable[[], None] = lambda: None

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        left = self.count

        def keep(body: bytes) -> bytes | None:
            nonlocal left
            kept, left = body[:left], left - len(body)
            if left > 0:
                return None
            self.on_cut()
            return body if self.ending is Ending.LOST else kept

        await app(scope, receive, _cutting(keep, self.ending, scope, receive, send))


@dataclass(frozen=True)
class CutAfterEvents:
    """The first events of a stream, the start event among them, and then its end."""

    count: int
    ending: Ending = Ending.RESET

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        left = self.count

        def keep(body: bytes) -> bytes | None:
            nonlocal left
            left -= 1
            if left < 0:
                return b""
            return body if left == 0 else None

        await app(scope, receive, _cutting(keep, self.ending, scope, receive, send))


class CutAtRandom:
    """Cut each stream after a random number of bytes in a random way, by a seed."""

    def __init__(
        self, seed: int, most_bytes: int, endings: tuple[Ending, ...] = (Ending.RESET, Ending.EOF, Ending.LOST)
    ) -> None:
        self._random, self._most, self._endings = random.Random(seed), most_bytes, endings
        self.cuts = 0
        """Number of streams that were cut; the others were too short."""

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        cut = CutAfterBytes(self._random.randint(1, self._most), self._random.choice(self._endings), self._count)
        await cut(app, scope, receive, send)

    def _count(self) -> None:
        self.cuts += 1


def _cutting(keep: Callable[[bytes], bytes | None], ending: Ending, scope: Scope, receive: Receive, send: Send) -> Send:
    """Return a ``send`` that ends the response where ``keep`` first returns what is left of a part of the body."""
    over = False

    async def cut(message: Message) -> None:
        nonlocal over
        if over:
            return
        if message["type"] == "http.response.start":
            # Ends where it is cut, so its length is not known.
            headers = [(name, value) for name, value in message["headers"] if name != b"content-length"]
            await send({**message, "headers": headers})
            return
        body: bytes = message.get("body", b"")
        last = keep(body)
        if last is None:
            await send(message)
            return
        over = True
        await send({"type": "http.response.body", "body": last, "more_body": True})
        await end(ending, scope, receive, send)

    return cut


@dataclass
class Rule:
    """A fault for the requests whose ``METHOD /path`` matches; ``times`` None is until it is cleared."""

    pattern: str
    fault: Fault
    times: int | None = 1
    skip: int = 0
    met: int = 0
    """Number of requests that had this fault."""

    def takes(self, line: str) -> bool:
        """Say whether the fault is for this request, and count it."""
        if not fnmatchcase(line, self.pattern) or self.times == self.met:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.met += 1
        return True


class Faults:
    """Applies the first rule that matches a request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.rules: list[Rule] = []

    def clear(self) -> None:
        """Remove all faults."""
        for rule in self.rules:
            if isinstance(rule.fault, Hold):
                rule.fault.release()
        self.rules.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        line = f"{scope['method']} {scope['path']}"
        for rule in list(self.rules):
            if rule.takes(line):
                await rule.fault(self._app, scope, receive, send)
                return
        await self._app(scope, receive, send)

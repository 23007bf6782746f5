"""Files that are sent: a few at a time, each only as long as its reader takes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ._problems import ProblemError
from ._sse import pieces

MAX_FILE = 32 * 1024 * 1024
"""Bytes; a file is held in memory."""
AT_ONCE = 4
MOST_WAITING = 16
DOWNLOAD_SECONDS = 300.0
"""How long a reader may take for one file: what it takes is held back from others."""
RETRY_SECONDS = 10

_logger = logging.getLogger(__name__)


class Downloads:
    """Who may hold a file in this process: a few, while some more wait and all others are sent away."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """Wait for a place and hold it; raise `ProblemError` (429) where too many wait."""
        if self._waiting >= MOST_WAITING:
            detail = f"{AT_ONCE} files are being sent and {MOST_WAITING} requests wait"
            raise ProblemError("too-many-downloads", detail, headers={"retry-after": str(RETRY_SECONDS)})
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


class FileAnswer(Response):
    """A file that is read once there is a place for it, and sent in pieces, as its reader takes them.

    ``read`` may raise `ProblemError`. A reader that takes too long is cut off.
    """

    media_type = "application/octet-stream"

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes]],
        downloads: Downloads,
        headers: Mapping[str, str],
        seconds: float = DOWNLOAD_SECONDS,
    ) -> None:
        super().__init__(None, headers=headers)
        self._read = read
        self._downloads = downloads
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read and send it."""
        async with self._downloads.place():
            content = await self._read()
            try:
                async with asyncio.timeout(self._seconds):
                    await self._send(content, send)
            except TimeoutError:  # the server cuts a connection whose answer is not whole
                _logger.info("a file's reader took more than %g seconds", self._seconds)

    async def _send(self, content: bytes, send: Send) -> None:
        self.headers["content-length"] = str(len(content))
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in pieces(content):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

"""Transfers of files, a few at a time and with a time limit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ._problems import ProblemError
from ._sse import pieces

MAX_FILE = 32 * 1024 * 1024
"""Maximum size of a file in bytes; it is held in memory."""
AT_ONCE = 4
"""Maximum number of transfers at a time."""
MOST_WAITING = 16
"""Maximum number of transfers that wait."""
MOST_PICTURES_WAITING = 500
"""The same for attachments, which come from the store and not from a sandbox: a page loads many at the same time."""
DOWNLOAD_SECONDS = 300.0
"""Seconds that a client may take for one file, as others wait meanwhile."""
RETRY_SECONDS = 10

_logger = logging.getLogger(__name__)


class Transfers:
    """The places for downloads or uploads in this process: a few run, some more wait, and all others are refused."""

    def __init__(self, refusal: str = "too-many-downloads", most_waiting: int = MOST_WAITING) -> None:
        self._refusal = refusal
        self._most_waiting = most_waiting
        self._free = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncGenerator[None]:
        """Wait for a place and hold it; raise `ProblemError` (429) if too many wait already."""
        if self._waiting >= self._most_waiting:
            detail = f"{AT_ONCE} requests with files are carried out and {self._most_waiting} wait"
            raise ProblemError(self._refusal, detail, headers={"retry-after": str(RETRY_SECONDS)})
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


def disposition(name: str) -> str:
    """Return the `Content-Disposition` by which a browser saves a file under a name, and does not show it."""
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


class FileAnswer(Response):
    """The HTTP response that waits for a place, reads a file with ``read``, and sends it in pieces.

    A client that takes longer than ``seconds`` is cut off.
    """

    media_type = "application/octet-stream"

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes]],
        downloads: Transfers,
        headers: Mapping[str, str],
        seconds: float = DOWNLOAD_SECONDS,
    ) -> None:
        super().__init__(None, headers=headers)
        self._read = read
        self._downloads = downloads
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read and send the file."""
        async with self._downloads.place():
            content = await self._read()
            try:
                async with asyncio.timeout(self._seconds):
                    await self._send(content, send)
            except TimeoutError:  # the server cuts the connection, as the answer is incomplete
                _logger.info("a download was cut off after %g seconds", self._seconds)

    async def _send(self, content: bytes, send: Send) -> None:
        self.headers["content-length"] = str(len(content))
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for piece in pieces(content):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

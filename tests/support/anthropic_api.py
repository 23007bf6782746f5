"""Anthropic's API by its own name: an HTTPS proxy on loopback, behind which that name is the scripted model."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.certificates import Authority

HOST = "api.anthropic.com"


@dataclass
class AnthropicApi:
    """The proxy's URL, the file of the authority that clients must trust, and the hosts that were asked for."""

    url: str
    authority: Path
    client_certificate: tuple[Path, Path]
    hosts: list[str] = field(default_factory=list[str])

    def environment(self) -> dict[str, str]:
        """Return the variables of a client that reaches the API through the proxy, at the API's own address."""
        return {"HTTPS_PROXY": self.url, "NODE_EXTRA_CA_CERTS": str(self.authority), "ANTHROPIC_BASE_URL": ""}


@contextmanager
def anthropic_api(directory: Path, model_url: str, *, mutual: bool = False) -> Generator[AnthropicApi]:
    """Serve the scripted model at ``model_url`` as Anthropic's API; ``mutual``: clients must show a certificate."""
    authority = Authority(directory, HOST)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    if mutual:
        context.load_verify_locations(authority.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
    loop = asyncio.new_event_loop()
    model = urlsplit(model_url)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            host = request.split()[1]
            this.hosts.append(host)
            if host != f"{HOST}:443":
                writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                return
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await writer.start_tls(context)
            answers, requests = await asyncio.open_connection(model.hostname, model.port)
            with closing(requests):
                await asyncio.gather(_copy(reader, requests), _copy(answers, writer))

    server = loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", 0))
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    this = AnthropicApi(url, authority.certificate, authority.issue("client"))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield this
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(timeout=30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=30)
        loop.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.wait(others) if others else None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()

"""A server whose functions are tools of agents: it checks signatures, and answers as a test says."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "whsec_" + base64.b64encode(b"a secret of tests, 24 bytes").decode()

Answer = tuple[int, bytes]
Received = tuple[dict[str, str], dict[str, Any]]


@dataclass
class ToolServer:
    """The server's address, and the calls that it got: the headers and the body of each."""

    url: str
    answer: Callable[[dict[str, Any]], Answer]
    calls: list[tuple[dict[str, str], dict[str, Any]]] = field(
        default_factory=list[tuple[dict[str, str], dict[str, Any]]]
    )


def is_signed(headers: dict[str, str], body: bytes) -> bool:
    """Check a signature as the specification of Standard Webhooks says."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return headers["webhook-signature"] == f"v1,{expected}"


@contextmanager
def tool_server(answer: Callable[[dict[str, Any]], Answer]) -> Generator[ToolServer]:
    """Serve tools; ``answer`` returns the status and the body for a call's JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers["content-length"]))
            call = json.loads(body)
            this.calls.append((headers, call))
            status, content = this.answer(call) if is_signed(headers, body) else (401, b'{"error": "not signed"}')
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        this = ToolServer(f"http://127.0.0.1:{server.server_address[1]}/tools", answer)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield this
        finally:
            server.shutdown()
            thread.join()

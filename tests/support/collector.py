"""A receiver of OTLP over HTTP that records every request."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from .runs import SpanView, spans_in

_READ = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@dataclass(frozen=True)
class Request:
    """One request; names of headers in lower case, the body as it was before compression."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Collector:
    """Serves on loopback while entered; ``status`` is what it answers."""

    status: int = 200
    requests: list[Request] = field(default_factory=list[Request])

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def spans(self) -> list[SpanView]:
        """The spans of all requests, in the order they came."""
        return [span for each in self.requests if each.path.endswith("/v1/traces") for span in spans_in(each.body)]

    def named(self, name: str) -> list[SpanView]:
        return [span for span in self.spans if span.name == name]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                read = _READ.get(headers.get("content-encoding", ""), bytes)
                collector.requests.append(Request(self.path, headers, read(body)))
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            do_PUT = do_POST  # noqa: N815 - the base's name; a push to a Pushgateway

        return Handler

"""A real OTLP receiver over HTTP or gRPC that fails as a test wants."""

from __future__ import annotations

import gzip
import socket
import ssl
import struct
import threading
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import grpc  # pyright: ignore[reportMissingTypeStubs]
from anyio.abc import SocketAttribute, SocketStream
from anyio.from_thread import start_blocking_portal
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from agent_runner.contract import otlp, readable
from agent_runner.contract.spans import Span
from host_client.telemetry.batch import Batch
from tests.support.runs import SpanView, spans_in

WAIT_SECONDS = 60.0

METRICS_PATH = "/v1/metrics"
_SERVICES = {"grpc": "trace.v1.TraceService", METRICS_PATH: "metrics.v1.MetricsService"}
"""The gRPC service for each path; a received gRPC request is recorded with that path."""

_RESOURCE = readable.resource("tests")


@dataclass(frozen=True)
class Request:
    """One received request."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    port: int = 0
    """The client's port, by which an HTTP connection is identified."""

    @property
    def spans(self) -> list[SpanView]:
        return [] if self.path == METRICS_PATH else list(spans_in(self.body))

    @property
    def metrics(self) -> set[str]:
        """Return the names of the metrics in the request."""
        request = ExportMetricsServiceRequest.FromString(self.body)
        of_scopes = [of_scope for of_resource in request.resource_metrics for of_scope in of_resource.scope_metrics]
        return {metric.name for of_scope in of_scopes for metric in of_scope.metrics}

    @property
    def ids(self) -> set[tuple[str, str]]:
        return ids_of(self.body)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; the spans count as received if its status is a success."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""


@dataclass(frozen=True)
class Hang:
    """An answer that does not come before the receiver stops."""


@dataclass(frozen=True)
class Reset:
    """A reset of the connection in the middle of the answer."""


@dataclass(frozen=True)
class Failure:
    """The failure of a gRPC call."""

    code: str
    details: str = ""
    metadata: tuple[tuple[str, str | bytes], ...] = ()


Behaviour = Callable[[Request], Answer | Hang | Reset | Failure]


def partial_success(rejected: int, why: str) -> Answer:
    partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message=why)
    body = ExportTraceServiceResponse(partial_success=partial).SerializeToString()
    return Answer(headers={"content-type": "application/x-protobuf"}, body=body)


class Receiver:
    """The received requests; ``script`` has the next answers, and ``behave`` makes all further ones."""

    def __init__(self) -> None:
        self.script: deque[Answer | Hang | Reset | Failure] = deque()
        self.behave: Behaviour = lambda _: Answer()
        self.requests: list[Request] = []
        self.url = ""
        self._received: list[tuple[str, str]] = []
        self._connections: dict[Any, Any] = {}
        """The clients' addresses by connection."""
        self._changed = threading.Condition()
        self.stopping = threading.Event()

    def answer(self, request: Request) -> Answer | Hang | Reset | Failure:
        with self._changed:
            self.requests.append(request)
            answer = self.script.popleft() if self.script else self.behave(request)
            if isinstance(answer, Answer) and 200 <= answer.status < 300:
                self._received.extend((span.trace_id, span.span_id) for span in request.spans)
            self._changed.notify_all()
        return answer

    def opened(self, connection: Any, client: Any) -> None:
        with self._changed:
            self._connections[connection] = client
            self._changed.notify_all()

    def closed(self, connection: Any) -> None:
        with self._changed:
            del self._connections[connection]
            self._changed.notify_all()

    def settle(self) -> None:
        """Wait until all that clients which have ended had sent over HTTP is read; others must not stay connected."""
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), WAIT_SECONDS) as last:
            own = last.getsockname()
            # Connections are accepted in order.
            self.wait_for(lambda: own in self._connections.values())
        self.wait_for(lambda: not self._connections)

    @property
    def received(self) -> set[tuple[str, str]]:
        """Return the trace and span ids of all received spans."""
        with self._changed:
            return set(self._received)

    @property
    def times(self) -> int:
        """Return the number of received spans, repeated ones included."""
        with self._changed:
            return len(self._received)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_SECONDS), "it never came"


@dataclass(frozen=True)
class Tls:
    """PEM files of a receiver: its certificate and key, and the authority of the clients that it accepts."""

    certificate: Path
    key: Path
    authority: Path


def _handler_of(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    """Return a class of handlers that answer as the receiver says."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # it would hold back each body for 40 ms, as it is written after the head

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            encoding = self.headers.get("content-encoding", "")
            body = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(encoding, bytes)(body)
            headers = {name.lower(): value for name, value in self.headers.items()}
            match receiver.answer(Request(self.path, headers, body, self.client_address[1])):
                case Answer(status, answered, text):
                    self.send_response(status)
                    for name, value in {"content-length": str(len(text)), **answered}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(text)
                case Reset():
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf of")
                    self.wfile.flush()
                    # SO_LINGER with 0 seconds closes with a reset in place of a FIN.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                case _:
                    receiver.stopping.wait(WAIT_SECONDS)
                    self.close_connection = True

        def handle(self) -> None:
            with suppress(OSError, ValueError):  # the client or this handler has closed the connection
                super().handle()

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the parent's name for it
            """Log nothing."""

    return Handler


def _server_of(receiver: Receiver, port: int) -> ThreadingHTTPServer:
    """Return a server that tells the receiver of its connections."""

    class Server(ThreadingHTTPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            receiver.opened(request, client_address)
            super().process_request(request, client_address)

        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request)
            receiver.closed(request)

    return Server(("127.0.0.1", port), _handler_of(receiver))


@contextmanager
def http_receiver(port: int = 0, tls: Tls | None = None) -> Generator[Receiver]:
    """Run an OTLP/HTTP receiver on loopback."""
    receiver = Receiver()
    server = _server_of(receiver, port)
    server.daemon_threads = True
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls.authority))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(tls.certificate, tls.key)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    receiver.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=WAIT_SECONDS)


@contextmanager
def grpc_receiver(tls: Tls | None = None) -> Generator[Receiver]:
    """Run an OTLP/gRPC receiver on loopback."""
    receiver = Receiver()

    def export(path: str, body: bytes, context: Any) -> bytes:
        headers = {str(pair[0]): str(pair[1]) for pair in context.invocation_metadata()}
        match receiver.answer(Request(path, headers, body)):
            case Answer(body=answered):
                return answered
            case Failure(name, details, metadata):
                context.set_trailing_metadata(metadata)
                context.abort(grpc.StatusCode[name], details)
            case _:
                receiver.stopping.wait(WAIT_SECONDS)
        return b""

    library: Any = grpc
    server = library.server(ThreadPoolExecutor(4))
    for path, service in _SERVICES.items():
        handlers = {"Export": library.unary_unary_rpc_method_handler(partial(export, path))}
        name = f"opentelemetry.proto.collector.{service}"
        server.add_generic_rpc_handlers((library.method_handlers_generic_handler(name, handlers),))
    if tls is None:
        receiver.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    else:
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
        credentials = library.ssl_server_credentials([pair], tls.authority.read_bytes(), True)
        receiver.url = f"https://127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
    server.start()
    try:
        yield receiver
    finally:
        receiver.stopping.set()
        server.stop(0).wait(WAIT_SECONDS)


@contextmanager
def nobody() -> Generator[int]:
    """Yield the number of a bound port on which no process listens."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def far_away(port: int, seconds: float) -> Generator[int]:
    """Yield a port that leads to another one on loopback; what the client first sends arrives after some seconds."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(_forwarding(port, seconds)) as listening:
        yield listening


@asynccontextmanager
async def _forwarding(port: int, seconds: float) -> AsyncGenerator[int]:
    async def copy(source: SocketStream, target: SocketStream) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            async for data in source:
                await target.send(data)

    async def forward(client: SocketStream) -> None:
        await anyio.sleep(seconds)
        async with client, await anyio.connect_tcp("127.0.0.1", port) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(copy, server, client)
            await copy(client, server)
            tasks.cancel_scope.cancel()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, forward)
        yield listener.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


def spans(count: int, trace: int = 1, *, name: str = "execute_tool Bash", first: int = 1) -> list[Span]:
    """Return ended spans of one trace with consecutive span ids."""
    made: list[Span] = []
    for number in range(first, first + count):
        span = Span(name, f"{trace:032x}", f"{number:016x}", None, 1_000_000_000)
        span.attributes = {"user.id": "ann", "gen_ai.operation.name": "execute_tool", "number": number}
        span.end = 2_000_000_000
        made.append(span)
    return made


def batch(count: int, trace: int = 1, *, name: str = "execute_tool Bash", first: int = 1) -> Batch:
    """Return `spans` as an encoded batch."""
    return Batch(otlp.encode(spans(count, trace, name=name, first=first), _RESOURCE), count)


def ids_of(*bodies: bytes) -> set[tuple[str, str]]:
    return set(_ids(bodies))


def _ids(bodies: tuple[bytes, ...]) -> Iterator[tuple[str, str]]:
    for body in bodies:
        for span in spans_in(body):
            yield span.trace_id, span.span_id

"""The real service as a process, with requests, event streams, kills and restarts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.support.runs import MODEL, WAIT_SECONDS, clean_environment

_SERVING = re.compile(r"serving (http://\S+)")


@dataclass(frozen=True)
class Sent:
    """One event as a reader got it; ``id`` is None for a live one."""

    id: int | None
    event: dict[str, Any]

    @property
    def type(self) -> str:
        return self.event["type"]

    @property
    def data(self) -> dict[str, Any]:
        return self.event["data"]


class Served:
    """A running ``host_client serve``."""

    def __init__(self, process: subprocess.Popen[str], url: str, said: list[str]) -> None:
        self.process = process
        self.url = url
        self.said = said
        """Lines that it wrote to stderr."""
        self.listening = threading.Thread()

    def client(self, token: str | None = None, **options: Any) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=WAIT_SECONDS, trust_env=False, **options)

    def kill(self) -> None:
        """Kill it, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_SECONDS)

    def pause(self) -> None:
        """Stop its process, as on a machine that swaps or sleeps."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End the pause."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Stop it as an operator would; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_SECONDS)


@dataclass
class ServiceLab:
    """A home, a store and variables for services, which end with it."""

    root: Path
    environ: Mapping[str, str]
    started: list[Served] = field(default_factory=list[Served])

    @property
    def store(self) -> str:
        return str(self.root / "service.sqlite")

    def start(
        self, *args: str, env: Mapping[str, str] | None = None, program: Sequence[str] = ("host_client",)
    ) -> Served:
        """Start a service on a free port and wait until it serves; ``program`` is a module and its first arguments."""
        command = [sys.executable, "-m", *program, "serve", "--port", "0", "--store", self.store, *args]
        process = subprocess.Popen(
            command,
            env={**self.environ, **(env or {})},
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        said: list[str] = []
        served = Served(process, "", said)
        self.started.append(served)
        url, listening = [""], threading.Event()

        def listen() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                said.append(line)
                if found := _SERVING.search(line):
                    url[0] = found[1]
                    listening.set()
            listening.set()

        served.listening = threading.Thread(target=listen, daemon=True)
        served.listening.start()
        assert listening.wait(WAIT_SECONDS) and url[0], f"it does not serve: {''.join(said)[-3000:]}"
        served.url = url[0].rstrip("/")
        return served


@contextmanager
def service_lab(root: Path, environ: Mapping[str, str]) -> Generator[ServiceLab]:
    """Make a lab for services; ``environ`` is added to the clean environment of each."""
    home = root / "service-home"
    home.mkdir()
    this = ServiceLab(root, {**clean_environment(home), "TMPDIR": os.environ.get("TMPDIR", "/tmp"), **environ})
    try:
        yield this
    finally:
        for served in this.started:
            if served.process.poll() is None:
                served.process.terminate()
                served.go_on()
        for served in this.started:
            try:
                served.process.wait(WAIT_SECONDS)
            finally:
                served.process.kill()
                served.process.wait(WAIT_SECONDS)
                assert served.process.stderr is not None
                served.listening.join(WAIT_SECONDS)
                served.process.stderr.close()


async def created(client: httpx.AsyncClient, prompt: str = "go", **more: Any) -> dict[str, Any]:
    """Make a session; return it."""
    answer = await client.post("/api/sessions", json={"prompt": prompt, "model": MODEL, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


@asynccontextmanager
async def stream(
    client: httpx.AsyncClient, session_id: str, after: int | None = None
) -> AsyncGenerator[AsyncIterator[Sent]]:
    """Read a session's events as they come; a number comes as a browser sends it."""
    headers = {"last-event-id": str(after)} if after is not None else {}
    async with client.stream("GET", f"/api/sessions/{session_id}/events", headers=headers) as answer:
        assert answer.status_code == 200, (await answer.aread()).decode()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield _sent(answer)


async def _sent(answer: httpx.Response) -> AsyncIterator[Sent]:
    number: int | None = None
    buffered = b""
    async for chunk in answer.aiter_raw():
        *lines, buffered = (buffered + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"id: "):
                number = int(line[4:])
            elif line.startswith(b"data: "):
                yield Sent(number, json.loads(line[6:]))
            elif not line:
                number = None


async def until(
    events: AsyncIterator[Sent], kind: str, when: Callable[[Sent], bool] = lambda _: True
) -> tuple[Sent, list[Sent]]:
    """Read up to an event of a type; return it, and all with it."""
    seen: list[Sent] = []
    async with asyncio.timeout(WAIT_SECONDS):
        async for sent in events:
            seen.append(sent)
            if sent.type == kind and when(sent):
                return sent, seen
    raise AssertionError(f"the stream ended without {kind}: {[each.type for each in seen]}")


async def rest(events: AsyncIterator[Sent]) -> list[Sent]:
    """Read to the end of the stream."""
    async with asyncio.timeout(WAIT_SECONDS):
        return [sent async for sent in events]


def numbers(events: list[Sent]) -> list[int]:
    """Return the numbers of the events that have one."""
    return [sent.id for sent in events if sent.id is not None]


async def allow(client: httpx.AsyncClient, session_id: str, request: Sent, **more: Any) -> httpx.Response:
    """Allow a call as it was shown."""
    body = {"decision": "allow", "input_sha256": request.data["input_sha256"], **more}
    return await client.post(f"/api/sessions/{session_id}/approvals/{request.data['approval_id']}", json=body)


async def spans_of(client: httpx.AsyncClient, session_id: str) -> list[dict[str, Any]]:
    """Return a session's spans as its trace has them, each once."""
    trace = (await client.get(f"/api/sessions/{session_id}/trace")).json()
    spans = [
        span
        for resource in trace.get("resourceSpans", [])
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    assert max(Counter(span["spanId"] for span in spans).values()) == 1
    return spans


def whole(spans: list[dict[str, Any]]) -> list[str]:
    """Return the names of the spans of one whole trace: one root, and no span without its parent."""
    known = {span["spanId"] for span in spans}
    without_parent = [span["name"] for span in spans if span.get("parentSpanId") not in known]
    assert without_parent == ["agent.session"], (without_parent, sorted(span["name"] for span in spans))
    assert len({span["traceId"] for span in spans}) == 1
    return sorted(span["name"] for span in spans)

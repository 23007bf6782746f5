"""A service that is killed at random moments, or replaced by another replica, sends each span once to each destination.

A request is sent again only if its answer was lost after the receiver had accepted it: because the receiver broke the
connection, or because the service was killed before it had removed the request from its spool.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import new_e2b_service
from tests.server.test_replicas import new_replicas
from tests.support.e2b import Answer as Refusal
from tests.support.runs import MODEL, WAIT_SECONDS
from tests.support.service import ServiceLab, created, rest, spans_of, stream, until
from tests.telemetry.receiver import METRICS_PATH, Answer, Receiver, Request, Reset, http_receiver, ids_of

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]

KILLS, KILLS_OF_REPLICAS = 100, 10
LEASE_SECONDS = 8
"""More than a loaded machine keeps a living replica from renewing a lease: two owners may send a span twice."""

SEED = 12

SCRIPT = """
conversations:
  main:
    replies:
      - tools: [{name: Bash, input: {command: touch one}}]
      - tools: [{name: Bash, input: {command: touch two}}]
      - tools: [{name: Bash, input: {command: touch three}}]
      - {text: Done.}
"""

ACCEPTED = Answer(headers={"connection": "close"})
"""An answer after which no connection stays open, so that `Receiver.settle` ends."""

Id = tuple[str, str]
"""The trace id and the span id of a span."""


@dataclass
class Books:
    """Record of the requests that one receiver accepted, and of how often a span may have been sent again."""

    name: str
    receiver: Receiver
    chance: random.Random
    is_flaky: bool = False
    accepted: Counter[Id] = field(default_factory=Counter[Id])
    answered: set[Id] = field(default_factory=set[Id])
    """Spans that were accepted with a whole answer since the last kill."""
    cut: Counter[Id] = field(default_factory=Counter[Id])
    """How often a span was accepted and its answer was cut."""
    unrecorded: Counter[Id] = field(default_factory=Counter[Id])
    """How often a span was accepted and its service was killed before it had recorded the answer."""
    requests: int = 0
    failures: int = 0

    def answer(self, request: Request) -> Answer | Reset:
        """Accept a request, refuse it for now, or accept it and break the connection in the middle of the answer."""
        if request.path == METRICS_PATH:
            return ACCEPTED
        self.requests += 1
        if self.is_flaky and self.chance.random() < 0.2:
            self.failures += 1
            return Answer(503, ACCEPTED.headers)
        self.accepted.update(request.ids)
        if self.is_flaky and self.chance.random() < 0.2:
            self.cut.update(request.ids)
            return Reset()
        self.answered |= request.ids
        return ACCEPTED

    def close(self, waiting: set[Id]) -> None:
        """Close the books of a service that was killed, in whose spool these spans wait."""
        self.unrecorded.update(self.answered & waiting)
        self.answered.clear()

    @property
    def doubled(self) -> set[Id]:
        return {span for span, times in self.accepted.items() if times > 1}

    @property
    def unexplained(self) -> set[Id]:
        return {s for s, times in self.accepted.items() if times > 1 + self.cut[s] + self.unrecorded[s]}

    def __str__(self) -> str:
        again = sum(self.accepted.values()) - len(self.accepted)
        return (
            f"{self.name}: {len(self.accepted)} spans in {self.requests} requests, {self.failures} of them refused; "
            f"{len(self.doubled)} spans came more than once, {again} times in all; answers cut for {self.cut.total()} "
            f"spans, not recorded for {self.unrecorded.total()}; without an explanation: {len(self.unexplained)}"
        )


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Lock a directory as a process does that takes files over; wait for a process that has locked it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_of_dead(path: Path) -> bool:
    """Return whether no process has a spool's file."""
    try:
        with path.with_suffix(".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):  # a living process has just deleted its file
        return False
    return True


def waiting_in(directory: Path) -> dict[str, set[Id]]:
    """Return the spans that are due in files of a spool whose processes are dead, by the destination's name."""
    due: dict[str, set[Id]] = {"otlp": set(), "signoz": set()}
    with tempfile.TemporaryDirectory() as copies:
        for path in filter(is_of_dead, directory.glob("*.db")):
            read_copy(path, Path(copies), due)
    return due


def read_copy(path: Path, copies: Path, due: dict[str, set[Id]]) -> None:
    """Add the spans that are due in one file; reading the file itself would change it."""
    for name in (path, Path(f"{path}-wal")):
        with suppress(FileNotFoundError):
            shutil.copy(name, copies / name.name)
    with closing(sqlite3.connect(copies / path.name)) as db, suppress(sqlite3.OperationalError):  # no tables yet
        for key, body in db.execute("SELECT destination, body FROM due JOIN request ON id = request"):
            due[key.partition("#")[0]] |= ids_of(body)


STARTER = """
import json, os, sys
import host_client.cli.app, host_client.sandbox.e2b, host_client.service.run, host_client.store._sqlite
import host_client.store._redis
import host_client.telemetry.export.destinations.otlp, host_client.telemetry.metrics.observer
import host_client.telemetry.metrics._otlp, httpcore, opentelemetry.sdk.metrics.export, uvicorn.protocols.http.h11_impl
from host_client.__main__ import main
from host_client.telemetry.export.delivery import Delivery

Delivery.__init__.__kwdefaults__["linger"] = 0.1  # in place of 5 seconds, as the services live for one

while line := os.read(0, 65536):
    pid = os.fork()
    if not pid:
        sys.argv = ["host_client", *json.loads(line)]
        main()
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""
"""A process that starts services, one after the other, without the second that their imports take."""


class Starter:
    """Starts ``host_client serve`` by forking a process that has imported it."""

    def __init__(self, lab: ServiceLab, env: dict[str, str], store: str) -> None:
        self._store = store
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            self._port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._pid: int | None = None
        self._log = lab.root / f"services-{self._port}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", STARTER],
                env={**lab.environ, **env},
                cwd=Path(__file__).resolve().parents[2],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def start(self) -> None:
        """Start a service."""
        assert self._process.stdin is not None
        arguments = ["serve", "--port", str(self._port), "--store", self._store, "--sandbox", "e2b"]
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        self._pid = int(self._line())

    def end(self, how: signal.Signals) -> None:
        """Send the service a signal, and wait until it has ended."""
        assert self._pid is not None
        os.kill(self._pid, how)
        assert self._line() == "ended\n"
        self._pid = None

    def close(self) -> None:
        """Kill the service and its starter if they still run."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
        self._process.kill()
        self._process.communicate(timeout=WAIT_SECONDS)
        print(self._log.read_text()[-100_000:])

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


async def work(chance: random.Random, books: tuple[Books, Books]) -> None:
    """Wait until services have sent a few more requests with spans, or, now and then, for about a second.

    A count of requests ends the wait at the same point of the services' work on a fast machine and on a slow one.
    """
    if chance.random() < 0.2:
        await asyncio.sleep(chance.uniform(0.1, 1.3))
        return
    steady = books[0]
    enough = steady.requests + chance.randint(1, 2)
    await asyncio.to_thread(steady.receiver.wait_for, lambda: steady.requests >= enough)
    await asyncio.sleep(chance.uniform(0, 0.2))


async def kill(service: Starter, books: tuple[Books, Books], spool: Path) -> bool:
    """Kill a service and close its books, before another process may take its file over; return if spans waited."""
    with locked(spool):
        await asyncio.to_thread(service.end, signal.SIGKILL)
        for each in books:
            await asyncio.to_thread(each.receiver.settle)
        due = waiting_in(spool)
    for each in books:
        each.close(due[each.name])
    return any(due.values())


@dataclass
class Customers:
    """Customers that make a session, wait for its result, close it, and begin anew; ``url`` returns a service's."""

    client: httpx.AsyncClient
    url: Callable[[], str]
    are_done: bool = False

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        """Send a request until a service answers it."""
        while True:
            with suppress(httpx.TransportError):
                answer = await self.client.request(method, self.url() + path, **more)
                if answer.status_code < 500:
                    assert answer.status_code < 300, answer.text
                    return answer.json()
            await asyncio.sleep(0.02)

    async def make_sessions(self) -> None:
        while not self.are_done:
            body = {"prompt": "go", "model": MODEL, "allowed_tools": ["Bash"]}
            session = await self.ask("POST", "/api/sessions", json=body)
            await self.until(session["id"], lambda view: view["turns"] == 1)
            await self.end(session["id"])

    async def end(self, session_id: str) -> None:
        await self.ask("DELETE", f"/api/sessions/{session_id}")
        await self.until(session_id, lambda view: view["closed_at"] is not None)

    async def until(self, session_id: str, when: Callable[[Any], bool]) -> None:
        while not when(view := await self.ask("GET", f"/api/sessions/{session_id}")):
            assert view["closed_at"] is None, view
            await asyncio.sleep(0.05)

    async def leave(self) -> tuple[int, int, dict[Id, str]]:
        """End all sessions, also those whose customer never got the answer.

        Return their number, the number of takeovers, and the names of their spans.
        """
        page = await self.ask("GET", "/api/sessions?limit=100")
        assert page["next"] is None
        sessions = [each["id"] for each in page["sessions"]]
        for session_id in sessions:
            await self.end(session_id)
        traces = [await self.ask("GET", f"/api/sessions/{session_id}/trace") for session_id in sessions]
        logs = [await self.ask("GET", f"/api/sessions/{session_id}/log") for session_id in sessions]
        takeovers = sum(each["event"]["type"] == "adopted" for log in logs for each in log["events"])
        resources = [resource for trace in traces for resource in trace["resourceSpans"]]
        spans = [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]
        return len(sessions), takeovers, {(span["traceId"], span["spanId"]): span["name"] for span in spans}


async def finish(
    customers: Customers, working: list[asyncio.Task[None]], books: tuple[Books, Books], waited: list[bool]
) -> None:
    """End all sessions; check that their spans arrive at both receivers, each as often as can be explained.

    ``waited`` says for each kill whether spans were in the spool; this was so for some, and there were takeovers.
    """
    for each in books:
        each.is_flaky = False  # pauses before further attempts would add up to minutes
    customers.are_done = True
    await asyncio.gather(*working)
    sessions, takeovers, spans = await customers.leave()
    for each in books:
        try:
            await asyncio.to_thread(each.receiver.wait_for, lambda each=each: spans.keys() <= each.accepted.keys())
        except AssertionError:
            lost = {span: name for span, name in spans.items() if span not in each.accepted}
            raise AssertionError(f"{each.name}: these spans did not arrive: {lost}") from None
    kills = f"{len(waited)} kills, {sum(waited)} of them with spans in the spool, {takeovers} takeovers of sessions"
    figures = "\n".join([kills, f"{sessions} sessions with {len(spans)} spans", *map(str, books)])
    print(figures)
    for each in books:
        unexplained = {span: spans.get(span, "not in a log") for span in each.unexplained}
        assert unexplained == {}, figures
    assert sum(waited) >= len(waited) / 10, figures
    assert takeovers >= len(waited) / 5, figures


@contextmanager
def two_receivers() -> Generator[tuple[Books, Books]]:
    """Run two receivers, of which the second one fails now and then."""
    with http_receiver() as steady, http_receiver() as flaky:
        books = (
            Books("otlp", steady, random.Random(SEED)),
            Books("signoz", flaky, random.Random(SEED), is_flaky=True),
        )
        for each in books:
            each.receiver.behave = each.answer
        yield books


def telemetry_to(books: tuple[Books, Books], spool: Path) -> dict[str, str]:
    """Return the variables that let a service send its spans to both receivers."""
    return {
        "OTEL_EXPORTERS": "otlp,signoz",
        "OTEL_EXPORTER_OTLP_ENDPOINT": books[0].receiver.url,
        "SIGNOZ_OTLP_ENDPOINT": books[1].receiver.url,
        "SANDSPAN_SPOOL_DIRECTORY": str(spool),
    }


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def test_a_service_killed_a_hundred_times_sends_each_span_once_to_each_destination(
    stack: ExitStack, tmp_path: Path
) -> None:
    chance, spool = random.Random(SEED), tmp_path / "spool"
    spool.mkdir(mode=0o700)
    books = stack.enter_context(two_receivers())
    lab, e2b = new_e2b_service(stack, SCRIPT)
    services = stack.enter_context(closing(Starter(lab, telemetry_to(books, spool), lab.store)))
    async with httpx.AsyncClient(timeout=WAIT_SECONDS, trust_env=False) as client:
        customers = Customers(client, lambda: services.url)
        working = [asyncio.create_task(customers.make_sessions()) for _ in range(5)]
        waited: list[bool] = []
        for _ in range(KILLS):
            await asyncio.to_thread(services.start)
            await work(chance, books)
            waited.append(await kill(services, books, spool))
        await asyncio.to_thread(services.start)
        await finish(customers, working, books, waited)
    await asyncio.to_thread(services.end, signal.SIGTERM)
    assert {each.state for each in e2b.e2b.sandboxes} == {"gone"}


@pytest.mark.parametrize(
    ("name", "moment"), [("sandbox.create", "log"), ("sandbox.cleanup", "log"), ("agent.execute", "sandbox")]
)
async def test_a_span_that_was_not_in_the_spool_when_its_service_was_killed_is_sent_if_the_log_has_it(
    stack: ExitStack, tmp_path: Path, name: str, moment: str
) -> None:
    receiver = stack.enter_context(http_receiver())
    lab, e2b = new_e2b_service(stack, SCRIPT)
    env = {
        "OTEL_EXPORTERS": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "SANDSPAN_SPOOL_DIRECTORY": str(tmp_path / "spool"),
    }
    if name == "sandbox.create":  # a start that fails ends in the first service, and begins anew in the second
        e2b.e2b.fail("POST /v2/sandboxes", Refusal(400), times=1)
    first = lab.start("--sandbox", "e2b", env=env, program=("tests.support.dying_service", name, moment))
    async with first.client() as client:
        session = await created(client, allowed_tools=["Bash"])
        if name != "sandbox.create":
            async with stream(client, session["id"]) as events:
                await until(events, "result")
            await client.delete(f"/api/sessions/{session['id']}")
        assert await asyncio.to_thread(first.process.wait, WAIT_SECONDS) == -signal.SIGKILL
    second = lab.start("--sandbox", "e2b", env=env)
    async with second.client() as client:
        async with stream(client, session["id"]) as events:
            if name == "sandbox.create":
                await until(events, "result")
                await client.delete(f"/api/sessions/{session['id']}")
            await rest(events)
        spans = {(span["traceId"], span["spanId"]): span["name"] for span in await spans_of(client, session["id"])}
    assert await asyncio.to_thread(second.stop) == 0
    assert {span: each for span, each in spans.items() if span not in receiver.received} == {}
    assert receiver.times == len(receiver.received)


async def test_replicas_that_are_killed_send_each_span_once_to_each_destination(
    stack: ExitStack, tmp_path: Path
) -> None:
    chance, spool = random.Random(SEED), tmp_path / "spool"
    spool.mkdir(mode=0o700)
    books = stack.enter_context(two_receivers())
    replicas = new_replicas(stack, tmp_path, SCRIPT)
    env, store = telemetry_to(books, spool), f"{replicas.redis.url}?lease={LEASE_SECONDS}"
    living = [stack.enter_context(closing(Starter(replicas.lab, env, store))) for _ in range(2)]
    for each in living:
        await asyncio.to_thread(each.start)
    async with httpx.AsyncClient(timeout=WAIT_SECONDS, trust_env=False) as client:
        customers = Customers(client, lambda: chance.choice(living).url)
        working = [asyncio.create_task(customers.make_sessions()) for _ in range(3)]
        waited: list[bool] = []
        for _ in range(KILLS_OF_REPLICAS):
            await work(chance, books)
            killed = chance.choice(living)
            waited.append(await kill(killed, books, spool))
            await asyncio.to_thread(killed.start)
        await finish(customers, working, books, waited)
    for each in living:
        await asyncio.to_thread(each.end, signal.SIGTERM)
    assert set(replicas.sandboxes) == {"gone"}

"""Runs of the real runner, with the real SDK and CLI, against the scripted model."""

from __future__ import annotations

import base64
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agent_runner.contract import protocol
from agent_runner.contract.protocol import AnyCommand, AnyEvent, UnknownEvent, decode_event, encode
from host_client.scripted_model import ScriptedModel, parse_script

from .conventions import violations

WAIT_SECONDS = 60.0

MODEL = "claude-sonnet-4-5"
CHAT = f"chat {MODEL}"
"""The name of every model request's span in a lab."""

SUBAGENT = "invoke_agent general-purpose"
"""The name of the span of a subagent of the usual type."""

LAB_SERVER = ("--mcp-servers", "lab=tests.runner.mcp_servers:lab")
"""Options that give a run the in-process tools of ``tests/runner/mcp_servers.py``."""

OK, ERROR = 0, 2
"""`SpanView.status`: unset (nothing went wrong) and error."""

E = TypeVar("E")


def clean_environment(home: Path, model_url: str | None = None, **more: str) -> dict[str, str]:
    """Return the environment of a runner's process, which has only PATH from this machine."""
    env = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "ANTHROPIC_API_KEY": "sk-ant-not-a-key",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "NO_PROXY": "127.0.0.1",
    }
    if model_url is not None:
        env["ANTHROPIC_BASE_URL"] = model_url
    return {**env, **more}


@dataclass(frozen=True)
class SpanView:
    """One exported span, as a backend sees it."""

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str
    start: int
    end: int
    kind: int
    status: int
    message: str
    tracestate: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]

    @property
    def ms(self) -> float:
        return (self.end - self.start) / 1e6


def spans_in(payload: bytes) -> Iterator[SpanView]:
    """Read the spans of an OTLP request."""
    request = ExportTraceServiceRequest.FromString(payload)
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield SpanView(
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.kind,
                    span.status.code,
                    span.status.message,
                    span.trace_state,
                    {pair.key: _value(pair.value) for pair in span.attributes},
                    [(e.name, {p.key: _value(p.value) for p in e.attributes}) for e in span.events],
                )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


def read_events(stream: bytes) -> list[AnyEvent]:
    """Read whole lines of events, all of a known type."""
    events = [decode_event(line) for line in stream.split(b"\n") if line]
    assert all(not isinstance(event, UnknownEvent) for event in events)
    return cast("list[AnyEvent]", events)


def seqs(events: Sequence[AnyEvent]) -> list[int]:
    """Return the numbers of the events that have one."""
    return [event.seq for event in events if event.seq is not None]


def tree(spans: Sequence[SpanView]) -> list[Any]:
    """Return `any_tree` of spans, which must follow the GenAI conventions."""
    faults = violations(spans)
    assert not faults, faults
    return any_tree(spans)


def any_tree(spans: Sequence[SpanView]) -> list[Any]:
    """Return the spans as nested ``[label, children…]`` lists, in order of start.

    A label is the span's name and, where it failed, its error type: ``execute_tool Bash !tool_error``. Every span must
    have its parent here or be a root with a parent from outside.
    """
    known = {span.span_id for span in spans}
    assert len(known) == len(spans), "a span was exported twice"

    def node(span: SpanView) -> list[Any]:
        failed = f" !{span.attributes.get('error.type')}" if span.status == 2 else ""
        children = sorted((s for s in spans if s.parent_span_id == span.span_id), key=lambda s: s.start)
        return [span.name + failed, *(node(child) for child in children)]

    roots = sorted((s for s in spans if s.parent_span_id not in known), key=lambda s: s.start)
    return [node(root) for root in roots]


@dataclass
class Finished:
    """The outcome of a run: its events in order, its spans, its exit code."""

    events: list[AnyEvent]
    exit_code: int
    stderr: str
    lines: list[bytes] = field(default_factory=list[bytes])

    @property
    def spans(self) -> list[SpanView]:
        found = [e for e in self.events if isinstance(e, protocol.TelemetryEvent)]
        return [span for event in found for span in spans_in(base64.b64decode(event.data.otlp))]

    @property
    def tree(self) -> list[Any]:
        return tree(self.spans)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def one(self, kind: type[E]) -> E:
        found = self.of(kind)
        assert len(found) == 1, f"{len(found)} events of {kind.__name__}"
        return found[0]

    def span(self, name: str) -> SpanView:
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, f"{len(found)} spans named {name}"
        return found[0]

    @property
    def types(self) -> list[str]:
        """Return the types of the numbered events without telemetry, whose place varies."""
        return [e.type for e in self.events if e.seq is not None and e.type != "telemetry"]


class RunnerProcess:
    """A running runner: send it commands, wait for its events, finish it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.events: list[AnyEvent] = []
        self.lines: list[bytes] = []
        self._arrived: queue.Queue[AnyEvent | None] = queue.Queue()
        self._stderr: list[bytes] = []
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._read_stderr)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            event = decode_event(line)
            assert not isinstance(event, UnknownEvent), line
            self._arrived.put(event)
        self._arrived.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        self._stderr.extend(self.process.stderr)

    @property
    def pid(self) -> int:
        """Return the pid of the runner itself."""
        return runner_below(self.process.pid)

    @property
    def cli(self) -> int:
        """Return the pid of the CLI."""
        (pid,) = children(self.pid)
        return pid

    def until(self, kind: type[E], when: Callable[[E], bool] = lambda _event: True) -> E:
        """Wait for an event of a type, taking all before it."""
        limit = time.monotonic() + WAIT_SECONDS
        while True:
            event = self._arrived.get(timeout=max(0.0, limit - time.monotonic()))
            assert event is not None, f"the run ended without {kind.__name__}: {b''.join(self._stderr)[-2000:]!r}"
            self.events.append(event)
            if isinstance(event, kind) and when(event):
                return event

    def send(self, *commands: AnyCommand) -> None:
        """Write commands to the runner's stdin."""
        self.send_raw(b"".join(encode(command) for command in commands))

    def send_raw(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def until_end_of_output(self) -> None:
        """Wait until no process has stdout open."""
        self._threads[0].join(timeout=WAIT_SECONDS)
        assert not self._threads[0].is_alive()

    def finish(self) -> Finished:
        """Close stdin and wait for the end."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.close_stdin()
        code = self.process.wait(timeout=WAIT_SECONDS)
        for thread in self._threads:
            thread.join(timeout=WAIT_SECONDS)
        while (event := self._arrived.get(timeout=WAIT_SECONDS)) is not None:
            self.events.append(event)
        return Finished(self.events, code, b"".join(self._stderr).decode("utf-8", "replace"), self.lines)


HANG = """python3 -c 'import os, time; open("up", "w").write(str(os.getpid())); time.sleep(600)'"""
"""A command that writes its pid to the lab's fifo ``up`` and then does not end by itself."""


TOUCH = """
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: touch made}}]
          - text: Done.
"""
"""The script of a model that makes a file by one call."""


class Fifo:
    """A named pipe, through which a test waits for another process without polling."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self) -> str:
        """Wait until something was written; return it."""
        assert select.select([self._fd], [], [], WAIT_SECONDS)[0], "nothing was written to the fifo"
        return os.read(self._fd, 4096).decode()

    @property
    def is_closed(self) -> bool:
        """Return whether no process has it open for writing."""
        try:
            return os.read(self._fd, 1) == b""
        except BlockingIOError:
            return False

    def read_all(self) -> str:
        """Wait until something was written and its writer has closed; return all of it."""
        text = self.read()
        while select.select([self._fd], [], [], WAIT_SECONDS)[0] and (more := os.read(self._fd, 65536)):
            text += more.decode()
        return text


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # the thread has ended
            found.extend(map(int, (task / "children").read_text().split()))
    return found


def runner_below(outer: int) -> int:
    """Return the pid of the runner below its two guardians, the first of which is the process that was started."""
    (inner,) = children(outer)
    (runner,) = children(inner)
    return runner


def is_gone(pid: int) -> bool:
    """Return whether no such process exists, not even as a zombie."""
    return not Path(f"/proc/{pid}").exists()


@dataclass
class Lab:
    """A scripted model, a home, a working directory, and runners started in them."""

    model: ScriptedModel
    home: Path
    cwd: Path
    root: Path
    started: list[subprocess.Popen[bytes]] = field(default_factory=list["subprocess.Popen[bytes]"])

    def environment(self, **more: str) -> dict[str, str]:
        return clean_environment(self.home, self.model.url, AGENT_CWD=str(self.cwd), AGENT_MODEL=MODEL, **more)

    def until_requests(self, count: int) -> None:
        """Wait until the model has had this number of requests."""
        assert self.model.wait_for_requests(count, WAIT_SECONDS), f"{len(self.model.requests)} of {count} requests"

    def fifo(self, name: str = "up") -> Fifo:
        """A named pipe in the working directory, through which a tool tells that it runs."""
        return Fifo(self.cwd / name)

    def start(self, *args: str, env: Mapping[str, str] | None = None, command: str = "run") -> RunnerProcess:
        """Start ``agent_runner run`` with options and further variables."""
        pipe = subprocess.PIPE
        return RunnerProcess(self.popen(command, *args, env=env, stdin=pipe, stdout=pipe, stderr=pipe))

    def popen(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        stderr: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start ``agent_runner`` with streams of the test's own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "agent_runner", *args],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**self.environment(), **(env or {})},
            cwd=Path(__file__).resolve().parents[2],
            start_new_session=True,  # as hosts start it
        )
        self.started.append(process)
        return process

    def attach(self, journal: Path, after: int = 0) -> subprocess.CompletedProcess[bytes]:
        """Read a journal to its end with ``agent_runner attach``."""
        process = self.popen(
            *("attach", "--journal", str(journal), "--after", str(after)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stdout, stderr = process.communicate(timeout=WAIT_SECONDS)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def run(self, *args: str, env: Mapping[str, str] | None = None) -> Finished:
        """Run one prompt to its end with stdin closed."""
        runner = self.start(*args, env=env)
        runner.close_stdin()
        return runner.finish()


@contextmanager
def lab(root: Path, script: str) -> Generator[Lab]:
    """Make a lab for a script; at its end its processes are ended, and every model request must have been expected."""
    home, cwd = root / "home", root / "work"
    home.mkdir(parents=True)
    cwd.mkdir()
    with ScriptedModel(parse_script(script)) as model:
        this = Lab(model, home, cwd, root)
        try:
            yield this
        finally:
            for process in this.started:
                if process.poll() is None:
                    process.kill()
                process.wait(timeout=WAIT_SECONDS)
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        with _ignoring_broken_pipe():
                            stream.close()
        assert model.unexpected == []


@contextmanager
def _ignoring_broken_pipe() -> Generator[None]:
    try:
        yield
    except BrokenPipeError:
        os.sched_yield()

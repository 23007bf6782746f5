"""One run in a terminal: progress, events, approvals, Ctrl-C, a summary."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import cast

from rich.console import Console
from rich.text import Text

from agent_runner.protocol import AnyEvent, Result, encode
from agent_runner.trace_context import InvalidTraceParentError, parse_traceparent
from host_client.agent import AgentResult, result_of
from host_client.config import AgentOptions, ApprovalPolicy
from host_client.errors import ConfigurationError, SandspanError, SessionClosedError
from host_client.session import Session, open_session
from host_client.telemetry import Telemetry
from host_client.telemetry.config import telemetry_config
from host_client.telemetry.setup import start

from .person import Person
from .place import Place
from .render import Renderer, summary_line, visible


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that one run in a terminal needs."""

    prompt: str
    options: AgentOptions
    place: Place
    approvals: ApprovalPolicy
    environ: Mapping[str, str]
    upload: Path | None = None
    download: Path | None = None
    json_events: bool = False
    trace_out: Path | None = None
    show_trace: bool = True
    session_id: str | None = None
    """That of a session to go on with."""
    resumable: bool = False


def run_job(job: Job) -> tuple[int, AgentResult | None]:
    """Run it; return the exit code, and the result if the agent got to run."""
    console = Console(stderr=job.json_events, highlight=False)
    if not console.is_terminal:
        console.width = 120  # a log file has no width of its own
    try:
        return asyncio.run(_run(job, console))
    except ConfigurationError as error:
        sys.stderr.write(f"host_client: {error}\n")
        return 2, None
    except OSError as error:  # a full disk below stdout, or nobody reads it any more
        with contextlib.suppress(OSError):
            sys.stderr.write(f"host_client: cannot write: {error.strerror}\n")
        return 1, None
    except SandspanError as error:
        sys.stderr.write(f"host_client: {error.error_type}: {error}\n")
        return 3, None


async def _run(job: Job, console: Console) -> tuple[int, AgentResult | None]:
    _check_writable(job.trace_out)
    with Interrupts(console) as interrupts:
        try:
            result = await _converse(job, console, interrupts)
        except asyncio.CancelledError:  # stopped before there was a session
            return 128 + (interrupts.stopped_by or signal.SIGINT), None
        _finish(job, console, result)
    return _exit_code(result, interrupts.stopped_by), result


def _exit_code(result: AgentResult, stopped_by: int | None) -> int:
    """Return the runner's own exit code where it had its say; a signal counts as a shell counts it."""
    if stopped_by is not None:
        return 128 + stopped_by
    if result.exit_code is None:
        return 3
    if result.exit_code < 0:
        return 128 - result.exit_code
    return result.exit_code or int(result.is_error)


async def _converse(job: Job, console: Console, interrupts: Interrupts) -> AgentResult:
    policy = _effective_policy(job, console)
    for remark in job.place.remarks:
        console.print(Text(remark, style="dim"))
    console.print(Text("starting the sandbox …", style="dim"))
    last: Result | None = None
    session: Session | None = None
    telemetry = _telemetry(job)
    try:
        async with _session(job, policy, console, telemetry) as session:
            interrupts.session = session
            where = session.info.id if session.info else ""
            console.print(Text(f"sandbox {where}, trace {session.trace_id}", style="dim"))
            last = await _follow(job, session, console, asking=policy == "ask")
            if job.download is not None:
                await _download(session, job.download, console)
    except asyncio.CancelledError:
        if session is None:
            raise
    finally:
        await _deliver(telemetry, console)
    if job.resumable:
        console.print(Text(f'go on with: host_client resume {session.id} "what to do next"', style="dim"))
    return result_of(session, last)


async def _download(session: Session, target: Path, console: Console) -> None:
    try:
        await session.download(target)
    except ConfigurationError as error:  # the run is over and its result is worth more than the copy
        console.print(Text(f"nothing was downloaded: {error}", style="bold red"))


def _effective_policy(job: Job, console: Console) -> ApprovalPolicy:
    """A person can be asked only at a terminal."""
    if job.approvals == "ask" and not sys.stdin.isatty():
        console.print("stdin is no terminal, so nobody can be asked: what needs approval is denied", style="yellow")
        return "deny"
    return job.approvals


async def _follow(job: Job, session: Session, console: Console, *, asking: bool) -> Result | None:
    """Show every event, and ask the person where asked."""
    last: Result | None = None
    person = Person(session, console) if asking else None
    show = _writer(job, console)
    await session.finish()
    try:
        async for event in session:
            show(event)
            if person is not None:
                person.observe(event)
            last = event if isinstance(event, Result) else last
    finally:
        if person is not None:
            person.close()
    return last


def _caller(job: Job, console: Console) -> tuple[str | None, str]:
    """Return TRACEPARENT and TRACESTATE of the environment, if they can be followed."""
    header, state = job.environ.get("TRACEPARENT") or None, job.environ.get("TRACESTATE", "")
    try:
        if header is not None:
            parse_traceparent(header, state)
    except InvalidTraceParentError as error:
        console.print(Text(f"{error}: a new trace begins", style="yellow"))
        return None, ""
    return header, state


def _telemetry(job: Job) -> Telemetry:
    config, problems = telemetry_config(job.environ)
    if job.show_trace:  # which is what the console's exporter would show
        config = replace(config, exporters=tuple(name for name in config.exporters if name != "console"))
    return start(config, problems)


async def _deliver(telemetry: Telemetry, console: Console) -> None:
    """End telemetry, and say what of it has not arrived."""
    if await asyncio.to_thread(telemetry.shutdown):
        return
    for name, counts in telemetry.counts().items():
        lost = [f"{count} {what}" for what, count in counts.items() if count and what not in ("exported", "retried")]
        if lost:
            console.print(Text(f"telemetry: {name}: {', '.join(lost)}", style="yellow"))


def _session(
    job: Job, policy: ApprovalPolicy, console: Console, telemetry: Telemetry
) -> AbstractAsyncContextManager[Session]:
    traceparent, tracestate = _caller(job, console)
    return open_session(
        job.prompt,
        job.options,
        sandbox=job.place.sandbox,
        approvals=policy,
        telemetry=telemetry,
        traceparent=traceparent,
        tracestate=tracestate,
        upload=job.upload,
        environ=job.environ,
        session_id=job.session_id,
    )


def _writer(job: Job, console: Console) -> Callable[[AnyEvent], None]:
    if not job.json_events:
        return Renderer(console).show

    def write(event: AnyEvent) -> None:
        sys.stdout.buffer.write(encode(event))
        sys.stdout.buffer.flush()

    return write


class Interrupts:
    """Ctrl-C once interrupts the turn, twice stops; SIGTERM and a closed terminal stop; more of them hurry."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self, console: Console) -> None:
        self.session: Session | None = None
        self.stopped_by: int | None = None
        self._console = console
        self._interrupted = False
        self._main = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._sent: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Interrupts:
        for number in self.SIGNALS:
            self._loop.add_signal_handler(number, self._signalled, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self.SIGNALS:
            self._loop.remove_signal_handler(number)

    def _signalled(self, number: signal.Signals) -> None:
        if self.stopped_by is not None:
            if self.session is not None:
                self.session.hurry()
        elif number == signal.SIGINT and not self._interrupted and self.session is not None:
            self._interrupted = True
            self._console.print("\ninterrupting the turn; Ctrl-C again stops", style="yellow")
            task = asyncio.ensure_future(self._interrupt(self.session))
            self._sent.add(task)
            task.add_done_callback(self._sent.discard)
        else:
            self.stopped_by = number
            self._console.print("stopping …", style="yellow")
            if self._main is not None:
                self._main.cancel()

    async def _interrupt(self, session: Session) -> None:
        with contextlib.suppress(SessionClosedError):  # it has just ended by itself
            await session.interrupt()


def _finish(job: Job, console: Console, result: AgentResult) -> None:
    if result.spans:
        from host_client.telemetry.console import otlp_json, trace_tree  # OpenTelemetry: not when it is off
        from host_client.telemetry.summary import summarize

        if job.trace_out is not None:
            _write_trace(job.trace_out, json.dumps(otlp_json(result.spans)) + "\n", console)
        if job.show_trace:
            console.print()
            console.print(trace_tree(result.spans))
        console.print(summary_line(summarize(result.spans), *_tokens(job, result)))
    elif job.trace_out is not None:
        console.print("telemetry is off (OTEL_ENABLED=false): no trace was written", style="yellow")
    state = f"✗ {result.error_type}: {visible(result.error_message or '')}" if result.is_error else "✓ done"
    console.print(Text(f"{state}  trace {result.trace_id}", style="bold red" if result.is_error else "bold green"))
    if result.error_type == "authentication":
        console.print("set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN, or try `host_client demo`", style="yellow")
    if result.session_id:
        console.print(Text(f"Claude session {visible(result.session_id)}", style="dim"))


def _tokens(job: Job, result: AgentResult) -> tuple[int, int] | tuple[()]:
    """Return what the CLI billed, its own requests and subagents included; it goes on counting over a resume."""
    if job.options.resume is not None or not result.model_usage:
        return ()
    usages = [cast("dict[str, int]", usage) for usage in result.model_usage.values()]
    kinds = ("inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
    read = sum(usage.get(kind, 0) for usage in usages for kind in kinds)
    return read, sum(usage.get("outputTokens", 0) for usage in usages)


def _check_writable(path: Path | None) -> None:
    """What cannot be written at the end is told before anything is paid for."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ConfigurationError(f"--trace-out {path}: takes a file in a directory that exists")


def _write_trace(path: Path, text: str, console: Console) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        console.print(Text(f"the trace was not written to {path}: {error.strerror}", style="bold red"))

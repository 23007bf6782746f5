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
from typing import NamedTuple, cast

from rich.console import Console
from rich.text import Text

from agent_runner.contract.credentials import CREDENTIALS, KEY_REFUSED, key_advice
from agent_runner.contract.protocol import AnyEvent, Error, Result, encode
from agent_runner.contract.trace_context import from_environment
from host_client.client.agent import AgentResult, denial_of, result_of
from host_client.client.options import AgentOptions, ApprovalPolicy
from host_client.client.session import Session, open_session
from host_client.errors import ConfigurationError, SandboxError, SandspanError, SessionClosedError
from host_client.signals import loop_signals
from host_client.telemetry import Telemetry, root_below
from host_client.telemetry.setup.environment import telemetry_config
from host_client.telemetry.setup.start import start

from ._person import Person
from ._place import Place
from ._render import Renderer, delivery_line, summary_line, visible


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
    go_on: Callable[[Session], str | None] | None = None
    """Makes of a session that was kept the command that goes on with it."""


class JobOutcome(NamedTuple):
    """What a run came to: whether a signal ended it, what its last error said as it was shown, how to go on."""

    result: AgentResult
    stopped: bool
    shown: str | None
    go_on: str | None


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
    interrupts = Interrupts(console)
    with loop_signals(interrupts.signalled):
        telemetry = _telemetry(job)
        try:
            outcome = await _converse(job, console, interrupts, telemetry)
            _finish(job, console, outcome)
        except asyncio.CancelledError:  # stopped before there was a session
            return 128 + (interrupts.stopped_by or signal.SIGINT), None
        finally:
            with contextlib.suppress(asyncio.CancelledError):  # stopped once more: what is left waits in the spool
                await _deliver(telemetry, console)
    return _exit_code(outcome.result, interrupts.stopped_by), outcome.result


def _exit_code(result: AgentResult, stopped_by: int | None) -> int:
    """Return the runner's own exit code where it had its say; a signal counts as a shell counts it."""
    if stopped_by is not None:
        return 128 + stopped_by
    if result.exit_code is None:
        return 3
    if result.exit_code < 0:
        return 128 - result.exit_code
    return result.exit_code or int(result.is_error)


async def _converse(job: Job, console: Console, interrupts: Interrupts, telemetry: Telemetry) -> JobOutcome:
    policy = _effective_policy(job, console)
    for remark in job.place.remarks:
        console.print(Text(remark, style="dim"))
    console.print(Text("starting the sandbox …", style="dim"))
    seen = Seen()
    session: Session | None = None
    try:
        async with _session(job, policy, console, telemetry) as session:
            interrupts.session = session
            where = session.info.id if session.info else ""
            console.print(Text(f"sandbox {where}, trace {session.trace_id}", style="dim"))
            await _follow(job, session, console, seen, asking=policy == "ask")
            if job.download is not None:
                await _download(session, job.download, console)
    except asyncio.CancelledError:
        if session is None:
            raise
    return JobOutcome(
        result_of(session, seen.result),
        interrupts.stopped_by is not None,
        seen.error if not job.json_events else None,
        job.go_on(session) if job.go_on is not None and session.left_behind is None else None,
    )


async def _download(session: Session, target: Path, console: Console) -> None:
    try:
        await session.download(target)
    except SandspanError as error:  # the run is over and its result is worth more than the copy
        console.print(Text(f"nothing was downloaded: {error}", style="bold red"))


def _effective_policy(job: Job, console: Console) -> ApprovalPolicy:
    """A person can be asked only at a terminal."""
    if job.approvals == "ask" and not sys.stdin.isatty():
        console.print("stdin is no terminal, so nobody can be asked: what needs approval is denied", style="yellow")
        return "deny"
    return job.approvals


@dataclass
class Seen:
    """The last result, and the words of the last error, among the events so far."""

    result: Result | None = None
    error: str | None = None

    def note(self, event: AnyEvent) -> None:
        """Take an event into account."""
        match event:
            case Result():
                self.result = event
            case Error():
                self.error = event.data.message
            case _:
                pass


async def _follow(job: Job, session: Session, console: Console, seen: Seen, *, asking: bool) -> None:
    """Show every event, and ask the person where asked."""
    person = Person(session, console) if asking else None
    show = _writer(job, session, console)
    await session.finish()
    try:
        async for event in session:
            show(event)
            if person is not None:
                person.observe(event)
            seen.note(event)
    finally:
        if person is not None:
            person.close()


def _telemetry(job: Job) -> Telemetry:
    config, problems = telemetry_config(job.environ)
    if job.show_trace:  # which is what the console's exporter would show
        config = replace(config, exporters=tuple(name for name in config.exporters if name != "console"))
    return start(config, problems)


async def _deliver(telemetry: Telemetry, console: Console) -> None:
    """End telemetry, and say for each exporter what became of its spans."""
    await asyncio.to_thread(telemetry.shutdown)
    for name, counts in telemetry.counts().items():
        console.print(delivery_line(name, counts), soft_wrap=True)


def _session(
    job: Job, policy: ApprovalPolicy, console: Console, telemetry: Telemetry
) -> AbstractAsyncContextManager[Session]:
    caller = from_environment(job.environ, lambda remark: console.print(Text(remark, style="yellow")))
    return open_session(
        job.prompt,
        job.options,
        sandbox=job.place.sandbox,
        approvals=policy,
        telemetry=telemetry,
        root=root_below(caller),
        upload=job.upload,
        environ=job.environ,
        session_id=job.session_id,
    )


def _writer(job: Job, session: Session, console: Console) -> Callable[[AnyEvent], None]:
    if not job.json_events:
        return Renderer(console, session.trace.calls).show

    def write(event: AnyEvent) -> None:
        sys.stdout.buffer.write(encode(event))
        sys.stdout.buffer.flush()

    return write


class Interrupts:
    """Ctrl-C once interrupts the turn, twice stops; SIGTERM and a closed terminal stop; more of them hurry."""

    def __init__(self, console: Console) -> None:
        self.session: Session | None = None
        self.stopped_by: int | None = None
        self._console = console
        self._interrupted = False
        self._main = asyncio.current_task()
        self._sent: set[asyncio.Task[None]] = set()

    def signalled(self, number: signal.Signals) -> None:
        """React to a signal; called in the event loop."""
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
            try:
                self._console.print("stopping …", style="yellow")
            except OSError:
                self._console.quiet = True  # a terminal that was closed takes no last words
            if self._main is not None:
                self._main.cancel()

    async def _interrupt(self, session: Session) -> None:
        try:
            await session.interrupt()
        except SessionClosedError:
            return  # it has just ended by itself
        except SandboxError as error:
            self._console.print(Text(f"the turn was not interrupted: {error}; Ctrl-C again stops", style="yellow"))


def _finish(job: Job, console: Console, outcome: JobOutcome) -> None:
    result = outcome.result
    if result.spans:
        from host_client.telemetry.export.console import TraceTree, otlp_json  # OpenTelemetry: not when it is off
        from host_client.telemetry.trace.summary import summarize

        if job.trace_out is not None:
            _write_trace(job.trace_out, json.dumps(otlp_json(result.spans)) + "\n", console)
        if job.show_trace:
            console.print()
            console.print(TraceTree(result.spans))
        console.print(summary_line(summarize(result.spans), result.cost_usd, *_tokens(job, result)))
    elif job.trace_out is not None:
        console.print("telemetry is off (OTEL_ENABLED=false): no trace was written", style="yellow")
    denial = denial_of(result, "--approvals auto allows every call, --allowed-tools allows some tools")
    if denial is not None:
        console.print(Text(visible(denial), style="yellow"), soft_wrap=True)
    state = f"✗ {_why(job.options, outcome)}" if result.is_error else "✓ done"
    console.print(Text(f"{state}  trace {result.trace_id}", style="bold red" if result.is_error else "bold green"))
    if result.error_type == "authentication" and KEY_REFUSED not in (result.error_message or ""):
        console.print(Text(_about_key(job.environ), style="yellow"), soft_wrap=True)
    if outcome.go_on is not None:
        console.print(Text(f"go on with: {visible(outcome.go_on)}", style="dim"), soft_wrap=True)


def _about_key(environ: Mapping[str, str]) -> str:
    """Return what to do about the model's key where the runner has not said it: there is none, or the runner is old."""
    if any(environ.get(name) for name in CREDENTIALS):
        return f"the key was refused. {key_advice(environ)}"
    return "set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN, or try `host_client demo`"


def _why(options: AgentOptions, outcome: JobOutcome) -> str:
    """Return why a run failed: what an option brought about in its words, what was just shown without repeating it."""
    result = outcome.result
    match result.error_type:
        case "budget_exceeded" if options.max_budget_usd is not None:
            return f"budget_exceeded: the budget of {_dollars(options.max_budget_usd)} is spent (--max-budget-usd)"
        case "max_turns" if options.max_turns is not None:
            return f"max_turns: the limit of {options.max_turns} is reached (--max-turns)"
        case "cancelled":
            return f"cancelled: {'stopped' if outcome.stopped else 'interrupted'}"
        case error_type if result.error_message == outcome.shown:
            return f"failed: {error_type}"
        case error_type:
            return f"{error_type}: {visible(result.error_message or '')}"


def _dollars(amount: float) -> str:
    return f"${amount:.2f}" if round(amount, 2) == amount else f"${amount:g}"


def _tokens(job: Job, result: AgentResult) -> tuple[int, int] | tuple[()]:
    """Return what the CLI billed, its own requests and subagents included; nothing where the spans must tell.

    The CLI goes on counting over a resume, while all else that is summed up is of this run.
    """
    if job.options.resume is not None or job.session_id is not None or not result.model_usage:
        return ()
    usages = [cast("dict[str, int]", usage) for usage in result.model_usage.values()]
    kinds = ("inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
    read = sum(usage.get(kind, 0) for usage in usages for kind in kinds)
    return read, sum(usage.get("outputTokens", 0) for usage in usages)


def _write_trace(path: Path, text: str, console: Console) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        console.print(Text(f"the trace was not written to {path}: {error.strerror}", style="bold red"))

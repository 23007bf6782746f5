"""Runs one job in a terminal: shows its events, asks for approvals, handles Ctrl-C and prints a summary."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

from rich.console import Console
from rich.text import Text

from agent_runner.contract.credentials import CREDENTIALS, KEY_REFUSED, key_advice
from agent_runner.contract.protocol import AnyEvent, encode
from agent_runner.contract.trace_context import from_environment
from host_client.client.agent import AgentResult, denial_of, result_of
from host_client.client.options import AgentOptions, ApprovalPolicy
from host_client.client.session import Session, open_session
from host_client.errors import ConfigurationError, SandboxError, SandspanError, SessionClosedError
from host_client.signals import loop_signals
from host_client.telemetry import Telemetry, root_below
from host_client.telemetry.setup.environment import telemetry_config
from host_client.telemetry.setup.start import start

from ._handover import Handover, hand_over, sent_line
from ._person import Person
from ._place import Place
from ._render import Renderer, delivery_line, dollars, summary_line, visible


@dataclass(frozen=True, kw_only=True)
class Job:
    """The prompt, options, sandbox and output settings of one run."""

    prompt: str
    options: AgentOptions
    place: Place
    approvals: ApprovalPolicy
    environ: Mapping[str, str]
    attachments: Sequence[Path] = ()
    upload: Path | None = None
    download: Path | None = None
    folder: Handover | None = None
    json_events: bool = False
    trace_out: Path | None = None
    show_trace: bool = True
    session_id: str | None = None
    """Id of the session to continue; None for a new one."""
    continuation: Callable[[Session], str | None] | None = None
    """Returns the command that continues a session that was kept."""


class JobOutcome(NamedTuple):
    """The outcome of a run.

    ``stopped``: a signal ended it. ``asked``: a person decided on approvals. ``shown``: the message of the last error
    that was printed. ``next_command``: the command that continues the session. ``session`` is closed.
    """

    result: AgentResult
    stopped: bool
    asked: bool
    shown: str | None
    next_command: str | None
    session: Session


def run_job(job: Job) -> tuple[int, AgentResult | None]:
    """Run a job; return the exit code, and the result if there was a session."""
    console = Console(stderr=job.json_events, highlight=False)
    if not console.is_terminal:
        console.width = 120  # a log file has no width
    try:
        return asyncio.run(_run(job, console))
    except ConfigurationError as error:
        sys.stderr.write(f"host_client: {error}\n")
        return 2, None
    except OSError as error:  # stdout is on a full disk, or a closed pipe
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
            is_handed_over = await _hand_over(job, console, outcome)
        except asyncio.CancelledError:  # stopped before the session began
            return 128 + (interrupts.stopped_by or signal.SIGINT), None
        finally:
            with contextlib.suppress(asyncio.CancelledError):  # stopped again: undelivered spans stay in the spool
                await _deliver(telemetry, console)
    return _exit_code(outcome.result, interrupts.stopped_by) or int(not is_handed_over), outcome.result


async def _hand_over(job: Job, console: Console, outcome: JobOutcome) -> bool:
    if job.folder is None:
        return True
    is_error = outcome.result.is_error or outcome.stopped
    return await hand_over(job.folder, outcome.session, console, is_error=is_error)


def _exit_code(result: AgentResult, stopped_by: int | None) -> int:
    """Return the exit code: 128 + n for signal n, else the runner's own, or 3 if the runner did not end by itself."""
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
        console.print(Text(remark, style="dim"), soft_wrap=True)
    console.print(Text("starting the sandbox …", style="dim"))
    renderer: Renderer | None = None
    session: Session | None = None
    try:
        async with _session(job, policy, console, telemetry) as session:
            interrupts.session = session
            where = session.info.id if session.info else ""
            console.print(Text(f"sandbox {where}, trace {session.trace_id}", style="dim"))
            if session.sent_folder is not None:
                console.print(Text(sent_line(session.sent_folder), style="dim"), soft_wrap=True)
            renderer = Renderer(console, session.trace.calls)
            show = _write_json if job.json_events else renderer.show
            await _follow(session, show, Person(session, console) if policy == "ask" else None)
            if job.download is not None:
                await _download(session, job.download, console)
    except asyncio.CancelledError:
        if session is None:
            raise
    return JobOutcome(
        result_of(session),
        interrupts.stopped_by is not None,
        policy == "ask",
        renderer.last_error if renderer is not None else None,
        job.continuation(session) if job.continuation is not None and session.left_behind is None else None,
        session,
    )


async def _download(session: Session, target: Path, console: Console) -> None:
    try:
        await session.download(target)
    except SandspanError as error:  # not raised, as the run has ended and its result must be shown
        console.print(Text(f"nothing was downloaded: {error}", style="bold red"))


def _effective_policy(job: Job, console: Console) -> ApprovalPolicy:
    """Return the job's approval policy; ``deny`` in place of ``ask`` if stdin is not a terminal."""
    if job.approvals == "ask" and not sys.stdin.isatty():
        console.print("stdin is not a terminal, so calls that need approval are denied", style="yellow")
        return "deny"
    return job.approvals


async def _follow(session: Session, show: Callable[[AnyEvent], None], person: Person | None) -> None:
    """Show every event, and ask the person, if there is one, to decide requests."""
    await session.finish()
    try:
        async for event in session:
            show(event)
            if person is not None:
                person.observe(event)
    finally:
        if person is not None:
            person.close()


def _telemetry(job: Job) -> Telemetry:
    config, problems = telemetry_config(job.environ)
    if job.show_trace:  # the console exporter would print the trace a second time
        config = replace(config, exporters=tuple(name for name in config.exporters if name != "console"))
    return start(config, problems)


async def _deliver(telemetry: Telemetry, console: Console) -> None:
    """End telemetry, and print for each exporter how many spans were delivered."""
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
        attachments=job.attachments,
        sandbox=job.place.sandbox,
        approvals=policy,
        telemetry=telemetry,
        root=root_below(caller),
        upload=job.upload,
        cwd=job.folder.cwd if job.folder is not None else None,
        environ=job.environ,
        session_id=job.session_id,
    )


def _write_json(event: AnyEvent) -> None:
    sys.stdout.buffer.write(encode(event))
    sys.stdout.buffer.flush()


class Interrupts:
    """Handles signals: the first Ctrl-C interrupts the turn; a second, SIGTERM or SIGHUP stops; the next hurries."""

    def __init__(self, console: Console) -> None:
        self.session: Session | None = None
        self.stopped_by: int | None = None
        self._console = console
        self._interrupted = False
        self._main = asyncio.current_task()
        self._sent: set[asyncio.Task[None]] = set()

    def signalled(self, number: signal.Signals) -> None:
        """Handle a signal; called in the event loop."""
        if self.stopped_by is not None:
            if self.session is not None:
                self.session.hurry()
        elif number == signal.SIGINT and not self._interrupted and self.session is not None:
            self._interrupted = True
            self._console.print("\ninterrupting; Ctrl-C again stops", style="yellow")
            task = asyncio.ensure_future(self._interrupt(self.session))
            self._sent.add(task)
            task.add_done_callback(self._sent.discard)
        else:
            self.stopped_by = number
            try:
                self._console.print("stopping …", style="yellow")
            except OSError:
                self._console.quiet = True  # the terminal was closed
            if self._main is not None:
                self._main.cancel()

    async def _interrupt(self, session: Session) -> None:
        try:
            await session.interrupt()
        except SessionClosedError:
            return  # the session has just ended
        except SandboxError as error:
            self._console.print(Text(f"not interrupted: {error}; Ctrl-C again stops", style="yellow"))


def _finish(job: Job, console: Console, outcome: JobOutcome) -> None:
    result = outcome.result
    if result.spans:
        from host_client.telemetry.export.console import TraceTree, otlp_json  # not with telemetry off
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
    if denial is not None and not outcome.asked:  # a person who denied every call needs no advice
        console.print(Text(visible(denial), style="yellow"), soft_wrap=True)
    for description in result.unfinished:
        console.print(Text(f"ended unfinished: {visible(description)}"[:200], style="yellow"), soft_wrap=True)
    state = f"✗ {_why(job.options, outcome)}" if result.is_error else "✓ done"
    console.print(Text(f"{state}  trace {result.trace_id}", style="bold red" if result.is_error else "bold green"))
    if result.error_type == "authentication" and KEY_REFUSED not in (result.error_message or ""):
        console.print(Text(_about_key(job.environ), style="yellow"), soft_wrap=True)
    if outcome.next_command is not None:
        console.print(Text(f"continue with: {visible(outcome.next_command)}", style="dim"), soft_wrap=True)


def _about_key(environ: Mapping[str, str]) -> str:
    """Return advice about the model's key, for a run without a key or with a runner too old to give the advice."""
    if any(environ.get(name) for name in CREDENTIALS):
        return f"the key was refused. {key_advice(environ)}"
    return "set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN, or try `host_client demo`"


def _why(options: AgentOptions, outcome: JobOutcome) -> str:
    """Return why a run failed, with the option that set a limit; an error that was just printed is not repeated."""
    result = outcome.result
    match result.error_type:
        case "budget_exceeded" if options.max_budget_usd is not None:
            return f"budget_exceeded: the budget of {dollars(options.max_budget_usd)} is spent (--max-budget-usd)"
        case "max_turns" if options.max_turns is not None:
            return f"max_turns: the limit of {options.max_turns} is reached (--max-turns)"
        case "cancelled":
            return f"cancelled: {'stopped' if outcome.stopped else 'interrupted'}"
        case error_type if result.error_message == outcome.shown:
            return f"failed: {error_type}"
        case error_type:
            return f"{error_type}: {visible(result.error_message or '')}"


def _tokens(job: Job, result: AgentResult) -> tuple[int, int] | tuple[()]:
    """Return the input and output tokens that the CLI counted; nothing for a resumed session.

    The CLI's count includes its own requests and subagents, which the spans lack. Over a resume it continues, while the
    summary is about this run only.
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

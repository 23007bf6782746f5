"""The command ``agent_runner``: run an agent, read a journal, check the installation, print the contract's schema.

Heavy modules are imported only where they are needed: ``attach`` and a bad configuration import no Claude Agent SDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ._config import Config, ConfigError, arguments, load_config
from ._events import Events
from ._guardian import fork_below_guardians
from ._journal import Journal, JournalError, RunnerGoneError, follow
from ._wire import StdoutWriter, claim_stdio
from .contract import __version__
from .contract.protocol import LogData, command_schema, event_schema
from .contract.signals import ending_signals, ignore
from .contract.spans import Ids
from .contract.trace_context import TraceContext, baggage_from_environment, from_environment

if TYPE_CHECKING:
    from ._control import Control
    from ._deep_trace import DeepTrace
    from ._gateway import Gateway
    from ._model_access import ModelAccess
    from ._telemetry import SpanSink

USAGE = """\
usage: agent_runner run [OPTIONS]          run one Claude agent
       agent_runner attach [--after SEQ]   print a run's events after SEQ
       agent_runner doctor [--image USER]  check the installation
       agent_runner schema                 print the schema of its messages
       agent_runner --version

Each command takes --help.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    match args:
        case ["run", *rest]:
            return run(rest)
        case ["attach", *rest]:
            return attach(rest)
        case ["doctor", *rest]:
            from ._doctor import doctor  # other subcommands do not need it

            for number in ending_signals():
                signal.signal(number, _exit)  # the default action would leave the processes of a check behind
            return doctor(rest)
        case ["schema", *rest]:
            return schema(rest)
        case ["--version"]:
            sys.stdout.write(f"agent_runner {__version__}\n")
            return 0
        case ["-h" | "--help"]:
            sys.stdout.write(USAGE)
            return 0
        case [unknown, *_]:
            sys.stderr.write(f"{USAGE}\nagent_runner: unknown command {unknown!r}\n")
            return 2
        case _:
            sys.stderr.write(USAGE)
            return 2


def run(argv: Sequence[str]) -> int:
    """Run one agent as ``agent_runner run`` (docs/RUNNER.md); end this process with the exit code."""
    if "-h" in argv or "--help" in argv:
        arguments().print_help()
        return 0
    environ = dict(os.environ)
    early = EarlySignals()
    fork_below_guardians()
    stdin, stdout = claim_stdio()
    remarks: list[str] = []
    context = from_environment(environ, remarks.append) or TraceContext(Ids().trace_id(), "")
    problem: str | None = None
    config = Config()
    journal: Journal | None = None
    try:
        config = load_config(environ, argv, baggage_from_environment(environ, remarks.append))
        journal = open_journal(config)
        environ = {**change_account(config, environ), **(config.options.env or {})}
    except ConfigError as error:
        problem, config = str(error), error.rest or config
    except JournalError as error:
        problem = str(error)
    outlet = StdoutWriter(stdout, journal)
    events = Events(outlet, journal, context)
    if problem is not None:
        from ._failed_start import FailedStart  # what can start imports these together with the SDK
        from ._telemetry import choose_sink

        code = FailedStart(config, events, choose_sink(environ, events.emit), context).misconfigured(problem)
    else:
        for remark in remarks:
            events.emit(LogData(stream="runner", text=remark))
        code = asyncio.new_event_loop().run_until_complete(_run(config, events, context, environ, stdin, early))
    outlet.close()
    sys.stderr.flush()
    # asyncio.run and the interpreter's own end would wait for remaining tasks and threads, such as the SDK's wait for
    # a CLI that is gone.
    os._exit(code)


def _exit(number: int, _frame: object) -> None:
    from .contract.processes import Descendants  # only `doctor` gets here

    for each in ending_signals():
        signal.signal(each, ignore)  # another signal must not interrupt the clean-up
    Descendants().end()  # an exception instead, while a process is being started, would leave that process running
    raise SystemExit(128 + number)


class EarlySignals:
    """Records a signal that arrives before the run exists, as importing the SDK takes half a second."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self.numbers = ending_signals()
        for number in self.numbers:
            signal.signal(number, self._record)

    def _record(self, number: int, _frame: object) -> None:
        self.exit_code = self.exit_code or 128 + number


def open_journal(config: Config) -> Journal | None:
    """Open the configured journal, else a temporary one; return None if there can be no temporary one."""
    if config.journal is not None:
        return Journal(config.journal)
    try:
        return Journal(None)
    except OSError:
        return None  # events for a slow reader are then kept in memory only


def change_account(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """Prepare this process to start the CLI as another account, if configured; return the CLI's environment."""
    if config.user is None:
        return dict(environ)
    from ._privileges import check_usable, drop_privileges, find_account  # most runs do not need it

    account = find_account(config.user)
    check_usable(config.cwd or os.getcwd(), account)
    drop_privileges(account)
    path = account.search_path(environ.get("PATH") or os.defpath)
    return {**environ, **account.environment, "PATH": path}


async def _run(
    config: Config,
    events: Events,
    context: TraceContext,
    environ: Mapping[str, str],
    stdin: int,
    early: EarlySignals,
) -> int:
    # Importing the SDK takes 0.4 s. Its objects stay, and garbage collection during the import would take a sixth of
    # that time.
    gc.disable()
    from ._credential import uses_gateway
    from ._failed_start import FailedStart, unprompted
    from ._model_access import ModelAccess
    from ._telemetry import choose_sink
    from .contract.processes import Descendants

    sink = choose_sink(environ, events.emit)
    failed_start = FailedStart(config, events, sink, context)
    if config.prompt is None and os.isatty(stdin):
        return unprompted(events)
    access = ModelAccess(environ)
    gateway = None
    deep_trace = None

    def report(text: str) -> None:
        events.emit(LogData(stream="runner", text=text))

    try:
        if uses_gateway(config, environ, report):
            gateway = await _start_gateway(config, environ, report, access)
        if gateway is not None:
            await asyncio.to_thread(_import_sdk)  # while the gateway connects to the model's API
        try:
            from ._run import Run
        except ModuleNotFoundError as error:
            return failed_start.not_installed(error)
        gc.freeze()
        gc.enable()
        if gateway is not None:
            environ = await gateway.environment(environ)
        deep_trace = await _start_deep_trace(config, environ, sink, report)
        if warning := readable_cli_warning(config):
            report(warning)
        this = Run(
            config,
            events,
            sink,
            context,
            environ,
            descendants=Descendants(),
            gateway=gateway,
            access=access,
            deep_trace=deep_trace,
        )
    except ConfigError as error:
        if deep_trace is not None:
            await deep_trace.finish()
        return failed_start.misconfigured(str(error))
    _listen(this.control, stdin, early)
    return await this.main()


def _listen(control: Control, stdin: int, early: EarlySignals) -> None:
    """Pass the signals and the commands on stdin to a run's control from now on."""
    from ._commands import read_commands

    loop = asyncio.get_running_loop()
    for number in early.numbers:
        loop.add_signal_handler(number, control.signalled, 128 + number)
    if early.exit_code is not None:
        control.signalled(early.exit_code)
    if os.isatty(stdin):
        control.end_of_input()  # a terminal sends no JSON commands
    else:
        read_commands(stdin, loop, on_command=control.execute, on_refused=control.refuse, on_end=control.end_of_input)


def _import_sdk() -> None:
    with contextlib.suppress(ModuleNotFoundError):  # the import that follows reports it
        importlib.import_module("agent_runner._run")


async def _start_gateway(
    config: Config, environ: Mapping[str, str], report: Callable[[str], None], access: ModelAccess
) -> Gateway | None:
    """Return a gateway that serves until this process ends; the key leaves this process's environment.

    If it cannot start, raise `ConfigError`, or with ``auto`` report it in a message and return None.
    """
    from ._credential import credential, forget_credentials
    from ._gateway import Gateway
    from ._metering import Meter
    from ._privileges import hide_memory

    key = credential(environ)
    meter = Meter(config.max_budget_usd) if config.max_budget_usd else None
    try:
        gateway = Gateway(key, report, meter, access)
        await gateway.start(environ)
    except Exception as error:  # such as a proxy of a kind that httpx does not know, or no file at SSL_CERT_FILE
        if config.gateway == "on":
            raise ConfigError(f"AGENT_GATEWAY=on: the gateway cannot start: {error}") from error
        report(f"the gateway is off, as it cannot start: {error}")
        return None
    forget_credentials(os.environ)  # the SDK passes this process's environment to the CLI
    hide_memory()
    return gateway


async def _start_deep_trace(
    config: Config, environ: Mapping[str, str], sink: SpanSink, report: Callable[[str], None]
) -> DeepTrace | None:
    """Return a started receiver of spans if it is configured and can start, else None; report why it cannot."""
    if not config.deep_trace:
        return None
    if not sink.sends:
        report("AGENT_DEEP_TRACE=on has no effect, as OpenTelemetry is switched off")
        return None
    from ._deep_trace import DeepTrace  # imports OpenTelemetry

    try:
        deep_trace = DeepTrace(environ)
    except OSError as error:
        report(f"AGENT_DEEP_TRACE=on has no effect, as a port or a temporary file cannot be had: {error}")
        return None
    await deep_trace.start()
    return deep_trace


def readable_cli_warning(config: Config) -> str | None:
    """Return a warning if the CLI's account can read its binary: its tools can then read the CLI's memory."""
    if config.user is None:
        return None
    from ._privileges import cli_binary, find_account, may_read

    path = cli_binary(config.cli_path)
    if path is None or not may_read(path, find_account(config.user)):
        return None
    return (
        f"{path} is readable by {config.user}: tools can read and write the CLI's memory and streams, "
        "and so approve their own calls; make root its owner and 0711 its mode"
    )


def attach(argv: Sequence[str]) -> int:
    """Print a journal's events after a seq as ``agent_runner attach``, for a reader that lost the stream."""
    import argparse

    parser = argparse.ArgumentParser(prog="agent_runner attach")
    parser.add_argument("--after", type=int, default=0, metavar="SEQ", help="print the events after this seq")
    parser.add_argument("--journal", default=os.environ.get("AGENT_JOURNAL"), help="default: AGENT_JOURNAL")
    options = parser.parse_args(argv)
    if not options.journal:
        parser.error("no journal: set AGENT_JOURNAL or give --journal")
    try:
        for line in follow(options.journal, options.after):
            _write_all(line)
    except JournalError as error:
        sys.stderr.write(f"agent_runner attach: {error}\n")
        return 2
    except RunnerGoneError:
        sys.stderr.write("agent_runner attach: the journal has no end event, and its runner is gone\n")
        return 3
    except BrokenPipeError:
        return 0
    return 0


def schema(argv: Sequence[str]) -> int:
    """Print the JSON Schema of events and commands as ``agent_runner schema``."""
    import argparse

    about = "Print the JSON Schema of events and commands, as one object with the keys events and commands."
    argparse.ArgumentParser(prog="agent_runner schema", description=about).parse_args(argv)
    both = {"events": event_schema(), "commands": command_schema()}
    sys.stdout.write(json.dumps(both, indent=2, ensure_ascii=False) + "\n")
    return 0


def _write_all(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main())

"""A command that a signal ends leaves no process and no directory behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from host_client.scripted_model import ScriptedModel, parse_script
from tests.e2e.test_commands import terminal
from tests.host.test_session import LONG_TOOL
from tests.support.runs import HANG, WAIT_SECONDS, Fifo, clean_environment

ROOT = Path(__file__).resolve().parents[2]
PYTHON = (sys.executable, "-m")
WRAPPER = (*PYTHON, "host_client.scripted_model", "script.json")
SCRIPT = json.dumps(
    {"conversations": {"main": {"replies": [{"tools": [{"name": "Bash", "input": {"command": HANG}}]}]}}}
)
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]


class Place:
    """A working directory, a home and a temporary folder; the latter identifies all processes started here."""

    def __init__(self, root: Path) -> None:
        self.work = root / "work"
        self.temporary = root / "tmp"
        self._home = root / "home"
        for folder in (self.work, self.temporary, self._home):
            folder.mkdir()
        (self.work / "script.json").write_text(SCRIPT)
        self.up = Fifo(self.work / "up")
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start a command without a terminal in a session of its own."""
        process = subprocess.Popen(
            command,
            env=clean_environment(self._home, PYTHONPATH=str(ROOT), TMPDIR=str(self.temporary), **environ),
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def running(self) -> list[str]:
        """Return the command lines of running processes that were started here, directly or not."""
        mark = f"TMPDIR={self.temporary}".encode()
        found: list[str] = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        return found

    def left(self) -> list[str]:
        """Return the command lines of running processes and the names of remaining folders."""
        theirs = ("cc-socks", "claude-")  # shared by all processes of the CLI
        folders = [path.name for path in self.temporary.iterdir() if not path.name.startswith(theirs)]
        return [*self.running(), *folders]

    def until(self, pattern: str) -> None:
        """Wait until the temporary folder has a matching file or directory."""
        limit = time.monotonic() + WAIT_SECONDS
        while not any(self.temporary.glob(pattern)):
            assert time.monotonic() < limit, f"no {pattern}"
            os.sched_yield()

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait(WAIT_SECONDS)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.close()


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize(
    "command",
    [
        (*PYTHON, "host_client", "run", "go", "--approvals", "auto", "--cwd", "."),
        (*PYTHON, "agent_runner", "run", "--prompt", "go", "--allowed-tools", "Bash"),
    ],
    ids=["host_client", "agent_runner"],
)
def test_a_run_against_a_script_ends_with_its_wrapper(
    place: Place, command: tuple[str, ...], number: signal.Signals, code: int
) -> None:
    wrapper = place.start(*WRAPPER, *command)
    place.up.read()
    wrapper.send_signal(number)
    assert wrapper.wait(WAIT_SECONDS) == code
    assert place.left() == []


@pytest.mark.parametrize(("number", "code"), SIGNALS[:2])
def test_what_a_wrapped_command_started_ends_with_it(place: Place, number: signal.Signals, code: int) -> None:
    wrapper = place.start(*WRAPPER, "sh", "-c", "(setsid sleep 600 &) ; echo up > up; sleep 600; true")
    place.up.read()
    wrapper.send_signal(number)
    assert wrapper.wait(WAIT_SECONDS) == code
    assert place.left() == []


def test_a_wrapped_command_that_heeds_no_signal_is_killed(place: Place) -> None:
    program = """
import sys
from host_client.scripted_model import __main__, _command as command
command.GRACE_SECONDS = 0.1
sys.exit(__main__.main())
"""
    arguments = ("script.json", "sh", "-c", "trap '' TERM; echo up > up; sleep 600; true")
    wrapper = place.start(sys.executable, "-c", program, *arguments)
    place.up.read()
    wrapper.send_signal(signal.SIGTERM)
    assert wrapper.wait(WAIT_SECONDS) == 137
    assert place.left() == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_runner_alone_ends_its_cli_and_its_tools(place: Place, number: signal.Signals, code: int) -> None:
    with ScriptedModel(parse_script(SCRIPT)) as model:
        command = ("agent_runner", "run", "--prompt", "go", "--allowed-tools", "Bash")
        runner = place.start(*PYTHON, *command, ANTHROPIC_BASE_URL=model.url)
        place.up.read()
        runner.send_signal(number)
        assert runner.wait(WAIT_SECONDS) == code
    assert place.left() == []


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [number for number, _ in SIGNALS])
def test_a_service_ends_its_sessions_and_removes_its_directories(
    place: Place, number: signal.Signals, times: int
) -> None:
    service = place.start(*PYTHON, "host_client", "serve", "--demo", "--port", "0")
    place.until("sandspan-*/work")
    for _ in range(times):
        service.send_signal(number)
    assert service.wait(WAIT_SECONDS) == 0
    assert place.left() == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_service_that_is_starting_removes_its_directory(place: Place, number: signal.Signals, code: int) -> None:
    service = place.start(*PYTHON, "host_client", "serve", "--demo", "--port", "0")
    place.until("sandspan-demo-*")
    service.send_signal(number)
    assert service.wait(WAIT_SECONDS) in (code, 0)  # 0: it was already serving
    assert place.left() == []


def test_an_interrupt_ends_a_starting_service_that_inherited_an_ignored_one(place: Place) -> None:
    # As a script's shell starts background commands.
    command = (*PYTHON, "host_client", "serve", "--demo", "--port", "0")
    service = place.start("sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command)
    place.until("sandspan-demo-*")
    service.send_signal(signal.SIGINT)
    assert service.wait(WAIT_SECONDS) in (130, 0)
    assert place.left() == []


def hanging(path: Path, up: Path) -> str:
    """Write a program that writes to the pipe ``up`` and then hangs; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho up > {up}\nexec sleep 600\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_runners_doctor_ends_the_cli_that_it_started(place: Place, number: signal.Signals, code: int) -> None:
    packages = place.work / "packages"
    hanging(packages / "claude_agent_sdk" / "_bundled" / "claude", place.work / "up")
    about = packages / "claude_agent_sdk-0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: claude-agent-sdk\nVersion: 0\n")
    doctor = place.start("env", f"PYTHONPATH={packages}:{ROOT}", *PYTHON, "agent_runner", "doctor")
    place.up.read()
    doctor.send_signal(number)
    assert doctor.wait(WAIT_SECONDS) == code
    assert place.left() == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_the_hosts_doctor_ends_the_program_that_it_started(place: Place, number: signal.Signals, code: int) -> None:
    folder = Path(hanging(place.work / "bin" / "e2b", place.work / "up")).parent
    doctor = place.start(*PYTHON, "host_client", "doctor", "--sandbox", "local", PATH=f"{folder}:/usr/bin:/bin")
    place.up.read()
    doctor.send_signal(number)
    assert doctor.wait(WAIT_SECONDS) == code
    assert place.left() == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_build_of_the_template_removes_its_directory(place: Place, number: signal.Signals, code: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(WAIT_SECONDS)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environ = {"E2B_API_URL": url, "E2B_API_KEY": f"e2b_{'0' * 40}"}
        build = place.start(*PYTHON, "host_client", "template", "build", **environ)
        with silent.accept()[0]:
            assert [path.name for path in place.temporary.glob("sandspan-template-*")] != []
            build.send_signal(number)
            assert build.wait(WAIT_SECONDS) == code
    assert place.left() == []


@pytest.mark.parametrize(("number", "code"), SIGNALS[:2])
def test_an_editor_ends_with_the_run_that_opened_it(place: Place, number: signal.Signals, code: int) -> None:
    editor = hanging(place.work / "editor", place.work / "up")
    with (
        ScriptedModel(parse_script(LONG_TOOL)) as model,
        terminal(place.work, "run", "go", model=model, EDITOR=editor, TMPDIR=str(place.temporary)) as run,
    ):
        run.until("reason >")
        run.type("e\n")
        place.up.read()
        run.process.send_signal(number)
        assert run.finish() == code
    assert place.left() == []


def test_a_hangup_does_not_end_what_nohup_started(place: Place) -> None:
    service = place.start("nohup", *PYTHON, "host_client", "serve", "--demo", "--port", "0")
    place.until("sandspan-*/work")
    service.send_signal(signal.SIGHUP)
    service.send_signal(signal.SIGTERM)
    assert service.wait(WAIT_SECONDS) == 0
    assert place.left() == []


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_whose_exception_python_drops_is_heeded_by_the_next_event_loop(
    place: Place, number: signal.Signals, code: int
) -> None:
    program = f"""
import asyncio, os, sys, weakref
from host_client.signals import exit_on_signals, run_until_signal

class Module:
    pass

def release(_):
    os.kill(os.getpid(), {int(number)})

exit_on_signals()
module = Module()
lock = weakref.ref(module, release)  # as the import system has for each module that it imports
del module
sys.stderr.write("it goes on")
run_until_signal(asyncio.sleep(600))
"""
    process = place.start(sys.executable, "-c", program)
    assert process.wait(WAIT_SECONDS) == (-number if number == signal.SIGINT else code)
    assert place.left() == []

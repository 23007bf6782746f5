"""``host_client run`` in E2B with an open but silent stream: Ctrl-C works and the outcome is reported."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from agent_runner.contract.protocol import decode_event
from tests.e2e.test_commands import LIMIT, ROOT
from tests.e2e.test_e2b_commands import until
from tests.host.test_session import LONG_TOOL
from tests.support.hosts import E2BLab, e2b_lab
from tests.support.runs import clean_environment

IMPATIENT = """
from host_client import __main__
from host_client.client import _output_reader as listener
listener.SILENCE_SECONDS = 0.2
__main__.main()
"""
"""A ``host_client`` that regards a stream as silent after 0.2 s."""

GONE = "the sandbox no longer exists: its time was up (--timeout), or it was removed"


class Command:
    """A ``host_client run`` whose agent's tool is running, with its stderr."""

    def __init__(self, process: subprocess.Popen[bytes], said: Path) -> None:
        self.process = process
        self._said = said

    @property
    def said(self) -> str:
        return self._said.read_text()

    def interrupt(self, times: int) -> None:
        """Send SIGINT, once or twice, each time waiting until the command reports it."""
        for words in ("interrupting;", "stopping")[:times]:
            self.process.send_signal(signal.SIGINT)
            until(lambda words=words: words in self.said or self.process.poll() is not None)

    def finish(self) -> int:
        """Wait for the command's end without a traceback; return the exit code."""
        code = self.process.wait(LIMIT)
        assert "Traceback" not in self.said, self.said
        assert "exception" not in self.said, self.said
        return code


@contextlib.contextmanager
def running(lab: E2BLab, home: Path, *python: str) -> Generator[Command]:
    said = home / "stderr"
    args = ("run", "go", "--json", "--allowed-tools", "Bash")
    with (
        said.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, *python, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=clean_environment(home, lab.model.url, **lab.e2b.environ),
            cwd=ROOT,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert any(decode_event(line).type == "tool_use" for line in process.stdout), "no tool ran"
            yield Command(process, said)
        finally:
            process.kill()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_run_whose_stream_is_silent(tmp_path: Path, times: int) -> None:
    with e2b_lab(LONG_TOOL) as lab, running(lab, tmp_path, "-m", "host_client") as command:
        lab.e2b.silence_streams()
        command.interrupt(times)
        assert command.finish() == 130
        assert [made.state for made in lab.e2b.sandboxes] == ["gone"]
    assert "cancelled: " in command.said


@pytest.mark.parametrize(("times", "code"), [(1, 3), (2, 130)])
def test_ctrl_c_ends_a_run_whose_sandbox_is_gone_while_its_stream_is_silent(
    tmp_path: Path, times: int, code: int
) -> None:
    with e2b_lab(LONG_TOOL) as lab, running(lab, tmp_path, "-m", "host_client") as command:
        lab.e2b.silence_streams()
        lab.e2b.lose(lab.e2b.sandboxes[0].id)
        command.interrupt(times)
        assert command.finish() == code
    if times == 1:
        assert GONE in command.said


def test_a_run_whose_sandbox_is_gone_while_its_stream_is_silent_says_so_and_ends(tmp_path: Path) -> None:
    with e2b_lab(LONG_TOOL) as lab, running(lab, tmp_path, "-c", IMPATIENT) as command:
        lab.e2b.silence_streams()
        lab.e2b.lose(lab.e2b.sandboxes[0].id)
        assert command.finish() == 3
    assert GONE in command.said

"""The agent does not wait for readers that stall, leave or return, and no event is lost."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import pytest

from agent_runner._wire import QUEUE_BYTES
from agent_runner.contract import protocol
from tests.support.disks import small_disk
from tests.support.runs import HANG, WAIT_SECONDS, Lab, is_gone, read_events, seqs

MakeLab = Callable[[str], Lab]

HI = "conversations: {main: {replies: [{text: Hi.}]}}"
BLOCKS = 6
CHATTY = json.dumps(
    {
        "conversations": {
            "main": {
                "replies": [
                    *(
                        {
                            "text": str(n) * 300_000,
                            "chunk": 50_000,
                            "tools": [{"name": "Bash", "input": {"command": f"echo {n}"}}],
                        }
                        for n in range(1, BLOCKS)
                    ),
                    {"text": "0" * 300_000, "chunk": 50_000},
                ]
            }
        }
    }
)
"""More than a pipe (64 KiB) and the runner's queue (1 MiB) hold together."""


class Pipe(NamedTuple):
    """The ends of a pipe, unbuffered; to close an end twice is harmless."""

    reader: FileIO
    writer: FileIO


@pytest.fixture
def stalled() -> Iterator[Pipe]:
    """Make a pipe that has no reader yet."""
    reader, writer = os.pipe()
    with FileIO(reader) as reading, FileIO(writer, "w") as writing:
        yield Pipe(reading, writing)


def test_a_reader_that_never_reads_does_not_hold_up_the_agent(make_lab: MakeLab, tmp_path: Path, stalled: Pipe) -> None:
    lab = make_lab(CHATTY)
    journal = tmp_path / "journal"
    process = lab.popen("run", "--prompt", "go", "--journal", str(journal), stdout=stalled.writer.fileno())
    assert process.wait(timeout=WAIT_SECONDS) == 0
    stalled.writer.close()

    whole = journal.read_bytes()
    events = read_events(whole)
    assert seqs(events) == list(range(1, len(events) + 1))
    assert isinstance(events[-1], protocol.End)
    assert len(whole) > 64 * 1024 + QUEUE_BYTES
    # What the reader finds in its pipe now is the beginning; the journal has the rest, once each.
    early = stalled.reader.readall()
    early = early[: early.rfind(b"\n") + 1]
    seen = seqs(read_events(early))
    rest = lab.attach(journal, after=max(seen, default=0))
    assert rest.returncode == 0
    assert [*seen, *seqs(read_events(rest.stdout))] == seqs(events)
    assert whole.endswith(rest.stdout)


def test_a_slow_reader_gets_everything_from_the_journal_in_order(make_lab: MakeLab, stalled: Pipe) -> None:
    lab = make_lab(CHATTY)
    process = lab.popen("run", "--prompt", "go", stdout=stalled.writer.fileno())
    stalled.writer.close()
    # The model has answered for the last time: by now the agent is far ahead of its reader.
    lab.until_requests(BLOCKS)
    events = read_events(stalled.reader.readall())
    assert process.wait(timeout=WAIT_SECONDS) == 0
    assert seqs(events) == list(range(1, len(seqs(events)) + 1))
    assert isinstance(events[-1], protocol.End)
    texts = [event.data.text for event in events if isinstance(event, protocol.Text)]
    assert texts == [str(n % BLOCKS) * 300_000 for n in range(1, BLOCKS + 1)]


def test_a_reader_that_leaves_does_not_end_the_run(make_lab: MakeLab, tmp_path: Path, stalled: Pipe) -> None:
    lab = make_lab(HI)
    journal = tmp_path / "journal"
    stalled.reader.close()
    process = lab.popen("run", "--prompt", "go", "--journal", str(journal), stdout=stalled.writer.fileno())
    assert process.wait(timeout=WAIT_SECONDS) == 0
    events = read_events(journal.read_bytes())
    assert [event.type for event in events if event.type != "telemetry"] == [
        *("start", "turn_start", "text", "result", "end")
    ]
    assert lab.attach(journal).stdout == journal.read_bytes()


def test_attach_follows_a_live_run_and_stops_at_its_end(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(HI)
    journal = tmp_path / "journal"
    runner = lab.start("--journal", str(journal))
    runner.send_raw(b"nonsense\n")
    runner.until(protocol.Error)
    follower = lab.popen("attach", "--journal", str(journal), stdout=subprocess.PIPE)
    assert follower.stdout is not None
    first = follower.stdout.readline()  # it follows, and the run has hardly begun
    runner.send(protocol.Prompt(text="go"))
    done = runner.finish()
    rest = follower.stdout.read()
    assert follower.wait(timeout=WAIT_SECONDS) == 0
    assert first + rest == journal.read_bytes()
    assert seqs(read_events(first + rest)) == seqs(done.events)
    assert [line for line in done.lines if b'"seq"' in line] == (first + rest).splitlines(keepends=True)


def test_attach_tells_when_the_runner_is_gone(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(HI)
    journal = tmp_path / "journal"
    runner = lab.start("--journal", str(journal))
    runner.send_raw(b"nonsense\n")
    runner.until(protocol.Error)
    runner.process.kill()
    runner.until_end_of_output()  # its stdin ends later, else it could still hear of that
    runner.finish()
    attached = lab.attach(journal)
    assert attached.returncode == 3
    assert attached.stderr == b"agent_runner attach: the journal has no end event, and its runner is gone\n"
    assert seqs(read_events(attached.stdout)) == [1]


def test_attach_without_a_journal_says_so(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(HI)
    attached = lab.attach(tmp_path / "nothing")
    assert attached.returncode == 2
    assert attached.stdout == b""
    assert b"cannot open the journal" in attached.stderr


def test_a_journal_that_cannot_be_used_is_a_configuration_error(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(HI)
    used = tmp_path / "used"
    used.write_text("{}\n")
    locked = tmp_path / "locked"
    with locked.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = {
            used: "holds another run's events: name a new file",
            locked: "is in use by another runner",
            tmp_path / "no" / "directory": "No such file or directory",
            tmp_path: "Is a directory",
        }
        for path, why in refused.items():
            done = lab.run("--prompt", "go", "--journal", str(path))
            assert done.exit_code == 2
            assert done.types == ["error", "end"]
            error = done.one(protocol.Error).data
            assert error.error_type == "invalid_request"
            assert str(path) in error.message
            assert why in error.message
    assert used.read_text() == "{}\n"
    assert lab.model.requests == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "tiny", "16k") as place:
        yield place


def test_a_full_disk_ends_the_journal_and_not_the_run(make_lab: MakeLab, tiny_disk: Path) -> None:
    lab = make_lab(CHATTY)
    journal = tiny_disk / "journal"
    done = lab.run("--prompt", "go", "--journal", str(journal))
    assert done.exit_code == 0
    assert seqs(done.events) == list(range(1, len(seqs(done.events)) + 1))
    remark = done.one(protocol.Log).data
    assert remark.stream == "runner"
    assert "No space left on device" in remark.text
    assert isinstance(done.events[-1], protocol.End)
    assert len(done.of(protocol.Text)) == BLOCKS
    assert len(done.tree) == 1

    kept = read_events(journal.read_bytes())
    assert 0 < len(kept) < len(seqs(done.events))
    assert seqs(kept) == list(range(1, len(kept) + 1))
    assert f"the journal ends before seq {len(kept) + 1}:" in remark.text
    attached = lab.attach(journal)
    assert attached.returncode == 3
    assert seqs(read_events(attached.stdout)) == seqs(kept)


def test_a_signal_ends_a_run_whose_reader_stalls(make_lab: MakeLab, tmp_path: Path, stalled: Pipe) -> None:
    lab = make_lab(
        json.dumps(
            {
                "conversations": {
                    "main": {
                        "replies": [
                            {
                                "text": "0" * 2 * QUEUE_BYTES,
                                "chunk": 50_000,
                                "tools": [{"name": "Bash", "input": {"command": HANG}}],
                            }
                        ]
                    }
                }
            }
        )
    )
    journal = tmp_path / "journal"
    up = lab.fifo()
    options = ("--prompt", "go", "--allowed-tools", "Bash", "--journal", str(journal))
    stdin, keep_open = os.pipe()
    process = lab.popen("run", *options, stdin=stdin, stdout=stalled.writer.fileno())
    pid = int(up.read())
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=WAIT_SECONDS) == 143
    assert is_gone(pid)
    end = read_events(journal.read_bytes())[-1]
    assert isinstance(end, protocol.End)
    assert end.data == protocol.EndData(reason="terminated", exit_code=143)
    os.close(stdin)
    os.close(keep_open)

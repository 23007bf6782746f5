"""Simulate a runner of f6f5305: accept only its command lines, and replay a recorded run.

The first argument is the recording's name. The program replaces the template's Python, so the other arguments are
``-P -m agent_runner run`` or ``-P -m agent_runner attach --after SEQ --journal PATH``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tests.compat.recordings import Recording, load

POLL_SECONDS = 0.02
WRONG = 64
"""Exit code for a command line that f6f5305's runner does not accept."""

NO_JOURNAL = 2
"""Exit code of `attach` if there is no journal."""


def main(name: str, *args: str) -> int:
    """Execute the command line; return the exit code."""
    match args:
        case ("-P", "-m", "agent_runner", "run"):
            return run(load(name))
        case ("-P", "-m", "agent_runner", "attach", "--after", after, "--journal", journal):
            return attach(Path(journal), int(after))
        case _:
            print(f"unknown: {args}", file=sys.stderr)
            return WRONG


def run(recording: Recording) -> int:
    """Write the recorded events; before each recorded command wait until the host has sent one.

    A host that sends `stop` instead gets the last event at once.
    """
    with Path(os.environ["AGENT_JOURNAL"]).open("a") as journal:
        is_stopped = False
        for step in recording.steps:
            if is_stopped and step is not recording.steps[-1]:
                continue
            if step.is_command:
                line = sys.stdin.readline()
                is_stopped = bool(line) and json.loads(line)["type"] == "stop"
                if is_stopped:
                    continue
                if not line or json.loads(line)["type"] != step.value["type"]:
                    print(f"{step.line} was to come, and not {line}", file=sys.stderr)
                    return WRONG
                continue
            if step.seq:
                journal.write(f"{step.line}\n")
                journal.flush()
            print(step.line, flush=True)
    return recording.about["exit_code"]


def attach(journal: Path, after: int) -> int:
    """Write the journal's events after a sequence number to stdout, up to the last event; return the exit code."""
    if not journal.exists():
        return NO_JOURNAL
    written = 0
    while True:
        lines = journal.read_text().split("\n")[:-1]
        for event in map(json.loads, lines[written:]):
            if event["seq"] > after:
                print(json.dumps(event, ensure_ascii=False, separators=(",", ":")), flush=True)
            if event["type"] == "end":
                return 0
        written = len(lines)
        time.sleep(POLL_SECONDS)  # poll, as a growing file gives its readers no notification


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Load recorded runs of a runner of f6f5305, with its output and the host's commands in their order."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from host_client import AgentOptions, Whereabouts
from host_client.telemetry import Root
from tests.compat.files import FIXTURES, RUNS, read_lines

Json = dict[str, Any]


def recorded_names() -> tuple[str, ...]:
    """Return the names of the recorded runs."""
    return tuple(sorted(path.name.partition(".")[0] for path in (FIXTURES / RUNS).glob("*.jsonl.gz")))


NAMES = recorded_names()


@dataclass(frozen=True)
class Step:
    """A line that the runner wrote (``is_command`` False) or a command that the host wrote, without its newline."""

    line: str
    is_command: bool

    @property
    def value(self) -> Json:
        return json.loads(self.line)

    @property
    def seq(self) -> int:
        """Return the event's sequence number, or 0 for a command and for an event without one."""
        return 0 if self.is_command else self.value.get("seq", 0)


@dataclass(frozen=True)
class Recording:
    """One recorded run. ``about`` has the host's side: options, environment, arguments, metadata and whereabouts."""

    name: str
    about: Json
    steps: tuple[Step, ...]

    @property
    def prompt(self) -> str:
        """Return the first turn's prompt."""
        return self.about["prompt"]

    @property
    def options(self) -> AgentOptions:
        return msgspec.convert(self.about["options"], AgentOptions)

    @property
    def root(self) -> Root:
        """Return the session's root span, as the host sent it to the runner."""
        return msgspec.convert(self.about["root"], Root)

    @property
    def whereabouts(self) -> Whereabouts:
        """Return the data by which another host can find the session, as a store holds it."""
        return msgspec.convert(self.about["whereabouts"], Whereabouts)

    @property
    def handed_over_at(self) -> int:
        """Return the sequence number after which another host takes over: the first request, else the first call."""
        asking = [event["seq"] for event in self.events if event["type"] in ("approval_request", "question_request")]
        calling = [event["seq"] for event in self.events if event["type"] == "tool_use"]
        return (asking or calling or [max(1, len(self.journal) // 2)])[0]

    @property
    def events(self) -> list[Json]:
        """Return the events that the runner wrote to stdout."""
        return [step.value for step in self.steps if not step.is_command]

    @property
    def journal(self) -> list[Step]:
        """Return the steps that the runner wrote to its journal: events with a sequence number."""
        return [step for step in self.steps if step.seq]

    @property
    def commands(self) -> list[Json]:
        """Return the commands that the host wrote to stdin, without their random ids."""
        return [without_id(step.value) for step in self.steps if step.is_command]

    @property
    def commands_after(self) -> list[tuple[int, Json]]:
        """Return the commands, each with the sequence number of the last event before it."""
        found: list[tuple[int, Json]] = []
        seq = 0
        for step in self.steps:
            seq = max(seq, step.seq)
            if step.is_command:
                found.append((seq, without_id(step.value)))
        return found

    def taken_over(self) -> Whereabouts:
        """Return the session's whereabouts with an E2B sandbox, as a local sandbox ends with its host."""
        told = self.whereabouts
        return msgspec.structs.replace(told, info=replace(told.info, kind="e2b"))


def without_id(command: Json) -> Json:
    """Return a command without its random id."""
    return {name: value for name, value in command.items() if name != "command_id"}


def load(name: str) -> Recording:
    """Read a recorded run."""
    about, *steps = read_lines(f"{RUNS}/{name}.jsonl.gz")
    return Recording(name, about, tuple(Step(line, kind == "in") for kind, line in steps))

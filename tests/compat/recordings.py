"""A recorded run of a runner of f6f5305, with its input, its output and the places of the host's commands."""

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
    """A line that the runner wrote (``is_command`` False) or a command that its host wrote, without a newline."""

    line: str
    is_command: bool

    @property
    def value(self) -> Json:
        return json.loads(self.line)

    @property
    def seq(self) -> int:
        """Return the event's number, or 0 if it has none."""
        return 0 if self.is_command else self.value.get("seq", 0)


@dataclass(frozen=True)
class Recording:
    """One run. ``about`` is what its host made of the options: environment, arguments, metadata, whereabouts."""

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
        """The session's root span, as it was announced to the runner."""
        return msgspec.convert(self.about["root"], Root)

    @property
    def whereabouts(self) -> Whereabouts:
        """What the host told others of the session, as a store has it."""
        return msgspec.convert(self.about["whereabouts"], Whereabouts)

    @property
    def handed_over_at(self) -> int:
        """The number of the event after which another host takes over: one that asks for something, if any does."""
        asking = [event["seq"] for event in self.events if event["type"] in ("approval_request", "question_request")]
        calling = [event["seq"] for event in self.events if event["type"] == "tool_use"]
        return (asking or calling or [max(1, len(self.journal) // 2)])[0]

    @property
    def events(self) -> list[Json]:
        """Return the lines that the runner wrote to stdout."""
        return [step.value for step in self.steps if not step.is_command]

    @property
    def journal(self) -> list[Step]:
        """Return the lines of its journal, which have a number."""
        return [step for step in self.steps if step.seq]

    @property
    def commands(self) -> list[Json]:
        """What its host wrote to stdin, without the ids by which the runner knows a command that comes again."""
        return [without_id(step.value) for step in self.steps if step.is_command]

    @property
    def commands_after(self) -> list[tuple[int, Json]]:
        """Return the commands, each with the number of the last event before it."""
        found: list[tuple[int, Json]] = []
        seq = 0
        for step in self.steps:
            seq = max(seq, step.seq)
            if step.is_command:
                found.append((seq, without_id(step.value)))
        return found

    def taken_over(self) -> Whereabouts:
        """Return the whereabouts as of a sandbox that outlives its host, which a local one does not."""
        told = self.whereabouts
        return msgspec.structs.replace(told, info=replace(told.info, kind="e2b"))


def without_id(command: Json) -> Json:
    """Return a command without its id, which is random."""
    return {name: value for name, value in command.items() if name != "command_id"}


def load(name: str) -> Recording:
    """Read a recorded run."""
    about, *steps = read_lines(f"{RUNS}/{name}.jsonl.gz")
    return Recording(name, about, tuple(Step(line, kind == "in") for kind, line in steps))

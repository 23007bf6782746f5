"""Compute the cost of the model requests that pass through the gateway, from the API's answers. No I/O.

An answer is a stream of server-sent events or one JSON message. A stream has the usage of the input at its beginning
and that of the output at its end.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .contract.prices import cost

MAX_BUFFERED = 16 * 1024 * 1024
"""Maximum bytes of a stream's line, or of a message, whose usage is read; the API's are far shorter."""

_CHARACTERS_PER_TOKEN = 3


class _Message(msgspec.Struct):
    model: str = ""
    usage: dict[str, Any] = {}


class _Delta(msgspec.Struct):
    text: str = ""
    thinking: str = ""
    partial_json: str = ""


class _Event(_Message):
    type: str = ""
    message: _Message | None = None
    delta: _Delta | None = None


_decoder = msgspec.json.Decoder(_Event)


class Meter:
    """Adds up what a run has spent, and compares it with the run's budget."""

    def __init__(self, budget: float) -> None:
        """Start with nothing spent; ``budget`` is in US dollars."""
        self.budget = budget
        self.spent = 0.0

    @property
    def exhausted(self) -> bool:
        """Return whether the budget is spent."""
        return self.spent >= self.budget


class MeteredAnswer:
    """An answer of the model's API that is being passed on; `cost` is its cost so far."""

    def __init__(self, content_type: str) -> None:
        self._streamed = content_type.startswith("text/event-stream")
        self._buffer = bytearray()
        self._model = ""
        self._usage: dict[str, Any] = {}
        self._written = 0
        self._whole = False

    @property
    def begun(self) -> bool:
        """Return whether the answer has reported the usage of its input."""
        return bool(self._usage)

    @property
    def cost(self) -> float:
        """Return the cost in US dollars; for an incomplete answer, output tokens are estimated from its text."""
        usage = self._usage
        if not self._whole:
            reported = usage.get("output_tokens")
            estimated = self._written // _CHARACTERS_PER_TOKEN
            usage = {**usage, "output_tokens": max(estimated, reported if isinstance(reported, int) else 0)}
        return cost(self._model, usage) if usage else 0.0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the answer's body."""
        self._buffer += chunk
        if self._streamed:
            *lines, rest = self._buffer.split(b"\n")
            self._buffer = rest
            for line in lines:
                if line.startswith(b"data:"):
                    self._event(line[5:])
        if len(self._buffer) > MAX_BUFFERED:
            self._buffer.clear()

    def end(self) -> None:
        """Note that the answer's body is complete."""
        if not self._streamed:
            self._event(self._buffer)
            self._whole = self.begun

    def _event(self, data: bytes | bytearray) -> None:
        try:
            event = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # an error page, or an event of a shape that carries no usage
        message = event.message or event
        self._model = message.model or self._model
        self._usage.update({name: value for name, value in message.usage.items() if value is not None})
        if event.delta is not None:
            self._written += len(event.delta.text) + len(event.delta.thinking) + len(event.delta.partial_json)
        self._whole = self._whole or event.type == "message_delta"

"""What passes through the gateway, in US dollars: usage read from answers of the Messages API. No I/O.

An answer is a stream of server-sent events or one JSON message. Both tell the model and the tokens; a
stream tells the input at its beginning and the output at its end.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .contract.prices import cost

MAX_BUFFERED = 16 * 1024 * 1024
"""Longest line of a stream, or message, that is read for its usage; the API's own are far shorter."""

_CHARACTERS_A_TOKEN = 3


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
    """What a run has spent so far, and how much it may."""

    def __init__(self, budget: float) -> None:
        """``budget`` is in US dollars."""
        self.budget = budget
        self.spent = 0.0

    @property
    def exhausted(self) -> bool:
        """Whether no more may be asked."""
        return self.spent >= self.budget


class MeteredAnswer:
    """One answer on its way; `cost` is what it has cost up to here."""

    def __init__(self, content_type: str) -> None:
        self._streamed = content_type.startswith("text/event-stream")
        self._buffer = bytearray()
        self._model = ""
        self._usage: dict[str, Any] = {}
        self._written = 0
        self._whole = False

    @property
    def begun(self) -> bool:
        """Whether the input's usage is known."""
        return bool(self._usage)

    @property
    def cost(self) -> float:
        """Return the US dollars; for an answer that broke off, the output by the text that came."""
        usage = self._usage
        if not self._whole:
            told = usage.get("output_tokens")
            seen = self._written // _CHARACTERS_A_TOKEN
            usage = {**usage, "output_tokens": max(seen, told if isinstance(told, int) else 0)}
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
        """The body is whole."""
        if not self._streamed:
            self._event(self._buffer)
            self._whole = self.begun

    def _event(self, data: bytes | bytearray) -> None:
        try:
            event = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # an error page, or an event of a shape that carries no usage
        said = event.message or event
        self._model = said.model or self._model
        self._usage.update({name: value for name, value in said.usage.items() if value is not None})
        if event.delta is not None:
            self._written += len(event.delta.text) + len(event.delta.thinking) + len(event.delta.partial_json)
        self._whole = self._whole or event.type == "message_delta"

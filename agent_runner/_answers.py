"""Read the answers of the Messages API while they are passed on: their parts, and what they cost. No I/O.

An answer is a stream of server-sent events or one JSON message. A stream has the usage of the input at its beginning
and that of the output at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .contract.prices import cost

MAX_BUFFERED = 16 * 1024 * 1024
"""Maximum bytes of a stream's line, or of a message, that is read; the API's are far shorter."""

_CHARACTERS_PER_TOKEN = 3


NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Errors of decoding a request or an answer that is not JSON of the expected form."""


class Block(msgspec.Struct):
    """A block of an answer's content."""

    type: str = ""
    text: str = ""
    thinking: Any = None
    id: Any = None
    name: Any = None
    input: Any = None


class Delta(msgspec.Struct):
    """A piece of a block, or at the end of an answer its stop reason."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class ApiError(msgspec.Struct):
    """An error of the API."""

    type: str = ""
    message: str = ""


class Message(msgspec.Struct):
    """A message of the model; in the first event of a stream its content is empty."""

    id: str = ""
    model: str = ""
    usage: dict[str, Any] = {}
    stop_reason: str | None = None
    content: list[Block] = []


class AnswerEvent(Message):
    """An event of a stream, or a whole message as one event."""

    type: str = ""
    message: Message | None = None
    content_block: Block | None = None
    delta: Delta | None = None
    error: ApiError | None = None


_decoder = msgspec.json.Decoder(AnswerEvent)


class ModelAnswer:
    """Reads an answer that is passed on; `cost` is its cost so far."""

    def __init__(self, content_type: str, on_event: Callable[[AnswerEvent], None] | None = None) -> None:
        """Begin to read; ``on_event`` gets each event of a stream, or the whole message as one."""
        self._streamed = content_type.startswith("text/event-stream")
        self._on_event = on_event
        self._buffer = bytearray()
        self._model = ""
        self._usage: dict[str, Any] = {}
        self._written = 0
        self._has_output_usage = False
        self.is_whole = False
        """True when the end of the answer has been read."""

    @property
    def begun(self) -> bool:
        """Return whether the answer has reported the usage of its input."""
        return bool(self._usage)

    @property
    def cost(self) -> float:
        """Return the cost in US dollars; for an incomplete answer, output tokens are estimated from its text."""
        usage = self._usage
        if not self._has_output_usage:
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
                    self._read(line[5:])
        if len(self._buffer) > MAX_BUFFERED:
            self._buffer.clear()

    def end(self) -> None:
        """Note that the answer's body is complete."""
        if not self._streamed:
            self._read(self._buffer)
            self._has_output_usage = self.begun
            self.is_whole = True

    def _read(self, data: bytes | bytearray) -> None:
        try:
            event = _decoder.decode(data)
        except NOT_JSON:
            return  # an error page, or an event of another shape
        message = event.message or event
        self._model = message.model or self._model
        self._usage.update({name: value for name, value in message.usage.items() if value is not None})
        if event.delta is not None:
            self._written += len(event.delta.text) + len(event.delta.thinking) + len(event.delta.partial_json)
        self._has_output_usage = self._has_output_usage or event.type == "message_delta"
        self.is_whole = self.is_whole or event.type == "message_stop"
        if self._on_event is not None:
            self._on_event(event)

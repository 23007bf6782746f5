"""The script of a scripted model: its structure, and the choice of the reply to a request.

A script is YAML or JSON. It holds conversations; a request belongs to the first conversation whose ``when`` text is in
the request's first user message, else to ``main``. Within a conversation the reply is chosen by the number of assistant
messages in the request, so that a retried, interrupted or resumed request gets the same reply again::

    model: claude-sonnet-4-5
    conversations:
      main:
        replies:
          - text: I will look.
            tools:
              - name: Bash
                input: {command: ls}
          - text: Done.
      helper:
        when: Count the files
        replies:
          - text: There are 3.

A request without a matching reply raises `UnexpectedRequestError`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec

MAIN = "main"

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class ScriptError(ValueError):
    """The script cannot be read; the message says why and at which place."""


class UnexpectedRequestError(LookupError):
    """The script has no reply for a request."""


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Token counts of a reply, as in the Messages API: ``input_tokens`` excludes cached tokens."""

    input_tokens: Count = 20
    output_tokens: Count = 10
    cache_read_input_tokens: Count = 0
    cache_creation_input_tokens: Count = 0
    more: dict[str, Any] = {}
    """Further fields, such as ``speed`` or ``cache_creation``."""
    at_end: bool = False
    """Send all counts in ``message_delta`` and zeros in ``message_start``, as some gateways to other models do."""


class ScriptedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``tool_use`` block of a reply. Without an id, one is derived from its place in the script."""

    name: str
    input: dict[str, Any] = {}
    id: str | None = None


class ScriptedFailure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A failure in place of a reply: an HTTP ``status``, a stream ``cut`` halfway, or an ``error`` event in it."""

    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    message: str = "scripted failure"
    retry_after: Seconds | None = None
    cut: bool = False
    error: str | None = None
    times: Annotated[int, msgspec.Meta(ge=1)] = 1

    def __post_init__(self) -> None:
        if sum((self.status is not None, self.cut, self.error is not None)) != 1:
            raise ValueError("a failure needs exactly one of `status`, `cut` or `error`")


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One assistant message of a script: thinking, then text, then tool calls. Times are in seconds."""

    text: str | None = None
    thinking: str | None = None
    tools: tuple[ScriptedTool, ...] = ()
    usage: Usage = Usage()
    stop_reason: str | None = None
    model: str | None = None
    delay: Seconds = 0.0
    """Seconds before the response begins."""
    first_token_after: Seconds = 0.0
    """Seconds between ``message_start`` and the first delta."""
    pace: Seconds = 0.0
    """Seconds between deltas."""
    chunk: Annotated[int, msgspec.Meta(ge=1)] = 20
    """Number of characters in one text delta."""
    pings: int = 1
    fail: tuple[ScriptedFailure, ...] = ()
    """Failures that are sent before this reply, in order."""
    expect: str | None = None
    """Text that the last user message must contain; without it the request is unexpected."""
    otherwise: Reply | None = None
    """The reply if the last user message does not contain ``expect``."""

    def attempts(self) -> list[ScriptedFailure]:
        """Return the failures in order, each as often as its ``times`` says."""
        return [failure for failure in self.fail for _ in range(failure.times)]


class ScriptedConversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The replies to one agent, in order; ``when`` selects the conversation."""

    replies: tuple[Reply, ...]
    when: str | None = None


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The conversations of a scripted model, by name."""

    conversations: dict[str, ScriptedConversation]
    model: str | None = None

    def reply_to(self, request: Mapping[str, Any]) -> tuple[str, int, Reply]:
        """Return the conversation's name, the reply's index and the reply for a Messages API request."""
        messages = cast("Sequence[Mapping[str, Any]]", request.get("messages") or ())
        name = self._conversation_of(messages)
        index = sum(1 for message in messages if message.get("role") == "assistant")
        replies = self.conversations[name].replies
        if index >= len(replies):
            raise UnexpectedRequestError(
                f"conversation {name!r} has {len(replies)} replies, but this is request {index + 1}:"
                f" {text_of(messages[-1])[-300:]!r}"
            )
        reply, last_text = replies[index], _last_user_text(messages)
        while reply.expect is not None and reply.expect not in last_text and reply.otherwise is not None:
            reply = reply.otherwise
        if reply.expect is not None and reply.expect not in last_text:
            raise UnexpectedRequestError(
                f"reply {index + 1} of conversation {name!r} expects {reply.expect!r}, but the request"
                f" ends with {last_text[-300:]!r}"
            )
        return name, index, reply

    def _conversation_of(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if not messages:
            raise UnexpectedRequestError("the request has no messages")
        first = text_of(messages[0])
        for name, conversation in self.conversations.items():
            if conversation.when is not None and conversation.when in first:
                return name
        if MAIN not in self.conversations:
            raise UnexpectedRequestError(f"no conversation matches {first[-300:]!r}")
        return MAIN


def _last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last user message, with tool results; the CLI may add system messages after it."""
    return next((text_of(message) for message in reversed(messages) if message.get("role") == "user"), "")


def text_of(message: Mapping[str, Any]) -> str:
    """Return all text of a Messages API message, including the text of tool results."""
    return "\n".join(_texts(message.get("content")))


def _texts(content: object) -> list[str]:
    if isinstance(content, str):
        return [content]
    if isinstance(content, Mapping):
        block = cast("Mapping[str, Any]", content)
        return _texts(block.get("text")) + _texts(block.get("content"))
    if isinstance(content, Sequence):
        return [text for block in cast("Sequence[object]", content) for text in _texts(block)]
    return []


def parse_script(source: str | bytes) -> Script:
    """Parse YAML or JSON text into a script; raise `ScriptError` with the place of the first error."""
    try:
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            # YAML has no surrogate pairs, so JSON must be parsed as JSON.
            return msgspec.convert(json.loads(source), Script)
        return msgspec.yaml.decode(source, type=Script)
    except (msgspec.DecodeError, ValueError) as error:
        raise ScriptError(f"not a valid script: {error}") from error


def load_script(path: str | Path) -> Script:
    """Read and parse a script file; raise `ScriptError` that names the file."""
    try:
        return parse_script(Path(path).read_bytes())
    except OSError as error:
        raise ScriptError(f"cannot read the script {path}: {error.strerror}") from error
    except ScriptError as error:
        raise ScriptError(f"{path}: {error}") from error

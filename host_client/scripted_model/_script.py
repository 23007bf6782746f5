"""What the scripted model says, as values: the script's shape, and which reply answers which request.

A script is YAML or JSON. It holds conversations; a request belongs to the first conversation whose
``when`` its first user message contains, else to ``main``. Within a conversation the reply is chosen
by the number of assistant messages the request already carries, so that a retried, interrupted or
resumed request gets the same answer as the first time::

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

A request that no reply fits raises `UnexpectedRequestError`: a script never guesses.
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
    """The script cannot be read; the message says where and why."""


class UnexpectedRequestError(LookupError):
    """A request came that the script has no reply for."""


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Token counts as the Messages API reports them: ``input_tokens`` excludes cached tokens."""

    input_tokens: Count = 20
    output_tokens: Count = 10
    cache_read_input_tokens: Count = 0
    cache_creation_input_tokens: Count = 0


class ScriptedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One ``tool_use`` block. Without an id one is derived from its place in the script."""

    name: str
    input: dict[str, Any] = {}
    id: str | None = None


class ScriptedFailure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer that fails: an HTTP ``status``, a stream ``cut`` halfway, or an ``error`` event in it."""

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
    """One assistant message: thinking, then text, then tool calls. Times are in seconds."""

    text: str | None = None
    thinking: str | None = None
    tools: tuple[ScriptedTool, ...] = ()
    usage: Usage = Usage()
    stop_reason: str | None = None
    model: str | None = None
    delay: Seconds = 0.0
    """Before the response begins."""
    first_token_after: Seconds = 0.0
    """Between ``message_start`` and the first delta."""
    pace: Seconds = 0.0
    """Between deltas."""
    chunk: Annotated[int, msgspec.Meta(ge=1)] = 20
    """Characters in one text delta."""
    pings: int = 1
    fail: tuple[ScriptedFailure, ...] = ()
    """Failures answered before this reply, in order."""
    expect: str | None = None
    """Text the request's last message of the user must contain; anything else is an unexpected request."""
    otherwise: Reply | None = None
    """The reply given instead where ``expect`` is not met."""

    def attempts(self) -> list[ScriptedFailure]:
        """Return the failures one by one, each as often as it is to happen."""
        return [failure for failure in self.fail for _ in range(failure.times)]


class ScriptedConversation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The replies to one agent, in order."""

    replies: tuple[Reply, ...]
    when: str | None = None


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a scripted model will say."""

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
                f"conversation {name!r} has {len(replies)} replies, and request {index + 1} came:"
                f" {text_of(messages[-1])[-300:]!r}"
            )
        reply, said = replies[index], _said(messages)
        while reply.expect is not None and reply.expect not in said and reply.otherwise is not None:
            reply = reply.otherwise
        if reply.expect is not None and reply.expect not in said:
            raise UnexpectedRequestError(
                f"reply {index + 1} of conversation {name!r} expects {reply.expect!r}, and the request"
                f" ends with {said[-300:]!r}"
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
            raise UnexpectedRequestError(f"no conversation fits {first[-300:]!r}")
        return MAIN


def _said(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the user's last message, which holds what tools said; the CLI may put its own after it."""
    return next((text_of(message) for message in reversed(messages) if message.get("role") == "user"), "")


def text_of(message: Mapping[str, Any]) -> str:
    """Return all text of a Messages API message, that of tool results included."""
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
    """Parse YAML or JSON text into a script; raise `ScriptError` with the place of the first fault."""
    try:
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            # YAML knows no surrogate pairs, so JSON has to be read as JSON.
            return msgspec.convert(json.loads(source), Script)
        return msgspec.yaml.decode(source, type=Script)
    except (msgspec.DecodeError, ValueError) as error:
        raise ScriptError(f"not a valid script: {error}") from error


def load_script(path: str | Path) -> Script:
    """Read a script file; raise `ScriptError` naming the file."""
    try:
        return parse_script(Path(path).read_bytes())
    except OSError as error:
        raise ScriptError(f"cannot read the script {path}: {error.strerror}") from error
    except ScriptError as error:
        raise ScriptError(f"{path}: {error}") from error

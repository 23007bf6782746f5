"""Write the messages of model requests as JSON in the form of the GenAI conventions, and read them. Pure.

A message is ``{"role": ..., "parts": [...]}``, and a part has a type: ``text``, ``reasoning``, ``tool_call``,
``tool_call_response``, ``server_tool_call``, or that of a block of the Messages API without its content. An ``image``
and a ``document`` have their media type and their size in bytes. The schemas are ``gen-ai-input-messages.json`` and
``gen-ai-output-messages.json`` of the conventions v0.1.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from .attachments import AttachmentView
from .protocol import to_json
from .sanitize import EXCERPT_LENGTH, FULL_LENGTH, Sanitizer, ToolSanitizer, brief

Part = dict[str, Any]
Block = Mapping[str, Any]
"""A block of content in the form of the Messages API."""

MAX_TEXTS = FULL_LENGTH // 16
"""Maximum number of texts in messages that `with_texts` changes, as each takes a call of a user's function.

The parts that `ContentSanitizer` writes have more than 16 characters a text.
"""

_BULKY = frozenset({"content", "new_string", "old_string", "file_text", "new_source", "edits"})
"""Tool arguments that hold file contents, of which a span has an excerpt at most."""

_LEFT_OUT = "[left out]"
_GIT_STATUS = "gitStatus:"
"""The beginning of the part of the CLI's system prompt that is the output of a command."""

_VOCABULARY = frozenset({"type", "role", "finish_reason", "id", "name"})
"""Keys of messages and parts whose values are no content."""

_LEVELS = (1, 3)
"""Depths of messages and of their parts in the JSON. Parts without messages, such as instructions, are at the first."""


def text_message(role: str, text: str, finish_reason: str | None = None) -> str:
    """Return the JSON of one message with one text."""
    return _json([_message(role, [{"type": "text", "content": text}], finish_reason)])


def prompt_message(text: str, attachments: Iterable[AttachmentView]) -> str:
    """Return the JSON of a prompt, in which each attachment is a part without its name and content."""
    parts = [_attached_part(each.kind, each.media_type, each.size) for each in attachments]
    if text or not parts:
        parts.append({"type": "text", "content": text})
    return _json([_message("user", parts)])


def read_text(value: str) -> str | None:
    """Return the text in the JSON of one message that has text, or None for other values."""
    messages = read_messages(value)
    texts = [part.get("content") for each in messages for part in each["parts"] if part.get("type") == "text"]
    if len(messages) != 1 or not texts:
        return None
    return "\n".join(map(str, texts))


def read_messages(value: str) -> list[dict[str, Any]]:
    """Return the messages in a JSON that have a role and parts; an empty list for other values."""
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return []
    return [each for each in _objects(parsed) if isinstance(each.get("role"), str) and _are_objects(each.get("parts"))]


def with_texts(value: str, content: Callable[[str], str], word: Callable[[str], str]) -> str | None:
    """Return the JSON of messages or parts with changed texts, or None if the value is not such JSON.

    ``content`` changes texts, arguments and results; ``word`` changes names, ids, types and keys. All values in the
    JSON that `ContentSanitizer` writes are texts, of which there are at most `MAX_TEXTS`.
    """
    room = MAX_TEXTS

    def changed(value: Any, change: Callable[[str], str], depth: int) -> Any:
        nonlocal room
        if isinstance(value, str):
            room -= 1
            if room < 0:
                raise ValueError(f"more than {MAX_TEXTS} texts")
            return change(value)
        if isinstance(value, list):
            return [changed(item, content, depth + 1) for item in cast("list[Any]", value)]
        if not isinstance(value, dict):
            raise TypeError(f"{value!r} is not a text")
        is_known = depth in _LEVELS
        return {
            (word if is_known else content)(key): changed(
                item, word if is_known and key in _VOCABULARY else content, depth + 1
            )
            for key, item in cast("dict[str, Any]", value).items()
        }

    try:
        parsed = json.loads(value)
        return _json(changed(parsed, content, 0)) if parsed and isinstance(parsed, list) else None
    except (ValueError, TypeError, RecursionError):
        return None


class ContentSanitizer(NamedTuple):
    """Prepare the content of model requests for spans: texts with ``text``, those of tool calls with ``tools``.

    With ``whole_requests`` the reasoning, the history and the instructions are shown; ``prompts`` are the texts of the
    user and for subagents in it. Other texts that are not the model's may hold files or output of commands, which are
    excerpts if ``tools`` shows any. The JSON has at most `FULL_LENGTH` characters, but for a single part.
    """

    text: Sanitizer
    tools: ToolSanitizer | None = None
    whole_requests: bool = False
    prompts: Container[str] = ()

    def output(self, blocks: Sequence[Block], finish_reason: str) -> str:
        """Return the JSON of the model's answer; without ``whole_requests`` its texts are sanitized as one."""
        if not self.whole_requests:
            texts = [str(block.get("text")) for block in blocks if block.get("type") == "text"]
            calls = [block for block in blocks if block.get("type") not in ("text", "thinking")]
            blocks = [*([{"type": "text", "text": "\n".join(texts)}] if texts else []), *calls]
        parts, _ = self._parts(blocks, {}, FULL_LENGTH)
        return _json([_message("assistant", parts, finish_reason)])

    def input(self, messages: object) -> str:
        """Return the JSON of a request's messages: as many of the last parts as fit."""
        history = _objects(messages)
        names = {str(block.get("id")): str(block.get("name")) for each in history for block in _blocks(each)}
        kept: list[dict[str, Any]] = []
        room = FULL_LENGTH
        for message in reversed(history):
            role = str(message.get("role"))
            blocks = (self._of_history(block, role) for block in reversed(_blocks(message)))
            parts, room = self._parts(blocks, names, room, is_first=not kept)
            if parts:
                kept.insert(0, _message(_role(role, parts), parts[::-1]))
                room -= len(_json(_message(role, []))) + 1
            if room <= 0:
                break
        return _json(kept)

    def instructions(self, system: object) -> str:
        """Return the JSON of a request's system prompt."""
        blocks = [{"type": "text", "text": system}] if isinstance(system, str) else _objects(system)
        return _json(self._parts(map(self._without_git_status, blocks), {}, FULL_LENGTH)[0])

    def _parts(
        self, blocks: Iterable[Block], names: Mapping[str, str], room: int, *, is_first: bool = True
    ) -> tuple[list[Part], int]:
        """Return the parts of the blocks that fit into a number of characters, and the characters that are left."""
        parts: list[Part] = []
        for block in blocks:
            part = self._part(block, names)
            room -= len(_json(part)) + 1
            if room < 0 and (parts or not is_first):
                break
            parts.append(part)
        return parts, room

    def _of_history(self, block: Block, role: str) -> Block:
        """Return a block of a request's message, without files and output of commands that the CLI has put into it."""
        text = block.get("text")
        if role == "assistant" or not isinstance(text, str) or text.strip() in self.prompts:
            return block
        return {"type": "text", "text": self._excerpt(text)}

    def _without_git_status(self, block: Block) -> Block:
        before, marker, status = str(block.get("text") or "").partition(_GIT_STATUS)
        return {"type": "text", "text": f"{before}{marker} {self._excerpt(status)}"} if marker else block

    def _excerpt(self, text: str) -> str:
        return self.tools.excerpt(text) if self.tools is not None and self.tools.shows_excerpts else _LEFT_OUT

    def _part(self, block: Block, names: Mapping[str, str]) -> Part:
        kind = str(block.get("type"))
        match kind:
            case "text":
                return {"type": "text", "content": self.text(str(block.get("text")))}
            case "thinking":
                return {"type": "reasoning", "content": self.text(str(block.get("thinking")))}
            case "tool_use":
                return {"type": "tool_call", **self._call(block)}
            case "server_tool_use":
                call = self._call(block)
                return {"type": "server_tool_call", **call, "server_tool_call": {"type": call["name"]}}
            case "tool_result":
                tool_id = str(block.get("tool_use_id"))
                shown = tool_result(names.get(tool_id, ""), block.get("content"), self.tools)
                return {"type": "tool_call_response", "id": brief(tool_id), "response": shown or _LEFT_OUT}
            case "image" | "document" if isinstance(source := block.get("source"), dict):
                return _attached(kind, cast("dict[str, Any]", source))
            case _:
                return {"type": brief(kind)}

    def _call(self, block: Block) -> Part:
        part: Part = {"id": brief(str(block.get("id"))), "name": brief(str(block.get("name")))}
        given = block.get("input")
        if self.tools is not None and isinstance(given, dict):
            part["arguments"] = tool_arguments(cast("dict[str, Any]", given), self.tools)
        return part


def _attached(kind: str, source: Mapping[str, Any]) -> Part:
    """Return the part of an image or a document in a request; one that is only named by a URL has no size."""
    media_type, data = source.get("media_type"), source.get("data")
    size = None
    if isinstance(data, str):
        is_encoded = source.get("type") == "base64"
        size = len(data) * 3 // 4 - data[-2:].count("=") if is_encoded else len(data.encode("utf-8", "replace"))
    return _attached_part(kind, str(media_type) if media_type else None, size)


def _attached_part(kind: str, media_type: str | None, size: int | None) -> Part:
    # The size is a text, as `with_texts` also of older hosts takes no numbers.
    known = {"mime_type": brief(media_type) if media_type else None, "size": str(size) if size is not None else None}
    return {"type": kind, **{name: value for name, value in known.items() if value is not None}}


def tool_definitions(tools: object) -> str:
    """Return the JSON of a request's tools: their types and names, as many as fit into `FULL_LENGTH` characters."""
    shown: list[dict[str, str]] = []
    room = FULL_LENGTH
    for tool in _objects(tools):
        shown.append({"type": brief(str(tool.get("type") or "function")), "name": brief(str(tool.get("name")))})
        room -= len(_json(shown[-1])) + 1
        if room < 0:
            shown.pop()
            break
    return _json(shown)


def tool_arguments(tool_input: Mapping[str, Any], sanitizer: ToolSanitizer) -> str:
    """Return the sanitized JSON of a tool's arguments, with excerpts of file contents at most."""
    # Together the excerpts have no more than `EXCERPT_LENGTH` characters.
    limit = EXCERPT_LENGTH // max(1, len(_BULKY & tool_input.keys()))
    shown = {key: _argument(key, value, sanitizer, limit) for key, value in tool_input.items()}
    return sanitizer.sanitize(to_json(shown).decode())


def _argument(key: str, value: object, sanitizer: ToolSanitizer, limit: int) -> object:
    if key in _BULKY:
        return sanitizer.excerpt(_as_text(value), limit) if sanitizer.shows_excerpts else _LEFT_OUT
    if key == "command" and isinstance(value, str) and len(value) > EXCERPT_LENGTH:
        return sanitizer.excerpt(value)  # it may write a file
    return value


def tool_result(name: str, result: object, sanitizer: ToolSanitizer | None) -> str | None:
    """Return a tool's sanitized result, or None if the sanitizer shows nothing of it.

    The result of an MCP tool is whole. Those of other tools hold file contents or command output, and are excerpts, if
    the sanitizer shows any.
    """
    if sanitizer is None:
        return None
    if name.startswith("mcp__"):
        return sanitizer.sanitize(to_json(result).decode())
    return sanitizer.excerpt(_as_text(result)) if sanitizer.shows_excerpts else None


def _message(role: str, parts: list[Part], finish_reason: str | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": role, "parts": parts}
    if finish_reason is not None:
        message["finish_reason"] = finish_reason
    return message


def _role(role: str, parts: Sequence[Part]) -> str:
    """Return a message's role; the Messages API has the results of tools in messages of the user."""
    return "tool" if all(part["type"] == "tool_call_response" for part in parts) else role


def _blocks(message: Mapping[str, Any]) -> list[Block]:
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(_objects(content))


def _objects(value: object) -> list[dict[str, Any]]:
    """Return the objects in a list; an empty list for any other value."""
    items = cast("list[Any]", value) if isinstance(value, list) else []
    return [cast("dict[str, Any]", item) for item in items if isinstance(item, dict)]


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in cast("list[Any]", value))


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else to_json(value).decode()


def _json(value: object) -> str:
    return to_json(value).decode()

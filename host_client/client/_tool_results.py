"""The values that functions of the host return, as results of tools and outputs of hooks. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from agent_runner.contract.attachments import IMAGES, media_type_of

_NOTHING = "Done."
"""The text for None; the model's API refuses an empty one."""


def tool_result(value: Any) -> dict[str, Any]:
    """Return the result of a tool for a value that its function returned; raise `ValueError` if it has none.

    A text and an image (the bytes of a PNG, JPEG, GIF or WebP) are a block each, and a list with an image in it is a
    block for each item. A dict whose ``content`` is a list of MCP's blocks is a whole result. Any other value is JSON.
    """
    if isinstance(value, Mapping):
        whole = cast("Mapping[str, Any]", value)
        if _are_blocks(whole.get("content")):
            is_error = bool(whole.get("is_error") or whole.get("isError"))
            return {"content": _json_value(whole["content"]), **({"is_error": True} if is_error else {})}
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        if any(isinstance(each, bytes) for each in items):
            return {"content": [_block(each) for each in items]}
    return {"content": [_block(value)]}


def _are_blocks(content: object) -> bool:
    if not isinstance(content, list):
        return False
    return all(isinstance(each, Mapping) and "type" in each for each in cast("list[object]", content))


def _block(value: Any) -> dict[str, Any]:
    if isinstance(value, bytes):
        media_type = media_type_of(value)
        if media_type not in IMAGES:
            raise ValueError("bytes are the content of a PNG, JPEG, GIF or WebP image; return other content as text")
        return {"type": "image", "data": base64.b64encode(value).decode(), "mimeType": media_type}
    if value is None:
        return {"type": "text", "text": _NOTHING}
    return {"type": "text", "text": value if isinstance(value, str) else _encoded(value).decode()}


def hook_output(value: object) -> dict[str, Any]:
    """Return the output of a hook for what its function returned; raise `ValueError` if it is not a dict or None."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return _json_value(cast("Mapping[str, Any]", value))
    raise ValueError(f"a hook returns a dict, not {type(value).__name__}")


def _json_value(value: object) -> Any:
    return msgspec.json.decode(_encoded(value))


def _encoded(value: object) -> bytes:
    try:
        return msgspec.json.encode(value, enc_hook=_of_pydantic)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"it cannot be sent as JSON: {error}") from None


def _of_pydantic(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no form in JSON")

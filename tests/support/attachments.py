"""Files that prompts have as attachments, small or of a given size."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n%%EOF\n"


def png(width: int, height: int) -> bytes:
    """Return a picture whose rows get brighter from left to right."""
    row = b"\0" + bytes(column * 255 // width for column in range(width))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(row * height)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def size_of(picture: bytes) -> tuple[int, int]:
    """Return the width and the height of a PNG."""
    return struct.unpack(">II", picture[16:24])


PNG = png(10, 10)


def sent_blocks(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the user's last message in a request to the Messages API, without what the CLI adds to it."""
    last = [message for message in body["messages"] if message["role"] == "user"][-1]
    blocks = [dict(block) for block in last["content"]]
    for block in blocks:
        block.pop("cache_control", None)
    return [
        block for block in blocks if not str(block.get("text")).startswith(("<system-reminder>", "[Image: source:"))
    ]


def image(data: bytes) -> dict[str, Any]:
    """Return a PNG as a block of the Messages API."""
    return {"type": "image", "source": _base64("image/png", data)}


def pdf(data: bytes, title: str) -> dict[str, Any]:
    """Return a PDF as a block of the Messages API."""
    return {"type": "document", "source": _base64("application/pdf", data), "title": title}


def document(text: str, title: str) -> dict[str, Any]:
    """Return a text document as a block of the Messages API."""
    return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}, "title": title}


def _base64(media_type: str, data: bytes) -> dict[str, str]:
    return {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}

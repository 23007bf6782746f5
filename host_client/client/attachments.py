"""Attachments of a prompt, from files and bytes: images, PDFs and texts."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from agent_runner.contract import attachments as contract
from agent_runner.contract.protocol import Command, Prompt, encode
from host_client.errors import ConfigurationError

MAX_PROMPT_BYTES = Command.MAX_BYTES - 64 * 1024
"""Maximum length of a prompt as JSON, without the ids that are added when it is sent."""


@dataclass(frozen=True)
class Attachment:
    """The content of an image, a PDF or a UTF-8 text, and its name, which the model is shown for a document."""

    data: bytes
    name: str | None = None


Attachable = Path | bytes | Attachment


def are_attachable(value: object) -> bool:
    """Return whether a value is a list or tuple of paths, bytes and attachments."""
    return isinstance(value, list | tuple) and all(map(_is_attachable, cast("Sequence[object]", value)))


def _is_attachable(value: object) -> bool:
    match value:
        case Path() | bytes():
            return True
        case Attachment(data=bytes(), name=str() | None):
            return True
        case _:
            return False


async def prompt_of(text: str, attachments: Sequence[Attachable]) -> Prompt:
    """Return a prompt with its attachments; see `read_prompt`."""
    # A prompt without files must not wait for a thread, so that prompts that follow it cannot overtake it.
    return await asyncio.to_thread(read_prompt, text, attachments) if attachments else read_prompt(text, ())


def read_prompt(text: str, attachments: Sequence[Attachable]) -> Prompt:
    """Read the attachments of a prompt and return it. Raise `ConfigurationError` if it cannot be sent."""
    try:
        return _read_prompt(text, attachments)
    except contract.AttachmentError as error:
        raise ConfigurationError(str(error)) from None


def _read_prompt(text: str, attachments: Sequence[Attachable]) -> Prompt:
    blocks: list[contract.AttachedBlock] = []
    for each in attachments:
        blocks.append(_block_of(each))
        contract.check(blocks)  # before the next file is read
    prompt = Prompt(text=text, content=tuple(blocks))
    if (size := len(encode(prompt))) > MAX_PROMPT_BYTES:
        raise contract.AttachmentError(
            f"the prompt has {size:,} bytes as JSON, at most {MAX_PROMPT_BYTES:,} can be sent: shorten its texts"
        )
    return prompt


def _block_of(attachment: Attachable) -> contract.AttachedBlock:
    match attachment:
        case Path():
            return contract.block_of(_content(attachment), attachment.name)
        case Attachment():
            return contract.block_of(attachment.data, attachment.name)
        case _:
            return contract.block_of(attachment)


def _content(path: Path) -> bytes:
    """Return a file's content; raise `AttachmentError` if it is larger than all attachments of a prompt may be."""
    shown = f"the attachment {str(path)!r}"
    try:
        content = _beginning(path)
    except contract.AttachmentError as error:
        raise contract.AttachmentError(f"{shown} {error}") from None
    except (OSError, ValueError) as error:  # ValueError: such as a null character in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise contract.AttachmentError(f"{shown} cannot be read: {reason}") from None
    if len(content) > contract.MAX_BYTES:
        raise contract.AttachmentError(
            f"{shown} is larger than {contract.MAX_BYTES:,} bytes, as much as all attachments of a prompt may have"
        )
    return content


def _beginning(path: Path) -> bytes:
    """Return as much of a file as tells whether it is too large."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):  # reading a pipe may take forever
        raise contract.AttachmentError(f"is {'a directory' if stat.S_ISDIR(mode) else 'no regular file'}")
    with path.open("rb") as file:
        return file.read(contract.MAX_BYTES + 1)

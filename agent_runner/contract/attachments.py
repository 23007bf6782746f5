"""Images and documents in a prompt: content blocks of the Messages API, made from files and described for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, cast, get_args

import msgspec

MAX_BYTES = 10 * 1024 * 1024
"""Maximum size of all attachments of a prompt, before they are encoded; a command of a runner has at most 16 MiB."""

MAX_TEXT_BYTES = 512 * 1024
"""Maximum size of all text documents of a prompt. More does not fit into a model's context, and Claude Code would keep
a document that was refused for this and send it again with each further prompt."""

MAX_ATTACHMENTS = 20
MAX_NAME = 200
"""Maximum number of characters of an attachment's name; a longer name is cut."""

ImageType = Literal["image/png", "image/jpeg", "image/gif", "image/webp"]
IMAGES: tuple[ImageType, ...] = get_args(ImageType)
Title = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
PDF = "application/pdf"
TEXT = "text/plain"

_BEGINNINGS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", PDF),
)


class AttachmentError(ValueError):
    """An attachment cannot be sent; the message says which one, why and what to do."""


class ImageSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="base64"):
    """The content of an image, in base64."""

    media_type: ImageType
    data: bytes

    def __post_init__(self) -> None:
        """Refuse data of another type."""
        _check_type(self.data, self.media_type)


class PdfSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="base64"):
    """The content of a PDF, in base64."""

    media_type: Literal["application/pdf"] = PDF
    data: bytes

    def __post_init__(self) -> None:
        """Refuse data of another type."""
        _check_type(self.data, self.media_type)


class TextSource(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """The content of a text document."""

    media_type: Literal["text/plain"] = TEXT
    data: str

    def __post_init__(self) -> None:
        """Refuse an empty text."""
        if not self.data:
            raise AttachmentError("an attachment is empty")


class ImageBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="image", omit_defaults=True):
    """An image in a prompt. The model does not get its ``title``, which the Messages API has for documents only."""

    source: ImageSource
    title: Title | None = None


class DocumentBlock(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="document", omit_defaults=True):
    """A PDF or a text document in a prompt; ``title`` is shown to the model."""

    source: PdfSource | TextSource
    title: Title | None = None


AttachedBlock = ImageBlock | DocumentBlock


class AttachmentView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An attachment without its content; ``size`` is in bytes."""

    media_type: str
    size: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    name: str | None = None

    @property
    def kind(self) -> str:
        """Return the type of its block, ``image`` or ``document``."""
        return "image" if self.media_type in IMAGES else "document"


def media_type_of(data: bytes) -> str | None:
    """Return the media type of an image, a PDF or a UTF-8 text that the Messages API takes; None for other content."""
    for beginning, media_type in _BEGINNINGS:
        if data.startswith(beginning):
            return media_type
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else TEXT


def _check_type(data: bytes, media_type: str) -> None:
    if media_type_of(data) != media_type:
        raise AttachmentError(f"the data of an attachment is not {media_type}")


def block_of(data: bytes, name: str | None = None) -> AttachedBlock:
    """Return the content block of a file; ``name``, in one line, becomes its title. Raise `AttachmentError`."""
    shown = f"the attachment {name!r}" if name else "an attachment"
    if not data:
        raise AttachmentError(f"{shown} is empty")
    media_type = media_type_of(data)
    title = "".join(each if each.isprintable() else " " for each in name[:MAX_NAME]) if name else None
    if media_type is None:
        raise AttachmentError(f"{shown} is none of PNG, JPEG, GIF, WebP, PDF and UTF-8 text: convert it to one of them")
    if media_type == TEXT:
        return DocumentBlock(source=TextSource(data=data.decode()), title=title)
    if media_type == PDF:
        return DocumentBlock(source=PdfSource(data=data), title=title)
    return ImageBlock(source=ImageSource(media_type=cast("ImageType", media_type), data=data), title=title)


def check(blocks: Sequence[AttachedBlock]) -> None:
    """Raise `AttachmentError` if the blocks are more than a prompt may have."""
    if len(blocks) > MAX_ATTACHMENTS:
        raise AttachmentError(f"a prompt has at most {MAX_ATTACHMENTS} attachments, not {len(blocks)}")
    views = [view_of(block) for block in blocks]
    size = sum(view.size for view in views)
    if size > MAX_BYTES:
        raise AttachmentError(f"the attachments of a prompt have at most {MAX_BYTES:,} bytes together, not {size:,}")
    texts = sum(view.size for view in views if view.media_type == TEXT)
    if texts > MAX_TEXT_BYTES:
        raise AttachmentError(
            f"the texts attached to a prompt have at most {MAX_TEXT_BYTES:,} bytes together, not {texts:,}: put larger"
            " files into the sandbox and name them in the prompt"
        )


def view_of(block: AttachedBlock) -> AttachmentView:
    """Describe a block without its content."""
    data = block.source.data
    size = len(data.encode("utf-8", "replace")) if isinstance(data, str) else len(data)
    return AttachmentView(media_type=block.source.media_type, size=size, name=block.title)

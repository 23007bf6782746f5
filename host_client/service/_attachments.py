"""Files that tenants upload and attachments of prompts: their checks, and where the store has them.

An upload is stored for `UPLOAD_SECONDS`. A prompt gets copies of its own, under ids that are made of the session's and
the turn's, for as long as a closed session is kept.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from agent_runner.contract.attachments import MAX_BYTES, MAX_NAME, AttachmentError, block_of, check, view_of
from agent_runner.contract.sanitize import single_line
from host_client.client.attachments import Attachment, prompt_of
from host_client.errors import ConfigurationError
from host_client.store.base import DAY_SECONDS, FilesFullError, SessionRecord, Store, StoredFile

from ._events import PromptAttachment
from ._models import AttachmentBody
from ._problems import ProblemError

UPLOAD_SECONDS = float(DAY_SECONDS)
"""Seconds for which an upload is stored."""


def file_of(data: bytes, name: str | None) -> StoredFile:
    """Return a file as it is stored; raise `AttachmentError` if no prompt can have it."""
    block = block_of(data, single_line(name, MAX_NAME) if name else None)
    check([block])
    view = view_of(block)
    return StoredFile(data=data, media_type=view.media_type, name=view.name)


async def files_of(store: Store, tenant_id: str, text: str, bodies: Sequence[AttachmentBody]) -> list[StoredFile]:
    """Return the files of a prompt's attachments; ``tenant_id`` is the uploader's. Raise `ProblemError` (422)."""
    files: list[StoredFile] = []
    for index, body in enumerate(bodies):
        try:
            files.append(await _file_of(store, tenant_id, body))
        except AttachmentError as error:
            raise _invalid(f"body.attachments.{index}", str(error)) from None
        if sum(len(each.data) for each in files) > MAX_BYTES:  # before the next one is read
            break
    if not files:
        return files
    try:
        await prompt_of(text, [Attachment(each.data, each.name) for each in files])
    except ConfigurationError as error:
        raise _invalid("body.attachments", str(error)) from None
    return files


async def _file_of(store: Store, tenant_id: str, body: AttachmentBody) -> StoredFile:
    if body.file_id is not None:
        file = await store.file(tenant_id, body.file_id)
        if file is None:
            raise AttachmentError(f"there is no file {body.file_id}, or no longer: upload it again")
        return file
    try:
        data = base64.b64decode(body.data or "", validate=True)
    except (binascii.Error, ValueError):  # ValueError: it has characters beyond ASCII
        raise AttachmentError("the data is not base64") from None
    return file_of(data, body.name)


def _invalid(where: str, what: str) -> ProblemError:
    return ProblemError("invalid", what, errors=[{"where": where, "what": what}])


async def attach(
    store: Store,
    record: SessionRecord,
    turn_id: str,
    files: Sequence[StoredFile],
    seconds: float,
    most_bytes: int | None,
) -> tuple[PromptAttachment, ...]:
    """Store the files of a turn for some time, each time under the same ids; raise `FilesFullError`."""
    attachments = tuple(
        PromptAttachment(id=f"{turn_id}.{index}", media_type=each.media_type, size=len(each.data), name=each.name)
        for index, each in enumerate(files)
    )
    try:
        for attachment, file in zip(attachments, files, strict=True):
            await store.put_file(
                record.tenant_id, _stored_id(record, attachment.id), file, seconds, most_bytes=most_bytes
            )
    except FilesFullError:
        await detach(store, record, attachments)
        raise
    return attachments


async def detach(store: Store, record: SessionRecord, attachments: Sequence[PromptAttachment]) -> None:
    """Remove the files of a turn that will not begin."""
    if attachments:
        await store.remove_files(record.tenant_id, [_stored_id(record, each.id) for each in attachments])


async def attached(store: Store, record: SessionRecord, attachment_id: str) -> StoredFile | None:
    """Return an attachment of a session's prompts; None if there is none or it is no longer stored."""
    return await store.file(record.tenant_id, _stored_id(record, attachment_id))


def _stored_id(record: SessionRecord, attachment_id: str) -> str:
    return f"{record.id}/{attachment_id}"

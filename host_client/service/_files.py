"""The routes of files that prompts can have, and of the attachments of a session's prompts."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from agent_runner.contract.attachments import TEXT, AttachmentError

from ._api import IdempotencyKey, SessionId, TheApi, tenant_of
from ._attachments import UPLOAD_SECONDS, attached, file_of
from ._auth import Operator, Reader
from ._body import JsonRoute
from ._downloads import FileAnswer, disposition
from ._limits import RecordedAnswer, check_upload
from ._models import FileView
from ._problems import EVERYWHERE, PROBLEM_RESPONSES, WITH_BODY, ProblemError
from ._service import NotFoundError

router = APIRouter(prefix="/api", tags=["files"], route_class=JsonRoute, responses=PROBLEM_RESPONSES(*EVERYWHERE))

_CONTENT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/files",
    status_code=201,
    response_model=FileView,
    responses=PROBLEM_RESPONSES(*WITH_BODY, "too-many-files", "too-many-uploads", "key-in-use", "key-reused"),
    openapi_extra=_CONTENT,
)
async def upload_file(
    request: Request,
    api: TheApi,
    principal: Operator,
    name: Annotated[str | None, Query(max_length=1000, description="The model is shown a document's name.")] = None,
    key: IdempotencyKey = None,
) -> Response:
    """Store an image, a PDF or a UTF-8 text for a day, for prompts that name its `file_id`."""
    tenant_id = tenant_of(principal)

    async def store(file_id: str | None) -> RecordedAnswer:
        await check_upload(api.service.store, tenant_id, api.limits)
        try:
            file = file_of(await request.body(), name)
        except AttachmentError as error:
            raise ProblemError("invalid", str(error)) from None
        file_id = file_id or str(uuid.uuid4())
        expires_at = time.time() + UPLOAD_SECONDS
        most_bytes = api.limits.file_bytes_per_tenant
        await api.service.store.put_file(tenant_id, file_id, file, UPLOAD_SECONDS, most_bytes=most_bytes)
        view = FileView(
            file_id=file_id, media_type=file.media_type, size=len(file.data), name=file.name, expires_at=expires_at
        )
        return RecordedAnswer(status=201, body=view.model_dump_json().encode())

    return await api.once(request, principal, key, store)


@router.get(
    "/sessions/{session_id}/attachments/{attachment_id}",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}},
        **PROBLEM_RESPONSES("not-found", "too-many-downloads"),
    },
)
async def get_attachment(
    api: TheApi, session_id: SessionId, attachment_id: Annotated[str, Path(max_length=64)], principal: Reader
) -> Response:
    """Return an attachment of the session's prompts, by its id in the `prompt` event."""
    stored = await api.stored(session_id, principal)

    async def read() -> bytes:
        file = await attached(api.service.store, stored.record, attachment_id)
        if file is None:
            raise NotFoundError(f"there is no attachment {attachment_id}, or no longer")
        answer.headers["content-type"] = f"{TEXT}; charset=utf-8" if file.media_type == TEXT else file.media_type
        answer.headers["content-disposition"] = disposition(file.name or attachment_id)
        return file.data

    answer = FileAnswer(read, api.attachments, {})
    return answer

"""The forms of answers of the API and of envd."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse, Response


class ApiError(Exception):
    """An error answer of the API."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error as the REST API writes it."""
    return JSONResponse({"code": status, "message": message}, status, headers)


def proxy_response(sandbox_id: str, message: str, **more: Any) -> Response:
    """Return the 502 of the proxy in front of envd."""
    return JSONResponse({"sandboxId": sandbox_id, "message": message, **more, "code": 502}, 502)


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def stamp(moment: datetime) -> str:
    """Return a time as the API writes it."""
    return moment.isoformat().replace("+00:00", "Z")

"""Envd's files: uploads, downloads and the filesystem calls, on the files of this machine."""

from __future__ import annotations

import grp
import gzip
import os
import pwd
import shutil
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from .accounts import DEFAULT_USER, Account, basic_name
from .answers import error_response, stamp
from .connect_protocol import RpcError
from .image import Image
from .sandboxes import Sandbox


class Files:
    """Answers the requests for files; relative paths are in the account's home, the image's where it says."""

    def __init__(self, image: Image) -> None:
        self._image = image

    async def read(self, sandbox: Sandbox, request: Request) -> Response:
        """Send a file."""
        path = resolve(_account(sandbox, request), self._image.located(request.query_params.get("path", "")))
        if not path.exists():
            return error_response(404, f"path '{path}' does not exist")
        if path.is_dir():
            return error_response(400, f"path '{path}' is a directory")
        return FileResponse(path)

    async def write(self, sandbox: Sandbox, request: Request) -> Response:
        """Write the file of an octet stream, or the files of a form."""
        account = _account(sandbox, request)
        given = self._image.located(request.query_params.get("path", ""))
        written: list[Path] = []
        if request.headers.get("content-type", "").startswith("application/octet-stream"):
            body = await request.body()
            if request.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            written.append(_write(account, given or "", body))
        else:
            async with request.form() as form:
                for part in form.getlist("file"):
                    assert isinstance(part, UploadFile)
                    written.append(_write(account, given or part.filename or "", await part.read()))
        return JSONResponse([{"name": path.name, "type": "file", "path": str(path)} for path in written])

    async def call(self, sandbox: Sandbox, request: Request) -> Response:
        """Answer one filesystem call."""
        calls = {
            "Stat": _stat,
            "MakeDir": _make_dir,
            "Move": _move,
            "ListDir": _list_dir,
            "Remove": _remove,
        }
        method = request.path_params["method"]
        if method not in calls:
            raise RpcError("unimplemented", f"no method {method}")
        account = sandbox.accounts.find(basic_name(request.headers.get("authorization", "")))
        return JSONResponse(calls[method](account, await request.json()))


def _account(sandbox: Sandbox, request: Request) -> Account:
    return sandbox.accounts.find(request.query_params.get("username", DEFAULT_USER))


def resolve(account: Account, path: str) -> Path:
    """Return the path on this machine."""
    if path == "~" or path.startswith("~/"):
        path = path[2:]
    return Path(os.path.normpath(account.home / path))


def _write(account: Account, given: str, data: bytes) -> Path:
    path = resolve(account, given)
    if path.is_dir():
        raise RpcError("invalid_argument", f"path is a directory: {path}")
    _make_parents(account, path.parent)
    path.write_bytes(data)
    account.own(path)
    return path


def _make_parents(account: Account, path: Path) -> None:
    """Make a directory and those above it; the new ones are the account's."""
    missing = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for parent in missing:
        account.own(parent)


def _existing(account: Account, given: str) -> Path:
    path = resolve(account, given)
    if not path.exists() and not path.is_symlink():
        raise RpcError("not_found", f"path not found: {path}")
    return path


def _stat(account: Account, message: dict[str, Any]) -> dict[str, Any]:
    return {"entry": _entry(_existing(account, message.get("path", "")))}


def _make_dir(account: Account, message: dict[str, Any]) -> dict[str, Any]:
    path = resolve(account, message.get("path", ""))
    if path.is_dir():
        raise RpcError("already_exists", f"directory already exists: {path}")
    if path.exists():
        raise RpcError("invalid_argument", f"path already exists but it is not a directory: {path}")
    _make_parents(account, path)
    return {"entry": _entry(path)}


def _move(account: Account, message: dict[str, Any]) -> dict[str, Any]:
    source = _existing(account, message.get("source", ""))
    target = resolve(account, message.get("destination", ""))
    _make_parents(account, target.parent)
    source.rename(target)
    return {"entry": _entry(target)}


def _list_dir(account: Account, message: dict[str, Any]) -> dict[str, Any]:
    path = _existing(account, message.get("path", ""))
    if not path.is_dir():
        raise RpcError("invalid_argument", f"path is not a directory: {path}")
    depth = int(message.get("depth") or 1)
    return {"entries": [_entry(entry) for entry in _walk(path, depth)]}


def _walk(path: Path, depth: int) -> Iterator[Path]:
    for entry in sorted(path.iterdir()):
        yield entry
        if depth > 1 and entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry, depth - 1)


def _remove(account: Account, message: dict[str, Any]) -> dict[str, Any]:
    path = resolve(account, message.get("path", ""))
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return {}


def _entry(path: Path) -> dict[str, Any]:
    info = path.lstat()
    kind = "FILE_TYPE_DIRECTORY" if path.is_dir() else "FILE_TYPE_FILE"
    entry: dict[str, Any] = {
        "name": path.name,
        "type": kind,
        "path": str(path),
        "size": str(info.st_size),
        "mode": stat.S_IMODE(info.st_mode),
        "permissions": stat.filemode(info.st_mode),
        "owner": _name(lambda: pwd.getpwuid(info.st_uid).pw_name, info.st_uid),
        "group": _name(lambda: grp.getgrgid(info.st_gid).gr_name, info.st_gid),
        "modifiedTime": stamp(datetime.fromtimestamp(info.st_mtime, UTC)),
    }
    if path.is_symlink():
        entry |= {"isSymlink": True, "symlinkTarget": str(path.resolve())}
    return entry


def _name(look_up: Callable[[], str], number: int) -> str:
    try:
        return look_up()
    except KeyError:
        return str(number)

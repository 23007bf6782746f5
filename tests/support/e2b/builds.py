"""Builds of templates, as the SDK and CLI 2 (steps and tarballs) and CLI 1 (an image) ask for them.

Nothing is built: what was asked for is kept, a log is told, and the template exists from then on.
"""

from __future__ import annotations

import io
import secrets
import tarfile
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .answers import ApiError, stamp, utc_now
from .sandboxes import Template
from .templates import TEAM, TemplateStore

PAGE = 100
"""Log entries in one answer, at most."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a build: its log, some lines per poll, and an error with its step, or none."""

    lines: tuple[str, ...] = ("[base] FROM", "[builder 1/2] RUN", "[builder 2/2] COPY", "Build finished")
    lines_a_poll: int = 2
    error: str | None = None
    step: str | None = None


@dataclass
class Build:
    """A build, with the bodies of its ``request`` and its ``start``."""

    template_id: str
    name: str
    tags: tuple[str, ...]
    request: dict[str, Any]
    outcome: Outcome
    files: dict[str, bytes]
    """The uploaded tarballs, by the hash that a COPY step names."""
    build_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    start: dict[str, Any] | None = None
    """``fromImage``, ``steps``, ``startCmd`` and ``readyCmd``; empty for CLI 1, None before the start."""
    told: int = 0

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps, as posted."""
        return list((self.start or {}).get("steps") or [])

    @property
    def from_image(self) -> str | None:
        """The image it begins from."""
        return (self.start or {}).get("fromImage")

    @property
    def start_cmd(self) -> str | None:
        """The command that every sandbox starts with."""
        return {**self.request, **(self.start or {})}.get("startCmd")

    @property
    def ready_cmd(self) -> str | None:
        """The command that says when it is ready."""
        return {**self.request, **(self.start or {})}.get("readyCmd")

    @property
    def cpu_count(self) -> int | None:
        """Cores asked for."""
        return self.request.get("cpuCount")

    @property
    def memory_mb(self) -> int | None:
        """Memory asked for."""
        return self.request.get("memoryMB")

    @property
    def dockerfile(self) -> str | None:
        """The Dockerfile that CLI 1 sends along."""
        return self.request.get("dockerfile")

    @property
    def status(self) -> Literal["waiting", "building", "ready", "error"]:
        """Return the build's status."""
        if self.start is None:
            return "waiting"
        if self.told < len(self.outcome.lines):
            return "building"
        return "ready" if self.outcome.error is None else "error"

    def names_in(self, files_hash: str) -> list[str]:
        """Return the paths in a tarball."""
        with tarfile.open(fileobj=io.BytesIO(self.files[files_hash])) as tar:
            return tar.getnames()

    def uploaded(self) -> list[str]:
        """Return the paths in all of its tarballs."""
        return sorted(name for files_hash in self.files for name in self.names_in(files_hash))


class BuildsApi:
    """Answers the requests for builds."""

    def __init__(self, templates: TemplateStore) -> None:
        self._templates = templates
        self.builds: list[Build] = []
        self.outcome = Outcome()

    def routes(self) -> list[Route]:
        """Return the routes of builds."""
        build = "/templates/{id}/builds/{build}"
        return [
            Route("/v3/templates", self.request_v3, methods=["POST"]),
            Route("/templates", self.request_v1, methods=["POST"]),
            Route("/templates/{id}", self.request_v1_again, methods=["POST"]),
            Route("/templates/{id}/files/{hash}", self.upload_link, methods=["GET"]),
            Route("/v2" + build, self.start_v2, methods=["POST"]),
            Route(build, self.start_v1, methods=["POST"]),
            Route(build + "/status", self.status, methods=["GET"]),
        ]

    def uploads(self) -> list[Route]:
        """Return what takes the tarballs: storage, behind a URL that needs no key."""
        return [Route("/uploads/{id}/{hash}", self.upload, methods=["PUT"])]

    async def request_v3(self, request: Request) -> Response:
        body = await request.json()
        given: str = body.get("name") or body.get("alias") or ""
        name, _, tag = given.partition(":")
        known = self._templates.find(name)
        tags = tuple(filter(None, (tag, *(body.get("tags") or ()))))
        return self._requested(known.id if known else None, name, tags or ("default",), body)

    async def request_v1(self, request: Request) -> Response:
        body = await request.json()
        return self._requested(None, body.get("alias") or "", ("default",), body)

    async def request_v1_again(self, request: Request) -> Response:
        body = await request.json()
        known = self._of_template(request.path_params["id"])
        return self._requested(known.template_id, body.get("alias") or known.name, ("default",), body)

    def _requested(self, template_id: str | None, name: str, tags: tuple[str, ...], body: dict[str, Any]) -> Response:
        template_id = template_id or secrets.token_hex(10)
        name = name or template_id
        earlier = [build.files for build in self.builds if build.template_id == template_id]
        files = earlier[0] if earlier else {}  # what was uploaded once is not asked for again
        build = Build(template_id, name, tags, body, self.outcome, files)
        self.builds.append(build)
        answer = {"templateID": template_id, "buildID": build.build_id, "public": False, "tags": list(tags)}
        return JSONResponse({**answer, "aliases": [name], "names": [f"{TEAM['name']}/{name}"]}, 202)

    async def upload_link(self, request: Request) -> Response:
        template_id, files_hash = request.path_params["id"], request.path_params["hash"]
        if files_hash in self._of_template(template_id).files:
            return JSONResponse({"present": True}, 201)
        url = f"{request.base_url}uploads/{template_id}/{files_hash}"
        return JSONResponse({"present": False, "url": url}, 201)

    async def upload(self, request: Request) -> Response:
        build = self._of_template(request.path_params["id"])
        build.files[request.path_params["hash"]] = await request.body()
        return Response()

    async def start_v2(self, request: Request) -> Response:
        build = self._found(request)
        body = await request.json()
        steps: list[dict[str, Any]] = body.get("steps") or []
        missing = [step["filesHash"] for step in steps if "filesHash" in step and step["filesHash"] not in build.files]
        if missing:
            raise ApiError(400, f"files with hash {missing[0]} were not uploaded")
        build.start = body
        return Response(status_code=202)

    async def start_v1(self, request: Request) -> Response:
        self._found(request).start = {}
        return Response(status_code=202)

    async def status(self, request: Request) -> Response:
        build = self._found(request)
        if build.start is not None:
            build.told = min(build.told + build.outcome.lines_a_poll, len(build.outcome.lines))
        if build.status == "ready":
            self._finish(build)
        offset = int(request.query_params.get("logsOffset") or 0)
        limit = int(request.query_params.get("limit") or PAGE)
        lines = build.outcome.lines[offset : min(build.told, offset + limit)]
        entries = [{"timestamp": stamp(utc_now()), "level": "info", "message": line} for line in lines]
        answer = {"templateID": build.template_id, "buildID": build.build_id, "status": build.status}
        reason: dict[str, Any] = {}
        if build.status == "error":
            step = {} if build.outcome.step is None else {"step": build.outcome.step}
            reason = {"reason": {"message": build.outcome.error, "logEntries": entries[-1:], **step}}
        return JSONResponse({**answer, "logs": [f"{line}\n" for line in lines], "logEntries": entries, **reason})

    def _finish(self, build: Build) -> None:
        asked = {"cpu_count": build.cpu_count, "memory_mb": build.memory_mb}
        given = {name: value for name, value in asked.items() if value is not None}
        self._templates.add(Template(build.template_id, build.name, **given), build.build_id, build.tags)

    def _found(self, request: Request) -> Build:
        for build in self.builds:
            if (build.template_id, build.build_id) == (request.path_params["id"], request.path_params["build"]):
                return build
        raise ApiError(404, f"build '{request.path_params['build']}' not found")

    def _of_template(self, template_id: str) -> Build:
        for build in reversed(self.builds):
            if build.template_id == template_id:
                return build
        raise ApiError(404, f"template '{template_id}' not found")

"""The templates and the requests about them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .answers import ApiError, stamp, utc_now
from .sandboxes import ENVD_VERSION, Template

TEAM = {"teamID": "6f1c7d2e-4e0b-4a7e-9a53-0d3c7a1f9b10", "name": "tests"}


@dataclass(frozen=True)
class Tag:
    """A tag of a template, and the build it names."""

    build_id: str
    created_at: datetime = field(default_factory=utc_now)


class TemplateStore:
    """All templates, by name and id."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._templates: dict[str, Template] = {}
        self.tags: dict[str, dict[str, Tag]] = {}
        """By template id and tag."""
        for reference in names:
            name, _, tag = reference.partition(":")
            tags = ("default", tag) if tag else ("default",)
            self.add(Template(id=f"tpl-{name}", name=name), build_id=str(uuid.uuid4()), tags=tags)

    def add(self, template: Template, build_id: str, tags: tuple[str, ...] = ("default",)) -> None:
        """Add a template, or replace the one with its id, and tag it."""
        self._templates[template.id] = template
        self.tags.setdefault(template.id, {}).update({tag: Tag(build_id) for tag in tags})

    def remove(self, template: Template) -> None:
        """Forget a template."""
        del self._templates[template.id], self.tags[template.id]

    def all(self) -> list[Template]:
        """Return all templates, the oldest first."""
        return list(self._templates.values())

    def find(self, reference: str) -> Template | None:
        """Return the template of an id, a name, a ``team/name`` or any of them with ``:tag``; the tag has to exist."""
        name, _, tag = reference.partition(":")
        name = name.rpartition("/")[2]
        for template in self._templates.values():
            if name in (template.id, template.name) and (not tag or tag in self.tags[template.id]):
                return template
        return None


class TemplatesApi:
    """Answers the requests for templates, their names and tags."""

    def __init__(self, store: TemplateStore, api_key: str) -> None:
        self._store, self._api_key = store, api_key

    def routes(self) -> list[Route]:
        """Return the routes of templates."""
        return [
            Route("/teams", self.teams, methods=["GET"]),
            Route("/templates", self.list_all, methods=["GET"]),
            Route("/templates/tags", self.assign_tags, methods=["POST"]),
            Route("/templates/tags", self.remove_tags, methods=["DELETE"]),
            Route("/templates/aliases/{alias:path}", self.alias, methods=["GET"]),
            Route("/templates/{id:path}/tags", self.list_tags, methods=["GET"]),
            Route("/templates/{id:path}", self.delete, methods=["DELETE"]),
        ]

    async def teams(self, request: Request) -> Response:
        return JSONResponse([{**TEAM, "apiKey": self._api_key, "isDefault": True}])

    async def list_all(self, request: Request) -> Response:
        return JSONResponse([self._listed(template) for template in self._store.all()])

    async def alias(self, request: Request) -> Response:
        template = self._found(request.path_params["alias"])
        return JSONResponse({"templateID": template.id, "public": False})

    async def list_tags(self, request: Request) -> Response:
        tags = self._store.tags[self._found(request.path_params["id"]).id]
        return JSONResponse(
            [{"tag": name, "buildID": tag.build_id, "createdAt": stamp(tag.created_at)} for name, tag in tags.items()]
        )

    async def assign_tags(self, request: Request) -> Response:
        body = await request.json()
        target: str = body["target"]
        tags = self._store.tags[self._found(target).id]
        build_id = tags[target.partition(":")[2] or "default"].build_id
        tags.update({tag: Tag(build_id) for tag in body["tags"]})
        return JSONResponse({"tags": body["tags"], "buildID": build_id}, 201)

    async def remove_tags(self, request: Request) -> Response:
        body = await request.json()
        tags = self._store.tags[self._found(body["name"]).id]
        for tag in body["tags"]:
            if tags.pop(tag, None) is None:
                raise ApiError(404, f"tag '{tag}' not found")
        return Response(status_code=204)

    async def delete(self, request: Request) -> Response:
        self._store.remove(self._found(request.path_params["id"]))
        return Response(status_code=204)

    def _found(self, reference: str) -> Template:
        template = self._store.find(reference)
        if template is None:
            raise ApiError(404, f"template '{reference}' not found")
        return template

    def _listed(self, template: Template) -> dict[str, Any]:
        tags = list(self._store.tags[template.id].values())
        now = stamp(utc_now())
        return {
            "templateID": template.id,
            "buildID": tags[-1].build_id if tags else "",
            "cpuCount": template.cpu_count,
            "memoryMB": template.memory_mb,
            "diskSizeMB": template.disk_mb,
            "public": False,
            "aliases": [template.name],
            "names": [f"{TEAM['name']}/{template.name}"],
            "createdAt": now,
            "updatedAt": now,
            "createdBy": None,
            "lastSpawnedAt": None,
            "spawnCount": 0,
            "buildCount": 1,
            "envdVersion": ENVD_VERSION,
            "buildStatus": "ready",
        }

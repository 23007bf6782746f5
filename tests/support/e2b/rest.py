"""The REST API: creating, finding and ending sandboxes."""

from __future__ import annotations

import os
import urllib.parse
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .answers import ApiError, stamp, utc_now
from .network import check_network
from .sandboxes import DEFAULT_TIMEOUT, ENVD_VERSION, Sandbox, Sandboxes
from .templates import TemplateStore

PAGE = 100
"""Number of sandboxes on a page if the request names none."""


class RestApi:
    """Answers the requests for sandboxes."""

    def __init__(self, sandboxes: Sandboxes, templates: TemplateStore, max_timeout: int) -> None:
        self._sandboxes, self._templates, self._max_timeout = sandboxes, templates, max_timeout
        self.transform_rules = True
        """True if the team may use header rules of E2B's proxy."""

    def routes(self) -> list[Route]:
        """Return the routes of sandboxes."""
        one = "/sandboxes/{id}"
        return [
            Route("/v2/sandboxes", self.create, methods=["POST"]),
            Route("/sandboxes", self.create, methods=["POST"]),
            Route("/v2/sandboxes", self.list_page, methods=["GET"]),
            Route("/sandboxes", self.list_running, methods=["GET"]),
            Route("/v2" + one + "/connect", self.connect, methods=["POST"]),
            Route(one + "/connect", self.connect, methods=["POST"]),
            Route(one + "/resume", self.connect, methods=["POST"]),
            Route(one, self.info, methods=["GET"]),
            Route(one, self.kill, methods=["DELETE"]),
            Route(one + "/timeout", self.set_timeout, methods=["POST"]),
            Route(one + "/refreshes", self.refresh, methods=["POST"]),
            Route(one + "/pause", self.pause, methods=["POST"]),
            Route(one + "/metrics", self.metrics, methods=["GET"]),
            Route(one + "/network", self.set_network, methods=["PUT"]),
        ]

    async def create(self, request: Request) -> Response:
        body = await request.json()
        template = self._templates.find(str(body["templateID"]))
        if template is None:
            raise ApiError(404, f"template '{body['templateID']}' not found")
        self._check(int(body.get("timeout", DEFAULT_TIMEOUT)))
        check_network(body.get("network") or {}, transform_rules=self.transform_rules)
        sandbox = self._sandboxes.create(template, body, request.headers.get("idempotency-key"))
        return JSONResponse(_created(sandbox), 201)

    def _check(self, timeout: int) -> None:
        if timeout > self._max_timeout:
            raise ApiError(400, f"Timeout cannot be greater than {self._max_timeout // 3600} hours")

    async def connect(self, request: Request) -> Response:
        sandbox = self._existing(request)
        timeout = int((await request.json()).get("timeout", DEFAULT_TIMEOUT))
        self._check(timeout)
        if sandbox.state == "paused":
            self._sandboxes.resume(sandbox, timeout)
            return JSONResponse(_created(sandbox), 201)
        if (sandbox.end_at - utc_now()).total_seconds() < timeout:
            sandbox.expire_in(timeout)
        return JSONResponse(_created(sandbox), 200)

    async def info(self, request: Request) -> Response:
        return JSONResponse(_detail(self._existing(request)))

    async def kill(self, request: Request) -> Response:
        await self._sandboxes.kill(self._existing(request))
        return Response(status_code=204)

    async def set_timeout(self, request: Request) -> Response:
        timeout = int((await request.json())["timeout"])
        self._check(timeout)
        self._running(request).expire_in(timeout)
        return Response(status_code=204)

    async def refresh(self, request: Request) -> Response:
        sandbox = self._running(request)
        seconds = int((await request.json()).get("duration", DEFAULT_TIMEOUT))
        if (sandbox.end_at - utc_now()).total_seconds() < seconds:
            sandbox.expire_in(seconds)
        return Response(status_code=204)

    async def pause(self, request: Request) -> Response:
        sandbox = self._existing(request)
        if sandbox.state == "paused":
            raise ApiError(409, f"Error pausing sandbox - sandbox '{sandbox.id}' is already paused")
        self._sandboxes.pause(sandbox)
        return Response(status_code=204)

    async def metrics(self, request: Request) -> Response:
        return JSONResponse([_metrics(self._existing(request))])

    async def set_network(self, request: Request) -> Response:
        sandbox, options = self._running(request), await request.json()
        check_network(options, transform_rules=self.transform_rules)
        sandbox.network = options
        return Response(status_code=204)

    async def list_page(self, request: Request) -> Response:
        query = request.query_params
        found = self._matching(query.get("metadata", ""), set(query.get("state", "running,paused").split(",")))
        start, limit = int(query.get("nextToken") or 0), int(query.get("limit") or PAGE)
        page = found[start : start + limit]
        more = start + limit < len(found)
        headers = {"x-next-token": str(start + limit)} if more else {}
        return JSONResponse([_listed(sandbox) for sandbox in page], headers=headers)

    async def list_running(self, request: Request) -> Response:
        found = self._matching(request.query_params.get("metadata", ""), {"running"})
        return JSONResponse([_listed(sandbox) for sandbox in found])

    def _matching(self, metadata: str, states: set[str]) -> list[Sandbox]:
        """Return the sandboxes in one of the states that have all of the metadata, the newest first."""
        # The SDK quotes each name and value before it quotes the whole.
        wanted = {urllib.parse.unquote(k): urllib.parse.unquote(v) for k, v in urllib.parse.parse_qsl(metadata)}
        found = (s for s in self._sandboxes.by_id.values() if s.state in states)
        return [s for s in reversed(list(found)) if wanted.items() <= s.metadata.items()]

    def _existing(self, request: Request) -> Sandbox:
        sandbox = self._sandboxes.existing(request.path_params["id"])
        if sandbox is None:
            raise _no_sandbox(request)
        return sandbox

    def _running(self, request: Request) -> Sandbox:
        sandbox = self._existing(request)
        if sandbox.state == "paused":
            raise ApiError(404, f"Sandbox '{sandbox.id}' is paused")
        return sandbox


def _no_sandbox(request: Request) -> ApiError:
    return ApiError(404, f"sandbox \"{request.path_params['id']}\" doesn't exist or you don't have access to it")


def _created(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "templateID": sandbox.template.id,
        "sandboxID": sandbox.id,
        "clientID": "6532622b",
        "alias": sandbox.template.name,
        "envdVersion": ENVD_VERSION,
        "envdAccessToken": sandbox.access_token,
        "trafficAccessToken": None,
        "domain": None,
    }


def _listed(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "templateID": sandbox.template.id,
        "sandboxID": sandbox.id,
        "clientID": "6532622b",
        "alias": sandbox.template.name,
        "startedAt": stamp(sandbox.started_at),
        "endAt": stamp(sandbox.end_at),
        "cpuCount": sandbox.template.cpu_count,
        "memoryMB": sandbox.template.memory_mb,
        "diskSizeMB": sandbox.template.disk_mb,
        "state": sandbox.state,
        "envdVersion": ENVD_VERSION,
        "metadata": sandbox.metadata,
    }


def _detail(sandbox: Sandbox) -> dict[str, Any]:
    more: dict[str, Any] = {"network": sandbox.network} if sandbox.network else {}
    return {
        **_listed(sandbox),
        **more,
        "envdAccessToken": sandbox.access_token,
        "allowInternetAccess": sandbox.request.get("allow_internet_access"),
        "domain": None,
        "lifecycle": sandbox.lifecycle,
    }


def _metrics(sandbox: Sandbox) -> dict[str, Any]:
    now = utc_now()
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    return {
        "timestamp": stamp(now),
        "timestampUnix": int(now.timestamp()),
        "cpuCount": sandbox.template.cpu_count,
        "cpuUsedPct": 100.0 * os.getloadavg()[0] / (os.cpu_count() or 1),
        "memUsed": total - os.sysconf("SC_AVPHYS_PAGES") * page,
        "memTotal": total,
        "memCache": 0,
        "diskUsed": 0,
        "diskTotal": sandbox.template.disk_mb * 1024 * 1024,
    }

"""A stand-in of Langfuse's dashboards API that refuses what Langfuse's zod schemas refuse.

Fields and rules are those of Langfuse v4: the views' dimensions and measures, no time series over what has too many
values, placements only of widgets that are there, 100 a page, the last changed first.
"""

from __future__ import annotations

import base64
import itertools
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]

PUBLIC_KEY, SECRET_KEY = "pk-lf-test", "sk-lf-test"
API = "/api/public/unstable/"
MAX_PAGE = 100

MANY_VALUED = frozenset({"userId", "sessionId", "experimentName", "experimentDatasetId"})
DIMENSIONS = MANY_VALUED | {
    *("environment", "type", "name", "level", "version", "tags", "release", "traceName", "traceRelease"),
    *("traceVersion", "providedModelName", "promptName", "promptVersion", "startTimeMonth", "toolNames"),
    *("calledToolNames", "costType", "usageType"),
}
IDENTIFIERS = frozenset({"traceId", "uniqueUserIds", "uniqueSessionIds"})
MEASURES = IDENTIFIERS | {
    *("count", "latency", "streamingLatency", "inputTokens", "outputTokens", "totalTokens", "timeToFirstToken"),
    *("outputTokensPerSecond", "tokensPerSecond", "inputCost", "outputCost", "totalCost", "countScores"),
    *("toolDefinitions", "toolCalls", "costByType", "usageByType"),
}
AGGREGATIONS = frozenset({"sum", "avg", "count", "max", "min", "p50", "p75", "p90", "p95", "p99", "histogram", "uniq"})
CHARTS = frozenset(
    {
        *("LINE_TIME_SERIES", "AREA_TIME_SERIES", "BAR_TIME_SERIES", "HORIZONTAL_BAR", "VERTICAL_BAR", "PIE"),
        *("NUMBER", "HISTOGRAM", "PIVOT_TABLE"),
    }
)
OPERATORS = {
    "string": {"=", "contains", "does not contain", "starts with", "ends with"},
    "stringOptions": {"any of", "none of"},
    "arrayOptions": {"any of", "none of", "all of"},
}
LEVELS = {"DEBUG", "DEFAULT", "WARNING", "ERROR"}
TYPES = {"SPAN", "EVENT", "GENERATION", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL"}
WIDGET_FIELDS = {"name", "description", "view", "dimensions", "metrics", "filters", "chartType", "chartConfig"}
DASHBOARD_FIELDS = {"name", "description", "definition", "filters"}
TILE_FIELDS = {"type": str, "id": str, "widgetId": str, "x": int, "y": int, "width": int, "height": int}


class RefusedError(Exception):
    """An answer with Langfuse's error envelope."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True)
class Raw:
    """An answer of the test's own, in place of the API's."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass
class LangfuseStandIn:
    """Holds widgets and dashboards; ``answering`` may answer a request in its place."""

    widgets: list[Json] = field(default_factory=list[Json])
    dashboards: list[Json] = field(default_factory=list[Json])
    requests: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    answering: Callable[[str, str], Raw | None] = lambda _method, _path: None

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environ(self) -> dict[str, str]:
        return {
            "LANGFUSE_BASE_URL": self.url,
            "LANGFUSE_PUBLIC_KEY": PUBLIC_KEY,
            "LANGFUSE_SECRET_KEY": SECRET_KEY,
        }

    @property
    def writes(self) -> list[tuple[str, str]]:
        """Return the requests that change something."""
        return [request for request in self.requests if request[0] != "GET"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=60)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # it would hold back each body for 40 ms, as it is written after the head

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
                pass

            def _serve(self) -> None:
                size = int(self.headers.get("content-length") or 0)
                answer = stand_in.answer(self.command, self.path, dict(self.headers.items()), self.rfile.read(size))
                self.send_response(answer.status)
                for name, value in {**answer.headers, "content-length": str(len(answer.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = do_PATCH = _serve  # noqa: N815 - the base's names

        return Handler

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Raw:
        parts = urlsplit(target)
        self.requests.append((method, parts.path))
        if (raw := self.answering(method, parts.path)) is not None:
            return raw
        try:
            _authenticate(headers)
            query = {name: int(values[0]) for name, values in parse_qs(parts.query).items()}
            found = self._route(method, parts.path.removeprefix(API).split("/"), query, json.loads(body or b"null"))
        except RefusedError as refusal:
            error = {"message": refusal.message, "code": refusal.code}
            return Raw(refusal.status, json.dumps(error).encode())
        return Raw(200, json.dumps(found).encode())

    def _route(self, method: str, path: list[str], query: dict[str, int], body: Any) -> Json:
        match method, path:
            case "GET", ["dashboard-widgets"]:
                return _page(self.widgets, query)
            case "GET", ["dashboards"]:
                return _page(self.dashboards, query)
            case "POST", ["dashboard-widgets"]:
                return self._created(self.widgets, _widget({"description": "", **body}))
            case "PATCH", ["dashboard-widgets", id_]:
                return self._updated(self.widgets, id_, lambda old: _widget({**old, **body}))
            case "POST", ["dashboards"]:
                blank: Json = {"description": "", "definition": {"widgets": []}, "filters": []}
                return self._created(self.dashboards, self._dashboard({**blank, **body}))
            case "PATCH", ["dashboards", id_]:
                return self._updated(self.dashboards, id_, lambda old: self._dashboard({**old, **body}))
            case _:
                raise RefusedError(405, "method_not_allowed", f"{method} {'/'.join(path)}")

    def _created(self, kind: list[Json], made: Json) -> Json:
        made = {"id": f"c{next(self._ids):06}", "createdAt": "2026-11-24T00:00:00.000Z", **made}
        kind.insert(0, made)
        return made

    def _updated(self, kind: list[Json], id_: str, change: Callable[[Json], Json]) -> Json:
        old = next((each for each in kind if each["id"] == id_), None)
        if old is None:
            raise RefusedError(404, "resource_not_found", f"{id_} not found")
        new = change({key: value for key, value in old.items() if key not in ("id", "createdAt")})
        kind.remove(old)
        kind.insert(0, old | new)
        return kind[0]

    def _dashboard(self, body: Json) -> Json:
        _require(set(body) <= DASHBOARD_FIELDS, f"fields {sorted(body)}")
        _require(isinstance(body["name"], str) and body["name"], "name")
        placed = set[str]()
        for tile in body["definition"]["widgets"]:
            _require(set(tile) == set(TILE_FIELDS), f"tile {sorted(tile)}")
            _require(all(type(tile[name]) is kind for name, kind in TILE_FIELDS.items()), f"tile {tile}")
            _require(tile["x"] >= 0 and tile["y"] >= 0 and tile["width"] > 0 and tile["height"] > 0, f"tile {tile}")
            _require(tile["id"] not in placed, f"two tiles {tile['id']}")
            placed.add(tile["id"])
            if tile["widgetId"] not in {widget["id"] for widget in self.widgets}:
                raise RefusedError(404, "resource_not_found", f"Dashboard widget {tile['widgetId']} not found")
        return body


def _authenticate(headers: Mapping[str, str]) -> None:
    wanted = base64.b64encode(f"{PUBLIC_KEY}:{SECRET_KEY}".encode()).decode()
    if {name.lower(): value for name, value in headers.items()}.get("authorization") != f"Basic {wanted}":
        raise RefusedError(401, "authentication_failed", "Invalid credentials")


def _page(kind: list[Json], query: dict[str, int]) -> Json:
    page, limit = query.get("page", 1), query.get("limit", 50)
    _require(page > 0 and 0 < limit <= MAX_PAGE, f"page {page}, limit {limit}")
    meta = {"page": page, "limit": limit, "totalItems": len(kind), "totalPages": -(-len(kind) // limit)}
    return {"data": kind[(page - 1) * limit : page * limit], "meta": meta}


def _widget(body: Json) -> Json:
    """Check a widget; return it with its chart's type filled in, as Langfuse does."""
    _require(set(body) <= WIDGET_FIELDS, f"fields {sorted(set(body) - WIDGET_FIELDS)}")
    for name in ("name", "description"):
        _require(isinstance(body[name], str), name)
    _require(bool(body["name"]), "name")
    _require(body["view"] == "observations", f"view {body['view']}")
    chart = body["chartType"]
    _require(chart in CHARTS, f"chartType {chart}")
    config = {"type": chart, **body.get("chartConfig", {})}
    _require(config["type"] == chart, "chartConfig.type must match chartType")
    fields = [dimension["field"] for dimension in body["dimensions"]]
    _require(set(fields) <= DIMENSIONS and (len(fields) < 2 or chart == "PIVOT_TABLE"), f"dimensions {fields}")
    if MANY_VALUED & set(fields):
        _require(not chart.endswith("TIME_SERIES"), f"{fields} cannot be used with timeDimension")
        _require("row_limit" in config, f"{fields} require row_limit")
    _require(bool(body["metrics"]), "metrics")
    for metric in body["metrics"]:
        _require(set(metric) == {"measure", "agg"} and metric["measure"] in MEASURES, f"metric {metric}")
        allowed = {"count", "uniq"} if metric["measure"] in IDENTIFIERS else AGGREGATIONS
        _require(metric["agg"] in allowed, f"metric {metric}")
        wanted = {"usageByType": "usageType", "costByType": "costType"}.get(metric["measure"])
        _require(wanted is None or wanted in fields, f"{metric['measure']} takes the dimension {wanted}")
    for condition in body["filters"]:
        _require(condition["column"] in DIMENSIONS, f"filter {condition}")
        _require(condition["operator"] in OPERATORS[condition["type"]], f"filter {condition}")
        values = set(condition["value"]) if isinstance(condition["value"], list) else {condition["value"]}
        _require(values <= {"level": LEVELS, "type": TYPES}.get(condition["column"], values), f"filter {condition}")
    return {**body, "chartConfig": config}


def _require(held: object, what: str) -> None:
    if not held:
        raise RefusedError(400, "invalid_body", f"Invalid request: {what}")

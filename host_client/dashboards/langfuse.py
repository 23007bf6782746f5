"""Langfuse's dashboards over its API: what a file describes is made there, or brought up to date.

Files are in the format of Langfuse's own import (``$langfuseDashboard``, version 1). The API
(``/api/public/unstable/dashboard-widgets`` and ``/dashboards``) is called unstable by Langfuse itself. A name is
what a widget or dashboard is found by; nothing is ever deleted.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar, cast
from urllib.parse import quote

import httpx
import msgspec

from host_client.errors import ConfigurationError, SandspanError
from host_client.telemetry.export import endpoints

FORMAT_VERSION = 1
URL_VARIABLES = ("LANGFUSE_OTLP_ENDPOINT", "LANGFUSE_BASE_URL", "LANGFUSE_HOST")
API = "/api/public/unstable"
PAGE_SIZE = 100
TIMEOUT_SECONDS = 30.0
TOO_MANY_REQUESTS = 429
MAX_WAITS = 5
MAX_WAIT_SECONDS = 60.0
"""How often a request that came too early is sent again, and the longest wait before it."""

Json = dict[str, Any]
Action = Literal["created", "updated", "unchanged"]
T = TypeVar("T")


class LangfuseError(SandspanError):
    """Langfuse cannot be reached, or refuses; the message says what to do."""


class Widget(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A widget as the file has it and the API takes it."""

    name: str
    view: str
    dimensions: list[Json]
    metrics: list[Json]
    filters: list[Json]
    chart_type: str
    chart_config: Json
    description: str = ""


class Placed(msgspec.Struct, frozen=True):
    """A widget's place on the grid of 12 columns."""

    type: Literal["widget"]
    x: int
    y: int
    x_size: int
    y_size: int
    widget: Widget


class DashboardFile(msgspec.Struct, frozen=True):
    """What a dashboard file describes."""

    version: int
    name: str
    widgets: list[Placed]
    marked: bool = msgspec.field(name="$langfuseDashboard")
    description: str = ""


class _Existing(msgspec.Struct):
    id: str
    name: str


class _Meta(msgspec.Struct, rename="camel"):
    total_pages: int


class _Page(msgspec.Struct):
    data: list[Json]
    meta: _Meta


class Change(NamedTuple):
    """One thing in Langfuse, and what became of it."""

    kind: Literal["widget", "dashboard"]
    name: str
    action: Action


class LangfuseAccount(NamedTuple):
    """A Langfuse: its base URL, and the header that says who asks."""

    url: str
    authorization: str


def place_of(environ: Mapping[str, str]) -> LangfuseAccount:
    """Return the Langfuse that spans go to; raise `ConfigurationError` where the environment names none."""
    public, secret = environ.get("LANGFUSE_PUBLIC_KEY", ""), environ.get("LANGFUSE_SECRET_KEY", "")
    if not public or not secret:
        raise ConfigurationError("set LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY (in Langfuse: Settings, API Keys)")
    name = next((name for name in URL_VARIABLES if environ.get(name)), URL_VARIABLES[0])
    try:
        endpoint = endpoints.langfuse(environ.get(name) or endpoints.LANGFUSE_CLOUD, public, secret)
    except ValueError as error:
        raise ConfigurationError(f"{name} {error}") from None
    return LangfuseAccount(
        endpoint.url.removesuffix(f"{endpoints.LANGFUSE_PATH}/v1/traces"), endpoint.headers["authorization"]
    )


def read(path: Path) -> DashboardFile:
    """Return a dashboard file; raise `ConfigurationError` for what is none."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=DashboardFile)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"{path} is no Langfuse dashboard file: {error}") from None
    if not found.marked or found.version != FORMAT_VERSION:
        raise ConfigurationError(f"{path} is no Langfuse dashboard file of version {FORMAT_VERSION}")
    names = [placed.widget.name for placed in found.widgets]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{path}: two widgets have one name, and a name is what a widget is found by")
    return found


def provision(api: LangfuseApi, dashboards: Iterable[DashboardFile]) -> Iterator[Change]:
    """Make the dashboards and their widgets, or update what differs; what is alike is left alone."""
    widgets = _by_name(api.everything("dashboard-widgets"))
    existing = _by_name(api.everything("dashboards"))
    for dashboard in dashboards:
        ids: dict[str, str] = {}
        for placed in dashboard.widgets:
            body = cast("Json", msgspec.to_builtins(placed.widget)) | {"description": placed.widget.description}
            ids[placed.widget.name], action = _put(api, "dashboard-widgets", widgets, body)
            yield Change("widget", placed.widget.name, action)
        tiles = _tiles(existing.get(dashboard.name), dashboard, ids)
        body: Json = {
            "name": dashboard.name,
            "description": dashboard.description,
            "definition": {"widgets": tiles},
        }
        _, action = _put(api, "dashboards", existing, body)
        yield Change("dashboard", dashboard.name, action)


def _by_name(found: Iterable[Json]) -> dict[str, Json]:
    """Return the last changed of each name."""
    named: dict[str, Json] = {}
    for each in found:
        named.setdefault(each["name"], each)
    return named


def _put(api: LangfuseApi, path: str, existing: dict[str, Json], body: Json) -> tuple[str, Action]:
    """Create or update the one of the body's name, if need be; return its id."""
    there = existing.get(body["name"])
    if there is None:
        there = existing[body["name"]] = api.create(path, body)
        return there["id"], "created"
    if _holds(there, body):
        return there["id"], "unchanged"
    existing[body["name"]] = api.update(path, there["id"], body)
    return there["id"], "updated"


def _holds(theirs: object, ours: object) -> bool:
    """Whether ``theirs`` says all that ``ours`` says; Langfuse may add fields."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        there = cast("Json", theirs)
        return all(key in there and _holds(there[key], value) for key, value in cast("Json", ours).items())
    if isinstance(ours, list) and isinstance(theirs, list):
        pair = cast("list[object]", theirs), cast("list[object]", ours)
        return len(pair[0]) == len(pair[1]) and all(itertools.starmap(_holds, zip(*pair, strict=True)))
    return theirs == ours


def _tiles(there: Json | None, dashboard: DashboardFile, ids: Mapping[str, str]) -> list[Json]:
    """Return the grid: the file's tiles, then those that somebody else has put there."""
    current = cast("list[Json]", (there or {}).get("definition", {}).get("widgets", []))
    known = {tile.get("widgetId"): tile["id"] for tile in reversed(current)}
    tiles: list[Json] = []
    for placed in dashboard.widgets:
        widget_id = ids[placed.widget.name]
        tiles.append(
            {
                "type": "widget",
                "id": known.get(widget_id, _slug(placed.widget.name)),
                "widgetId": widget_id,
                "x": placed.x,
                "y": placed.y,
                "width": placed.x_size,
                "height": placed.y_size,
            }
        )
    ours = {tile["id"] for tile in tiles}
    return tiles + [tile for tile in current if tile["id"] not in ours]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class LangfuseApi:
    """The part of Langfuse's API that dashboards need. ``waiting`` is told the seconds before each wait."""

    def __init__(
        self,
        place: LangfuseAccount,
        *,
        waiting: Callable[[float], None] = lambda _seconds: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._place = place
        self._waiting = waiting
        self._sleep = sleep
        self._client = httpx.Client(headers={"authorization": place.authorization}, timeout=TIMEOUT_SECONDS)

    def __enter__(self) -> LangfuseApi:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def everything(self, path: str) -> list[Json]:
        """Return all of a kind, page by page, the last changed first."""
        found: list[Json] = []
        for page in itertools.count(1):
            answer = self._read(self._ask("GET", path, params={"page": page, "limit": PAGE_SIZE}), _Page)
            found.extend(self._existing(each) for each in answer.data)
            if page >= answer.meta.total_pages:
                break
        return found

    def create(self, path: str, body: Json) -> Json:
        """Make one; return it as it is there."""
        return self._existing(self._ask("POST", path, json=body))

    def update(self, path: str, id_: str, body: Json) -> Json:
        """Change one; return it as it is there."""
        return self._existing(self._ask("PATCH", f"{path}/{quote(id_, safe='')}", json=body))

    def _existing(self, found: Json) -> Json:
        """Return a widget or dashboard of Langfuse's, which has an id and a name."""
        self._read(found, _Existing)
        return found

    def _read(self, found: Json, kind: type[T]) -> T:
        try:
            return msgspec.convert(found, kind)
        except msgspec.ValidationError:
            raise LangfuseError(self._strange()) from None

    def _strange(self) -> str:
        return f"{self._place.url} answers, but not as Langfuse does: {URL_HELP}"

    def _ask(self, method: str, path: str, **content: Any) -> Json:
        """Send a request and return the object it is answered with; raise `LangfuseError` for all else."""
        url = f"{self._place.url}{API}/{path}"
        for waits in itertools.count():
            try:
                response = self._client.request(method, url, **content)
            except httpx.HTTPError as error:
                raise LangfuseError(self._unreachable(error)) from error
            if response.status_code != TOO_MANY_REQUESTS or waits == MAX_WAITS:
                return self._answer(response)
            seconds = _wait_seconds(response)
            self._waiting(seconds)
            self._sleep(seconds)
        raise AssertionError("the count has no end")

    def _answer(self, response: httpx.Response) -> Json:
        if response.is_success:
            try:
                return msgspec.json.decode(response.content, type=dict[str, Any])
            except msgspec.MsgspecError:
                raise LangfuseError(self._strange()) from None
        raise LangfuseError(self._refusal(response))

    def _unreachable(self, error: httpx.HTTPError) -> str:
        what = str(error) or type(error).__name__
        return f"Langfuse at {self._place.url} cannot be reached ({what}): {URL_HELP}"

    def _refusal(self, response: httpx.Response) -> str:
        """Say why Langfuse refuses, and what to do."""
        match response.status_code:
            case 401:
                return (
                    f"Langfuse at {self._place.url} does not know the keys (401): check LANGFUSE_PUBLIC_KEY and "
                    f"LANGFUSE_SECRET_KEY, and that they are of this host (each region has its own)"
                )
            case 403:
                return (
                    f"Langfuse refuses (403): {_message(response)}; take the API key of a project, not an organization"
                )
            case 404 | 405 if response.request.method == "GET":
                return (
                    f"Langfuse at {self._place.url} has no {API}/dashboards ({response.status_code}): it is too old. "
                    f"Update it, or drag the files of `host_client dashboards write` onto a dashboard's page"
                )
            case code if response.is_redirect:
                there = endpoints.shown(response.headers.get("location", ""))
                return f"Langfuse at {self._place.url} redirects to {there} ({code}): {URL_HELP}"
            case code:
                return f"Langfuse refuses {response.request.method} {response.url.path} ({code}): {_message(response)}"


URL_HELP = f"set one of {', '.join(URL_VARIABLES)} to its address"


def _wait_seconds(response: httpx.Response) -> float:
    try:
        seconds = float(response.headers.get("retry-after", ""))
    except ValueError:
        seconds = MAX_WAIT_SECONDS
    return min(max(seconds, 0.0), MAX_WAIT_SECONDS)


def _message(response: httpx.Response) -> str:
    """Return what an error's body says, in one line."""
    try:
        text = msgspec.json.decode(response.content, type=dict[str, Any]).get("message")
    except msgspec.MsgspecError:
        text = response.text
    return " ".join(str(text or response.reason_phrase).split())[:500]

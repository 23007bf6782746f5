"""Creates and updates dashboards in Langfuse over its API, from dashboard files.

Files have the format of Langfuse's own import (``$langfuseDashboard``, version 1). Langfuse itself calls the API
(``/api/public/unstable/dashboard-widgets`` and ``/dashboards``) unstable. Widgets and dashboards are found by their
names; nothing is ever deleted.
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
"""Limits of retries after HTTP 429: their number, and the longest wait before each."""

Json = dict[str, Any]
Action = Literal["created", "updated", "unchanged"]
T = TypeVar("T")


class LangfuseError(SandspanError):
    """Langfuse cannot be reached, or refuses a request; the message says what to do."""


class Widget(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A widget, in the format of dashboard files and of the API."""

    name: str
    view: str
    dimensions: list[Json]
    metrics: list[Json]
    filters: list[Json]
    chart_type: str
    chart_config: Json
    description: str = ""


class Placed(msgspec.Struct, frozen=True):
    """A widget with its position and size on the grid of 12 columns."""

    type: Literal["widget"]
    x: int
    y: int
    x_size: int
    y_size: int
    widget: Widget


class DashboardFile(msgspec.Struct, frozen=True):
    """The content of a dashboard file."""

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
    """A widget or dashboard in Langfuse, and whether it was created, updated or left unchanged."""

    kind: Literal["widget", "dashboard"]
    name: str
    action: Action


class LangfuseAccount(NamedTuple):
    """The base URL of a Langfuse, and the ``authorization`` header of its keys."""

    url: str
    authorization: str


def account_of(environ: Mapping[str, str]) -> LangfuseAccount:
    """Return the Langfuse account in the environment variables; raise `ConfigurationError` if keys are missing."""
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
    """Return the content of a dashboard file; raise `ConfigurationError` if it is not valid."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=DashboardFile)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(f"{path} is not a Langfuse dashboard file: {error}") from None
    if not found.marked or found.version != FORMAT_VERSION:
        raise ConfigurationError(f"{path} is not a Langfuse dashboard file of version {FORMAT_VERSION}")
    names = [placed.widget.name for placed in found.widgets]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{path}: two widgets have the same name, by which widgets are found; rename one")
    return found


def provision(api: LangfuseApi, dashboards: Iterable[DashboardFile]) -> Iterator[Change]:
    """Create the dashboards and their widgets, or update those that differ; yield what was done with each."""
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
    """Return the widgets or dashboards by name; of several with the same name, the one that was changed last."""
    named: dict[str, Json] = {}
    for each in found:
        named.setdefault(each["name"], each)
    return named


def _put(api: LangfuseApi, path: str, existing: dict[str, Json], body: Json) -> tuple[str, Action]:
    """Create or update the widget or dashboard with the body's name, if needed; return its id and what was done."""
    there = existing.get(body["name"])
    if there is None:
        there = existing[body["name"]] = api.create(path, body)
        return there["id"], "created"
    if _holds(there, body):
        return there["id"], "unchanged"
    existing[body["name"]] = api.update(path, there["id"], body)
    return there["id"], "updated"


def _holds(theirs: object, ours: object) -> bool:
    """Return whether ``theirs`` contains all values of ``ours``; Langfuse may add fields."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        there = cast("Json", theirs)
        return all(key in there and _holds(there[key], value) for key, value in cast("Json", ours).items())
    if isinstance(ours, list) and isinstance(theirs, list):
        pair = cast("list[object]", theirs), cast("list[object]", ours)
        return len(pair[0]) == len(pair[1]) and all(itertools.starmap(_holds, zip(*pair, strict=True)))
    return theirs == ours


def _tiles(there: Json | None, dashboard: DashboardFile, ids: Mapping[str, str]) -> list[Json]:
    """Return the tiles of a dashboard: those of the file, then those that were added to it in Langfuse."""
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
    """A client of Langfuse's API for dashboards. ``waiting`` is called with the seconds before each wait."""

    def __init__(
        self,
        account: LangfuseAccount,
        *,
        waiting: Callable[[float], None] = lambda _seconds: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._account = account
        self._waiting = waiting
        self._sleep = sleep
        self._client = httpx.Client(headers={"authorization": account.authorization}, timeout=TIMEOUT_SECONDS)

    def __enter__(self) -> LangfuseApi:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def everything(self, path: str) -> list[Json]:
        """Return all widgets or all dashboards, those that were changed last first."""
        found: list[Json] = []
        for page in itertools.count(1):
            answer = self._read(self._ask("GET", path, params={"page": page, "limit": PAGE_SIZE}), _Page)
            found.extend(self._existing(each) for each in answer.data)
            if page >= answer.meta.total_pages:
                break
        return found

    def create(self, path: str, body: Json) -> Json:
        """Create a widget or dashboard; return it as Langfuse stored it."""
        return self._existing(self._ask("POST", path, json=body))

    def update(self, path: str, id_: str, body: Json) -> Json:
        """Update a widget or dashboard; return it as Langfuse stored it."""
        return self._existing(self._ask("PATCH", f"{path}/{quote(id_, safe='')}", json=body))

    def _existing(self, found: Json) -> Json:
        """Return a widget or dashboard from Langfuse, after a check that it has an id and a name."""
        self._read(found, _Existing)
        return found

    def _read(self, found: Json, kind: type[T]) -> T:
        try:
            return msgspec.convert(found, kind)
        except msgspec.ValidationError:
            raise LangfuseError(self._strange()) from None

    def _strange(self) -> str:
        return f"{self._account.url} answers, but not as Langfuse does: {URL_HELP}"

    def _ask(self, method: str, path: str, **content: Any) -> Json:
        """Send a request, again after HTTP 429; return the JSON object of the answer. Raise `LangfuseError`."""
        url = f"{self._account.url}{API}/{path}"
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
        return f"Langfuse at {self._account.url} cannot be reached ({what}): {URL_HELP}"

    def _refusal(self, response: httpx.Response) -> str:
        """Return a message why Langfuse refused a request, and what to do."""
        match response.status_code:
            case 401:
                return (
                    f"Langfuse at {self._account.url} does not accept the keys (401): check LANGFUSE_PUBLIC_KEY and "
                    f"LANGFUSE_SECRET_KEY, and that they are of this host (each region has its own)"
                )
            case 403:
                return (
                    f"Langfuse refuses (403): {_message(response)}; take the API key of a project, not an organization"
                )
            case 404 | 405 if response.request.method == "GET":
                return (
                    f"Langfuse at {self._account.url} has no {API}/dashboards ({response.status_code}): it is too old. "
                    f"Update it, or drag the files of `host_client dashboards write` onto a dashboard's page"
                )
            case code if response.is_redirect:
                there = endpoints.shown(response.headers.get("location", ""))
                return f"Langfuse at {self._account.url} redirects to {there} ({code}): {URL_HELP}"
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
    """Return the message in the body of an error, in one line."""
    try:
        text = msgspec.json.decode(response.content, type=dict[str, Any]).get("message")
    except msgspec.MsgspecError:
        text = response.text
    return " ".join(str(text or response.reason_phrase).split())[:500]

"""``host_client dashboards`` writes the files and provisions a stand-in of Langfuse's API, as strict as Langfuse."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host_client.dashboards import files
from tests.support.commands import invoked_with
from tests.support.langfuse import LangfuseStandIn, Raw


@pytest.fixture
def langfuse() -> Iterator[LangfuseStandIn]:
    with LangfuseStandIn() as stand_in:
        yield stand_in


def host_client(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    done = invoked_with({"PATH": "/usr/bin:/bin", **environ}, "dashboards", *args)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def provision(langfuse: LangfuseStandIn, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return host_client("provision", "langfuse", *args, **{**langfuse.environ, **environ})


def described() -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in files.files("langfuse")]


def test_the_first_run_makes_every_dashboard_with_its_widgets_in_their_places(langfuse: LangfuseStandIn) -> None:
    run = provision(langfuse)
    assert (run.returncode, run.stderr) == (0, "")
    names = {widget["id"]: widget["name"] for widget in langfuse.widgets}
    made = {
        board["name"]: [(names[t["widgetId"]], t["x"], t["y"], t["width"], t["height"]) for t in tiles(board)]
        for board in langfuse.dashboards
    }
    assert made == {
        file["name"]: [(p["widget"]["name"], p["x"], p["y"], p["x_size"], p["y_size"]) for p in file["widgets"]]
        for file in described()
    }
    assert {line.split()[0] for line in run.stdout.splitlines()} == {"created"}


def test_a_second_run_changes_nothing(langfuse: LangfuseStandIn) -> None:
    provision(langfuse)
    langfuse.requests.clear()
    run = provision(langfuse)
    assert {line.split()[0] for line in run.stdout.splitlines()} == {"unchanged"}
    assert langfuse.writes == []


def test_what_differs_is_updated_and_what_somebody_added_stays(langfuse: LangfuseStandIn) -> None:
    provision(langfuse)
    board = langfuse.dashboards[0]
    langfuse.widgets.append({**langfuse.widgets[0], "id": "c-mine", "name": "mine"})
    tile = {"type": "widget", "id": "t-mine", "widgetId": "c-mine", "x": 0, "y": 90, "width": 6, "height": 6}
    tiles(board).append(tile)
    tiles(board)[0]["x"] = 7
    langfuse.widgets[3]["description"] = "changed"
    before = {widget["id"] for widget in langfuse.widgets}
    langfuse.requests.clear()
    run = provision(langfuse)
    changed = [line.split(maxsplit=2) for line in run.stdout.splitlines() if not line.startswith("unchanged")]
    assert sorted(change[:2] for change in changed) == [["updated", "dashboard"], ["updated", "widget"]]
    assert {widget["id"] for widget in langfuse.widgets} == before
    assert tiles(langfuse.dashboards[0])[-1] == tile
    assert tiles(langfuse.dashboards[0])[0]["x"] == 0
    assert [method for method, _ in langfuse.writes] == ["PATCH", "PATCH"]


def test_what_is_on_later_pages_is_found(langfuse: LangfuseStandIn) -> None:
    provision(langfuse)
    langfuse.widgets[:0] = [{**langfuse.widgets[0], "id": f"x{n}", "name": f"another {n}"} for n in range(150)]
    langfuse.requests.clear()
    assert provision(langfuse).returncode == 0
    assert langfuse.writes == []


def test_a_tile_that_came_by_an_import_is_taken_over(langfuse: LangfuseStandIn) -> None:
    provision(langfuse)
    tiles(langfuse.dashboards[0])[0]["id"] = "0d6cf1b2-0000-4000-8000-000000000000"
    langfuse.requests.clear()
    provision(langfuse)
    assert langfuse.writes == []


def test_a_file_of_ones_own_is_provisioned(langfuse: LangfuseStandIn, tmp_path: Path) -> None:
    mine = described()[0]
    mine["name"], mine["widgets"] = "mine", mine["widgets"][:1]
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    assert provision(langfuse, str(tmp_path / "mine.json")).returncode == 0
    assert [board["name"] for board in langfuse.dashboards] == ["mine"]


def test_a_run_that_comes_too_early_waits_as_long_as_langfuse_says(langfuse: LangfuseStandIn) -> None:
    early = iter([True, False, True])

    def answering(_method: str, _path: str) -> Raw | None:
        return (
            Raw(429, b'{"message": "slow down", "code": "rate_limited"}', {"retry-after": "0"})
            if next(early, False)
            else None
        )

    langfuse.answering = answering
    run = provision(langfuse)
    assert (run.returncode, run.stderr) == (0, "Langfuse asks for a pause of 0 s\n" * 2)


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b'{"message": "no", "code": "authentication_failed"}', "does not accept the keys (401): check LANGFUSE_"),
        (
            403,
            b'{"message": "org key", "code": "access_denied"}',
            "refuses (403): org key; take the API key of a project",
        ),
        (404, b"<html>404</html>", "has no /api/public/unstable/dashboards (404): it is too old"),
        (500, b'{"message": "ClickHouse\\nis down"}', "(500): ClickHouse is down"),
        (302, b"", "redirects to http://elsewhere/login?… (302): set one of LANGFUSE_OTLP_ENDPOINT"),
        (200, b"<html>a login page</html>", "answers, but not as Langfuse does: set one of LANGFUSE_OTLP_ENDPOINT"),
        (200, b"{}", "answers, but not as Langfuse does: set one of LANGFUSE_OTLP_ENDPOINT"),
        (429, b'{"message": "slow down"}', "(429): slow down"),
    ],
)
def test_a_refusal_is_one_message_that_says_what_to_do(
    langfuse: LangfuseStandIn, status: int, body: bytes, says: str
) -> None:
    headers = {302: {"location": "http://elsewhere/login?next=x"}, 429: {"retry-after": "0"}}.get(status, {})
    langfuse.answering = lambda _method, _path: Raw(status, body, headers)
    run = provision(langfuse)
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("host_client dashboards provision langfuse: ")
    assert says in last
    assert langfuse.environ["LANGFUSE_SECRET_KEY"] not in run.stderr


def test_wrong_keys_are_told(langfuse: LangfuseStandIn) -> None:
    run = provision(langfuse, LANGFUSE_SECRET_KEY="sk-lf-wrong")
    assert (run.returncode, langfuse.dashboards) == (1, [])
    assert "does not accept the keys (401)" in run.stderr
    assert "sk-lf-wrong" not in run.stderr


def test_nobody_there_is_told(langfuse: LangfuseStandIn) -> None:
    with socket.socket() as held:  # bound without listening, so that connections are refused
        held.bind(("127.0.0.1", 0))
        run = provision(langfuse, LANGFUSE_BASE_URL=f"http://127.0.0.1:{held.getsockname()[1]}")
    assert run.returncode == 1
    assert "cannot be reached" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_without_keys_it_says_where_to_get_them(langfuse: LangfuseStandIn) -> None:
    run = host_client("provision", "langfuse", LANGFUSE_BASE_URL=langfuse.url)
    assert run.returncode == 2
    assert run.stderr == (
        "host_client dashboards provision langfuse: set LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY "
        "(in Langfuse: Settings, API Keys)\n"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a Langfuse dashboard file: "),
        ('{"name": "x", "version": 1, "widgets": []}', "is not a Langfuse dashboard file: "),
        ('{"$langfuseDashboard": true, "name": "x", "version": 2, "widgets": []}', "dashboard file of version 1"),
    ],
)
def test_what_is_no_dashboard_file_is_told_before_anything_is_asked(
    langfuse: LangfuseStandIn, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "bad.json").write_text(text)
    run = provision(langfuse, str(tmp_path / "bad.json"))
    assert (run.returncode, langfuse.requests) == (2, [])
    assert says in run.stderr


def test_write_copies_every_file(tmp_path: Path) -> None:
    run = host_client("write", str(tmp_path / "new"))
    listed = host_client("list").stdout.split()
    assert run.returncode == 0
    assert sorted(listed) == sorted(str(f.relative_to(tmp_path / "new")) for f in (tmp_path / "new").rglob("*.*"))
    assert all((tmp_path / "new" / name).read_text() == (files.folder() / name).read_text() for name in listed)


def test_write_says_where_it_may_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = host_client("write", str(tmp_path / "file"))
    assert run.returncode == 2
    assert run.stderr.startswith("host_client dashboards write: ")
    assert len(run.stderr.splitlines()) == 1


def tiles(board: dict[str, Any]) -> list[dict[str, Any]]:
    return board["definition"]["widgets"]

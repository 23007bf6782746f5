"""``host_client doctor`` checks that agents can run from this machine, and advises if they cannot."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_runner.contract.findings import SYMBOLS
from tests.support.e2b import Answer, StandIn

from .tools import NODE, SYSTEM_PATH, clean, cli_folder, host_client

NEITHER = SYMBOLS[None]
KEYED = {"ANTHROPIC_API_KEY": "sk-never-shown"}


class Doctor:
    """Runs ``host_client doctor`` in a minimal environment; checks that it shows neither a key nor a traceback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        done = host_client("doctor", *args, environ=clean(self._folder, environ), cwd=self._folder)
        assert "Traceback" not in done.stdout + done.stderr
        assert "sk-never-shown" not in done.stdout + done.stderr
        return done


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    return Doctor(tmp_path)


def finding(done: subprocess.CompletedProcess[str], name: str) -> str:
    """Return the output line of one check: its symbol and message, without its name."""
    (line,) = [line for line in done.stdout.splitlines() if line[2:].startswith(f"{name}: ")]
    return line[0] + line.partition(": ")[2]


def test_all_is_well_with_a_key_and_a_template(doctor: Doctor) -> None:
    with StandIn(templates=("sandspan",)) as e2b:
        done = doctor(**e2b.environ, **KEYED)
        assert done.returncode == 0, done.stdout
        assert finding(done, "E2B key") == f"✓accepted by {e2b.url}"
        assert finding(done, "E2B template") == "✓sandspan exists"
        assert finding(done, "Model credential") == "✓ANTHROPIC_API_KEY is set"
        assert e2b.keys.api_key not in done.stdout
    assert finding(done, "Local sandbox").startswith(f"{NEITHER}not asked for")
    assert "✗" not in done.stdout


def test_a_template_that_is_not_there_is_told_how_to_be_built(doctor: Doctor, e2b: StandIn) -> None:
    done = doctor("--template", "mine:v2", **e2b.environ, **KEYED)
    assert done.returncode == 1
    mend = "Build it: host_client template build --name mine"
    assert finding(done, "E2B template") == f"✗mine:v2 does not exist. {mend}"


def test_a_key_that_e2b_refuses_is_found(doctor: Doctor, e2b: StandIn) -> None:
    done = doctor(**{**e2b.environ, **KEYED, "E2B_API_KEY": "e2b_wrong"})
    assert done.returncode == 1
    assert finding(done, "E2B key").startswith(f"✗{e2b.url} does not accept it")
    assert "E2B template" not in done.stdout
    assert "e2b_wrong" not in done.stdout


def test_an_e2b_that_does_not_answer_is_found(doctor: Doctor, e2b: StandIn) -> None:
    with e2b.unreachable():
        done = doctor(**e2b.environ, **KEYED)
    assert done.returncode == 1
    assert finding(done, "E2B API").startswith(f"✗{e2b.url} does not answer")
    assert "Check E2B_API_URL" in done.stdout


def test_an_e2b_that_fails_is_found_and_asked_once(doctor: Doctor, e2b: StandIn) -> None:
    rule = e2b.fail("GET /v2/sandboxes*", Answer(500, "no luck"), times=None)
    done = doctor(**e2b.environ, **KEYED)
    assert done.returncode == 1
    assert finding(done, "E2B API").startswith("✗")
    assert "no luck" in done.stdout
    assert rule.met == 1


class Page:
    """A fault that answers with the HTML error page of a proxy."""

    async def __call__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await HTMLResponse("<h1>Bad Gateway</h1>", 500)(scope, receive, send)


def test_a_proxys_page_in_place_of_an_answer_is_found(doctor: Doctor, e2b: StandIn) -> None:
    e2b.fail("GET /v2/sandboxes*", Page(), times=None)
    done = doctor(**e2b.environ, **KEYED)
    assert done.returncode == 1
    assert finding(done, "E2B API").startswith(f"✗{e2b.url}")


def test_e2b_that_is_asked_for_without_a_key_is_a_failure(doctor: Doctor) -> None:
    done = doctor("--sandbox", "e2b", **KEYED)
    assert done.returncode == 1
    assert finding(done, "E2B key") == "✗E2B_API_KEY is not set. Create one at https://e2b.dev/dashboard?tab=keys"


def test_without_an_e2b_key_the_local_sandbox_is_what_counts(doctor: Doctor) -> None:
    done = doctor(**KEYED)
    assert done.returncode == 0, done.stdout
    assert finding(done, "E2B").startswith(f"{NEITHER}not asked for")
    assert "(Claude Code)" in finding(done, "Claude CLI")
    assert finding(done, "E2B CLI").startswith(f"{NEITHER}not on PATH")


def test_without_a_credential_for_the_model_no_agent_runs(doctor: Doctor) -> None:
    done = doctor()
    assert done.returncode == 1
    assert finding(done, "Model credential").startswith("✗none is set. Set ANTHROPIC_API_KEY")


@pytest.mark.parametrize(
    ("major", "says"),
    [
        (1, "builds from e2b.toml with `e2b template build`"),
        (2, "refuses `e2b template build`; use `host_client template build`"),
    ],
)
def test_the_version_of_the_e2b_cli_decides_which_command_it_names(doctor: Doctor, major: int, says: str) -> None:
    path = os.pathsep.join([str(cli_folder(major)), str(NODE), SYSTEM_PATH])
    done = doctor(PATH=path, **KEYED)
    assert done.returncode == 0, done.stdout
    found = finding(done, "E2B CLI")
    assert found.startswith(f"✓{major}.")
    assert says in found


def test_a_kind_of_sandbox_that_is_none_is_refused(doctor: Doctor) -> None:
    done = doctor("--sandbox", "docker")
    assert done.returncode == 2
    assert "--sandbox takes one of auto, e2b, local" in done.stderr

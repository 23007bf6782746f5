"""Names and versions agree in e2b.toml, the Dockerfile, the pins and the package."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from e2b import Template

from host_client.sandbox.e2b import DEFAULT_TEMPLATE
from host_client.sandbox.e2b._sandbox import Layout
from host_client.sandbox.e2b.template import DOCKERFILE, TemplateOptions, image_files
from tests.packaging.environments import Wheel, closure
from tests.packaging.test_constraints import pins

from .tools import REPOSITORY, clean, e2b_cli

TEXT = (REPOSITORY / "template" / DOCKERFILE).read_text()
TOML = tomllib.loads((REPOSITORY / "e2b.toml").read_text())
NPM = REPOSITORY / "tests" / "template" / "npm"


def test_e2b_toml_the_dockerfile_and_the_package_are_of_one_mind() -> None:
    defaults = TemplateOptions()
    assert TOML["template_name"] == defaults.name == DEFAULT_TEMPLATE
    assert (TOML["cpu_count"], TOML["memory_mb"]) == (defaults.cpu_count, defaults.memory_mb)
    assert REPOSITORY / TOML["dockerfile"] == image_files() / DOCKERFILE
    assert "start_cmd" not in TOML
    assert "ready_cmd" not in TOML


def test_the_image_has_the_runners_requirements_at_the_pins_of_constraints(wheel: Wheel) -> None:
    pinned = pins()
    lines = (REPOSITORY / "template" / "requirements.txt").read_text().splitlines()
    image = [line for line in lines if not line.startswith("#")]
    assert image == [f"{name}=={pinned[name]}" for name in sorted(closure(wheel, "runner"))]


def test_the_image_is_laid_out_as_the_host_and_the_runner_expect() -> None:
    layout = Layout()
    venv = Path(layout.python).parents[1]
    assert f"python3 -m venv {venv} " in TEXT
    assert f"{layout.python} -I -m agent_runner doctor --image {layout.user}" in TEXT
    assert f"install -d -o root -g root -m 0700 {layout.state}" in TEXT
    assert f"WORKDIR {layout.work}" in TEXT


def test_the_dockerfile_keeps_to_what_e2b_builds(capsys: pytest.CaptureFixture[str]) -> None:
    template = Template(file_context_path=str(REPOSITORY)).from_dockerfile(TEXT)
    built: dict[str, Any] = json.loads(Template.to_json(template))
    assert capsys.readouterr().out == ""  # the SDK's parser prints its warnings to stdout
    assert {"startCmd", "readyCmd"} & built.keys() == set()
    instructions = re.findall(r"^([A-Z]+) ", TEXT, re.MULTILINE)
    assert instructions.count("FROM") == 1
    assert set(instructions) == {"FROM", "RUN", "COPY", "USER", "WORKDIR"}


def test_no_command_has_what_the_e2b_cli_would_change() -> None:
    commands = "\n".join(line for line in TEXT.replace("\\\n", "").splitlines() if line.startswith("RUN"))
    assert "\\" not in commands
    quoted = re.findall(r"'[^']*'|\"[^\"]*\"", commands)
    assert quoted
    assert [text for text in quoted if "  " in text] == []


def test_the_base_is_pinned_by_tag_and_digest() -> None:
    assert re.search(r"^FROM debian:trixie-\d{8}-slim@sha256:[0-9a-f]{64}$", TEXT, re.MULTILINE)


@pytest.mark.parametrize("major", [1, 2])
def test_the_e2b_cli_is_pinned_from_no_particular_registry(major: int) -> None:
    folder = NPM / f"cli-{major}"
    asked = json.loads((folder / "package.json").read_text())["dependencies"]["@e2b/cli"]
    lock = json.loads((folder / "package-lock.json").read_text())["packages"]
    packages = {name: each for name, each in lock.items() if name}
    assert re.fullmatch(rf"{major}\.\d+\.\d+", asked)
    assert packages["node_modules/@e2b/cli"]["version"] == asked
    assert [name for name, each in packages.items() if "resolved" in each or "integrity" not in each] == []


@pytest.mark.parametrize("major", [1, 2])
def test_the_e2b_cli_that_the_tests_run_is_the_pinned_one(major: int, tmp_path: Path) -> None:
    asked = json.loads((NPM / f"cli-{major}" / "package.json").read_text())["dependencies"]["@e2b/cli"]
    done = e2b_cli(major, "--version", environ=clean(tmp_path, {}), cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, asked), done.stderr

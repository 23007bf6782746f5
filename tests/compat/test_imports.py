"""Public imports, commands and functions of f6f5305 exist and accept the same parameters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import host_client.claude
from host_client import errors
from tests.compat.files import PUBLIC, read_text
from tests.compat.public import BASES, NAMES, Parameters, found, taken

ROOT = Path(__file__).resolve().parents[2]

COMMANDS = {
    "agent_runner": (("--version",), "agent_runner "),
    "host_client": (("--help",), "Usage: "),
    "python -m agent_runner": (("--version",), "agent_runner "),
    "python -m host_client": (("--help",), "Usage: "),
    "python -m host_client.scripted_model": (("--help",), "usage: python -m host_client.scripted_model"),
}
"""Documented commands, options that they answer without a run, and the beginning of each answer."""

EXTRAS = ("runner", "host", "redis", "local")
SCRIPTS = ("agent_runner", "host_client")
FILES = ("host_client/demo/mend.yaml", "examples/custom_exporter.py")
"""Files that the documented commands name."""

IMPORT = re.compile(r"^ *from ((?:host_client|agent_runner)[\w.]*) import ([\w, ]+)$", re.MULTILINE)


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_a_documented_name_is_imported_from_where_it_was(module: str, name: str) -> None:
    assert found(module, name) is not None


def test_every_import_in_documents_and_examples_is_of_a_public_name() -> None:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.py")]
    found = [each for file in files for each in IMPORT.findall(file.read_text())]
    assert len(found) >= 10
    used = {(module, name.strip()) for module, names in found for name in names.split(",")}
    public = {(module.__name__, name) for module in (host_client, host_client.claude) for name in module.__all__}
    assert used - public - {(module, name) for module, names in NAMES.items() for name in names} == set()


@pytest.mark.parametrize(("name", "bases"), BASES.items())
def test_an_error_is_caught_as_what_it_was(name: str, bases: tuple[str, ...]) -> None:
    error = getattr(errors, name)
    above = {each.__name__ for each in error.__mro__[1:]}
    assert set(bases) <= above
    assert isinstance(error.error_type, str)


def test_no_error_is_missing() -> None:
    assert {*NAMES["host_client.errors"]} == {*BASES}


@pytest.mark.parametrize(("name", "before"), read_text(PUBLIC).items())
def test_what_programs_call_takes_what_it_took(name: str, before: Parameters) -> None:
    now = taken()[name]
    by_position = [each for each, (kind, _) in before.items() if kind != "KEYWORD_ONLY"]
    assert [each for each, (kind, _) in now.items() if kind != "KEYWORD_ONLY"][: len(by_position)] == by_position
    assert before.keys() - now.keys() == set()
    for each, (_, may_be_left_out) in now.items():
        assert may_be_left_out or before[each] == now[each]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_documented_command_answers(command: str, tmp_path: Path) -> None:
    options, begins = COMMANDS[command]
    words = command.split()
    program = [sys.executable, *words[1:]] if words[0] == "python" else [str(Path(sys.executable).with_name(command))]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "120"}
    done = subprocess.run([*program, *options], capture_output=True, text=True, timeout=60, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lstrip().startswith(begins), done.stdout


def test_extras_and_console_scripts_are_still_there() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) <= project["optional-dependencies"].keys()
    assert set(SCRIPTS) <= project["scripts"].keys()


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_documents_name_in_a_command_is_where_it_was(name: str) -> None:
    assert (ROOT / name).is_file()

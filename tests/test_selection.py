"""Integration tests, which start a process or open a port, are recognized and left out of `make check`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HELPERS = """
import socket, subprocess
from contextlib import contextmanager

@contextmanager
def served():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield

class Tool:
    @property
    def version(self):
        return subprocess.run(["true"], check=True)
"""

TESTS = """
import pytest
from tests.helpers import Tool, served

@pytest.fixture(scope="module")
def server():
    with served():
        yield

def by_a_helper():
    assert Tool().version

def test_by_a_helper():
    by_a_helper()

def test_by_a_fixture(server):
    assert True

@pytest.mark.parametrize("place", [served, pytest.param(str, id="nowhere")])
def test_by_a_parameter(place):
    place()

@pytest.mark.integration
def test_by_its_own_mark():
    exec("import subprocess; subprocess.run(['true'])")

def test_of_values():
    assert sorted("ba") == ["a", "b"]

@pytest.fixture
def unseen():
    exec("import os; os.system('true')")

def test_with_an_unseen_fixture(unseen):
    assert True

def test_that_binds_unseen():
    exec("import socket; socket.socket().bind(('127.0.0.1', 0))")
"""


def test_what_a_test_reaches_decides_and_no_other_may_start_anything(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "__init__.py").touch()
    (tests / "helpers.py").write_text(HELPERS)
    (tests / "test_it.py").write_text(TESTS)
    for name in ("pyproject.toml", "tests/conftest.py", "tests/support"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pytest", "-v", "-W", "ignore::ResourceWarning", "-m", "not integration"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    outcomes = re.findall(r"^tests/test_it.py::(\S+) ([A-Z]+)", done.stdout, re.MULTILINE)
    assert outcomes == [
        ("test_by_a_parameter[nowhere]", "PASSED"),
        ("test_of_values", "PASSED"),
        ("test_with_an_unseen_fixture", "ERROR"),
        ("test_that_binds_unseen", "FAILED"),
    ]
    assert re.search(r"socket.bind \('127.0.0.1', 0\): only an integration test may start this", done.stdout)
    assert "4 deselected" in done.stdout

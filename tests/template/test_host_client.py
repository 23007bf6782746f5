"""``host_client template build`` builds the template with the real Python SDK, without Node and Docker."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.environments import Wheel
from tests.support.e2b import Answer, Outcome, StandIn

from .tools import clean, files_in, host_client, runner_files, told

BASE = "debian:trixie-20260918-slim@sha256:a99cfc517144bc59b1978475ec53b46ecabec7e43635402ee5b77cc54cd1b20a"


def test_the_steps_of_the_dockerfile_are_posted_and_its_files_are_sent(e2b: StandIn, tmp_path: Path) -> None:
    done = host_client("template", "build", environ=clean(tmp_path, e2b.environ), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (build,) = e2b.builds
    assert (build.name, build.tags, build.cpu_count, build.memory_mb) == ("sandspan", ("default",), 2, 2048)
    assert (build.from_image, build.start_cmd, build.ready_cmd) == (BASE, None, None)
    steps = list(told(build.steps))
    assert [step[0] for step in steps] == [
        *("USER", "WORKDIR"),
        *("RUN", "RUN"),
        *("COPY", "RUN"),
        "RUN",
        *("COPY", "RUN"),
        *("USER", "WORKDIR"),
    ]
    assert [step for step in steps if step[0] != "RUN"] == [
        ("USER", "root"),
        ("WORKDIR", "/"),
        ("COPY", "template/requirements.txt", "/opt/sandspan/requirements.txt"),
        ("COPY", "agent_runner", "/opt/sandspan/runner/agent_runner"),
        ("USER", "user"),
        ("WORKDIR", "/home/user/work"),
    ]
    assert steps[-3][1].endswith("agent_runner doctor --image user")
    assert files_in(build.uploaded()) == sorted([*runner_files(), "template/requirements.txt"])
    assert done.stdout == f"sandspan default: template {build.template_id}, build {build.build_id}\n"


def test_name_tags_size_and_cache_are_what_the_options_say(e2b: StandIn, tmp_path: Path) -> None:
    options = ("--name=mine", "--tag=v1", "--tag=latest", "--cpu-count=4", "--memory-mb=4096", "--no-cache")
    done = host_client("template", "build", *options, environ=clean(tmp_path, e2b.environ), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (build,) = e2b.builds
    assert (build.name, build.tags, build.cpu_count, build.memory_mb) == ("mine", ("v1", "latest"), 4, 4096)
    assert build.start is not None
    assert build.start["force"] is True


def test_what_e2b_says_is_shown_as_it_is_said(e2b: StandIn, tmp_path: Path) -> None:
    e2b.build_as(Outcome(lines=("[base] FROM debian", "[builder 1/9] \x1b]0;no\x07RUN apt-get", "Build finished")))
    done = host_client("template", "build", environ=clean(tmp_path, e2b.environ), cwd=tmp_path)
    lines = [line.partition(" s ")[2] for line in done.stderr.splitlines()]
    assert [line for line in lines if line.startswith("[")] == ["[base] FROM debian", "[builder 1/9] RUN apt-get"]
    assert "\x1b" not in done.stderr


def test_a_build_that_fails_says_once_what_the_failing_step_said(e2b: StandIn, tmp_path: Path) -> None:
    said = ("[builder 3/9] Collecting claude-agent-sdk", "[builder 3/9] ERROR: No matching distribution found")
    e2b.build_as(Outcome(lines=said, error="failed to run command: exit status 1", step="3"))
    done = host_client("template", "build", environ=clean(tmp_path, e2b.environ), cwd=tmp_path)
    assert done.returncode == 1
    for line in said:
        assert done.stderr.count(line) == 1
    assert "Build finished" not in done.stderr
    end = done.stderr.splitlines()
    message = "E2B could not build the template: failed to run command: exit status 1"
    assert end[-1] == f"host_client template build: {message}"
    assert "Traceback" not in done.stderr


def test_without_a_key_nothing_is_asked_and_it_says_where_to_get_one(e2b: StandIn, tmp_path: Path) -> None:
    environ = {**clean(tmp_path, e2b.environ), "E2B_API_KEY": ""}
    done = host_client("template", "build", environ=environ, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith("E2B_API_KEY is not set: create a key at https://e2b.dev/dashboard?tab=keys")
    assert e2b.requests == []


def test_a_refused_key_is_one_clear_line(e2b: StandIn, tmp_path: Path) -> None:
    environ = {**clean(tmp_path, e2b.environ), "E2B_API_KEY": "e2b_wrong"}
    done = host_client("template", "build", environ=environ, cwd=tmp_path)
    assert done.returncode == 1
    assert "E2B refused the key: set E2B_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr
    assert "e2b_wrong" not in done.stderr


def test_an_e2b_that_does_not_answer_is_one_clear_line(e2b: StandIn, tmp_path: Path) -> None:
    with e2b.unreachable():
        done = host_client("template", "build", environ=clean(tmp_path, e2b.environ), cwd=tmp_path)
    assert done.returncode == 1
    assert "E2B cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_upload_that_fails_is_one_clear_line(e2b: StandIn, tmp_path: Path) -> None:
    e2b.fail("PUT /uploads/*", Answer(403, "expired"), times=None)
    done = host_client("template", "build", environ=clean(tmp_path, e2b.environ), cwd=tmp_path)
    assert done.returncode == 1
    assert "E2B could not build the template: Failed to upload file" in done.stderr
    assert "Traceback" not in done.stderr


def test_memory_that_e2b_would_refuse_is_refused_here(e2b: StandIn, tmp_path: Path) -> None:
    done = host_client("template", "build", "--memory-mb", "513", environ=clean(tmp_path, e2b.environ), cwd=tmp_path)
    assert done.returncode == 2
    assert "--memory-mb takes an even number" in done.stderr
    assert e2b.requests == []


def test_the_options_name_their_defaults(tmp_path: Path) -> None:
    from host_client.sandbox.e2b.template import TemplateOptions

    shown = host_client("template", "build", "--help", environ=clean(tmp_path, {"COLUMNS": "200"}), cwd=tmp_path)
    defaults = TemplateOptions()
    for default in (defaults.name, defaults.cpu_count, defaults.memory_mb):
        assert f"Default: {default}." in shown.stdout


@pytest.fixture(scope="module")
def unpacked_wheel(wheel: Wheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel.path) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_alone_builds_the_same_template(e2b: StandIn, tmp_path: Path, unpacked_wheel: Path) -> None:
    environ = {**clean(tmp_path, e2b.environ), "PYTHONPATH": str(unpacked_wheel)}
    where = [
        sys.executable,
        "-c",
        "import agent_runner, host_client; print(agent_runner.__file__, host_client.__file__)",
    ]
    used = subprocess.run(where, env=environ, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
    assert used.stdout.count(str(unpacked_wheel)) == 2
    from_wheel = host_client("template", "build", environ=environ, cwd=tmp_path)
    from_checkout = host_client("template", "build", environ=clean(tmp_path, e2b.environ), cwd=tmp_path)
    assert (from_wheel.returncode, from_checkout.returncode) == (0, 0), from_wheel.stderr
    first, second = e2b.builds
    assert list(told(first.steps)) == list(told(second.steps))
    assert files_in(first.uploaded()) == files_in(second.uploaded())

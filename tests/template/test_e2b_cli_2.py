"""The E2B CLI 2.x builds the template with ``template create``; it no longer has ``template build``."""

from __future__ import annotations

from pathlib import Path

from tests.support.e2b import StandIn

from .tools import checkout, clean, e2b_cli, files_in, host_client, runner_files, told

CREATE = ("template", "create", "sandspan", "-d", "template/e2b.Dockerfile", "--cpu-count", "2", "--memory-mb", "2048")


def test_template_create_builds_what_our_own_command_builds(e2b: StandIn, tmp_path: Path) -> None:
    environ = clean(tmp_path, e2b.environ)
    ours = host_client("template", "build", environ=environ, cwd=tmp_path)
    theirs = e2b_cli(2, *CREATE, environ=environ, cwd=checkout(tmp_path / "checkout"))
    assert (ours.returncode, theirs.returncode) == (0, 0), ours.stderr + theirs.stdout + theirs.stderr
    first, second = e2b.builds
    assert list(told(second.steps)) == list(told(first.steps))
    assert (second.name, second.cpu_count, second.memory_mb) == (first.name, first.cpu_count, first.memory_mb)
    assert (second.from_image, second.start_cmd, second.ready_cmd) == (first.from_image, None, None)
    assert second.template_id == first.template_id


def test_template_create_sends_the_runner_and_the_pins_and_nothing_that_python_left(
    e2b: StandIn, tmp_path: Path
) -> None:
    done = e2b_cli(2, *CREATE, environ=clean(tmp_path, e2b.environ), cwd=checkout(tmp_path / "checkout"))
    assert done.returncode == 0, done.stdout + done.stderr
    (build,) = e2b.builds
    assert files_in(build.uploaded()) == sorted([*runner_files(), "template/requirements.txt"])
    assert not [name for name in build.uploaded() if "__pycache__" in name]


def test_template_build_is_refused_by_the_cli_and_asks_e2b_nothing(e2b: StandIn, tmp_path: Path) -> None:
    done = e2b_cli(2, "template", "build", environ=clean(tmp_path, e2b.environ), cwd=checkout(tmp_path / "checkout"))
    assert done.returncode == 1
    assert "DEPRECATION WARNING" in done.stdout
    assert e2b.requests == []

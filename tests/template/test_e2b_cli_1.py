"""The E2B CLI 1.x, which self-hosted E2B also needs, builds an image with Docker from e2b.toml.

There is no Docker here: a program of that name records the CLI's commands. Everything else is real.
"""

from __future__ import annotations

import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.e2b import StandIn

from .tools import checkout, clean, e2b_cli

ROUTE = Path(__file__).with_name("route.cjs")
RECORDER = """\
#!/bin/sh
echo "$*" >> "$DOCKER_RECORD"
if [ "$1" = login ]; then cat > "$DOCKER_RECORD.password"; fi
"""


class Run:
    """Runs the CLI in a copy of the checkout, and reads the recorded Docker commands."""

    def __init__(self, e2b: StandIn, folder: Path) -> None:
        self.checkout = checkout(folder / "checkout")
        self._bin = folder / "bin"
        self._bin.mkdir()
        docker = self._bin / "docker"
        docker.write_text(RECORDER)
        docker.chmod(docker.stat().st_mode | stat.S_IXUSR)
        self._record = folder / "docker"
        routed = {"NODE_OPTIONS": f"--require={ROUTE}", "STAND_IN_URL": e2b.url, "DOCKER_RECORD": str(self._record)}
        self._environ = clean(folder, {**e2b.environ, **routed})

    def build(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = ("template", "build", *args)
        return e2b_cli(1, *command, environ=self._environ, cwd=self.checkout, before_path=self._bin)

    @property
    def docker(self) -> list[str]:
        return self._record.read_text().splitlines()

    @property
    def password(self) -> str:
        return self._record.with_name("docker.password").read_text().strip()


@pytest.fixture
def run(e2b: StandIn, tmp_path: Path) -> Run:
    return Run(e2b, tmp_path)


FIRST = ("--config", "own.toml", "--name", "sandspan", "--dockerfile", "template/e2b.Dockerfile")
SIZE = ("--cpu-count", "2", "--memory-mb", "2048")


def test_the_first_build_makes_a_template_and_tells_its_id(e2b: StandIn, run: Run) -> None:
    done = run.build(*FIRST, *SIZE)
    assert done.returncode == 0, done.stdout + done.stderr
    (build,) = e2b.builds
    assert tomllib.loads((run.checkout / "own.toml").read_text()) == {
        "template_id": build.template_id,
        "dockerfile": "template/e2b.Dockerfile",
        "template_name": "sandspan",
        "cpu_count": 2,
        "memory_mb": 2048,
    }


def test_a_build_posts_what_e2b_toml_says(e2b: StandIn, run: Run) -> None:
    first = run.build(*FIRST, *SIZE)
    assert first.returncode == 0, first.stdout + first.stderr
    config = run.checkout / "e2b.toml"
    config.write_text(
        config.read_text().replace('template_id = "sandspan"', f'template_id = "{e2b.builds[0].template_id}"')
    )
    done = run.build()
    assert done.returncode == 0, done.stdout + done.stderr
    build = e2b.builds[1]
    assert build.template_id == e2b.builds[0].template_id
    assert build.request == {
        "alias": "sandspan",
        "cpuCount": 2,
        "memoryMB": 2048,
        "dockerfile": (run.checkout / "template/e2b.Dockerfile").read_text(),
    }
    assert build.status == "ready"


def test_docker_builds_the_dockerfile_from_the_checkout_and_pushes_it(e2b: StandIn, run: Run) -> None:
    done = run.build(*FIRST, *SIZE)
    assert done.returncode == 0, done.stdout + done.stderr
    image = f"docker.e2b.app/e2b/custom-envs/{e2b.builds[0].template_id}:{e2b.builds[0].build_id}"
    assert [line.split() for line in run.docker] == [
        ["login", "docker.e2b.app", "-u", "_e2b_access_token", "--password-stdin"],
        ["build", "-f", "template/e2b.Dockerfile", "--pull", "--platform", "linux/amd64", "-t", image, "."],
        ["push", image],
    ]
    assert run.password == e2b.keys.access_token


def test_e2b_toml_keeps_its_meaning_when_the_cli_writes_it_anew(e2b: StandIn, run: Run) -> None:
    run.build(*FIRST, *SIZE)
    config = run.checkout / "e2b.toml"
    config.write_text(
        config.read_text().replace('template_id = "sandspan"', f'template_id = "{e2b.builds[0].template_id}"')
    )
    before = tomllib.loads(config.read_text())
    assert run.build().returncode == 0
    assert tomllib.loads(config.read_text()) == before

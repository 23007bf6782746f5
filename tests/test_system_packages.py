"""The script that `make test` runs first installs missing programs, or prints the command that installs them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("system-packages.sh")
PROGRAMS = (
    *("make", "git", "prometheus", "promtool", "prometheus-pushgateway", "redis-server", "redis-cli"),
    *("chromium", "python3"),
)
BARE = "make git prometheus prometheus-pushgateway redis-server chromium fonts-dejavu-core python3 python3-venv"
"""The packages to install on a machine with none of the programs."""


@dataclass(frozen=True)
class Machine:
    """A machine whose PATH is one folder; its fake `apt-get` records its arguments and may add programs."""

    path: Path

    def add(self, *names: str, code: str = "") -> None:
        for name in names:
            (self.path / name).write_text(f"#!/bin/sh\n{code}\n")
            (self.path / name).chmod(0o755)

    def add_apt(self, code: str = "", *, account: int = 0) -> None:
        self.add("apt-get", code=f'echo "$*" >> {self.path}/asked\n{code}')
        self.add("id", code=f"echo {account}")

    @property
    def asked(self) -> list[str]:
        asked = self.path / "asked"
        return asked.read_text().splitlines() if asked.exists() else []

    def run(self) -> subprocess.CompletedProcess[str]:
        command, env = ["/bin/sh", SCRIPT], {"PATH": str(self.path)}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine with none of the programs."""
    for tool in ("sh", "chmod"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    return Machine(tmp_path)


def test_a_machine_that_has_all_programs_is_left_alone(machine: Machine) -> None:
    machine.add_apt()
    machine.add(*PROGRAMS)
    done = machine.run()
    assert (done.returncode, done.stdout, done.stderr, machine.asked) == (0, "", "", [])


def test_root_installs_what_is_missing(machine: Machine) -> None:
    made = "; ".join(f"echo '#!/bin/sh' > {machine.path / name}; chmod +x {machine.path / name}" for name in PROGRAMS)
    machine.add_apt(made)
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.asked == ["update -qq", f"install -y -qq --no-install-recommends {BARE}"]


def test_another_account_is_told_the_command_and_installs_nothing(machine: Machine) -> None:
    machine.add_apt(account=1000)
    machine.add(*(set(PROGRAMS) - {"promtool", "redis-server"}))
    done = machine.run()
    assert (done.returncode, done.stdout, machine.asked) == (1, "", [])
    assert done.stderr.endswith("install them: sudo apt-get install prometheus redis-server\n")
    assert done.stderr.count("\n") == 1


def test_without_apt_the_packages_are_named(machine: Machine) -> None:
    done = machine.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f"(names of Debian's packages): {BARE}\n")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("exit 100", "apt-get update failed; these packages are missing: chromium fonts-dejavu-core"),
        ('[ "$1" = update ]', "apt-get could not install: chromium fonts-dejavu-core"),
        ("", "still missing after the installation: chromium fonts-dejavu-core"),
    ],
)
def test_an_installation_that_fails_is_told(machine: Machine, code: str, told: str) -> None:
    machine.add_apt(code)
    machine.add(*(set(PROGRAMS) - {"chromium"}))
    done = machine.run()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"tests/system-packages.sh: {told}"


def test_a_python_without_venv_gets_it(machine: Machine) -> None:
    machine.add_apt(account=1000)
    machine.add(*PROGRAMS)
    machine.add("python3", code="exit 1")
    assert machine.run().stderr.endswith("sudo apt-get install python3-venv\n")


def test_make_test_stops_there_before_it_downloads_anything(machine: Machine, tmp_path: Path) -> None:
    machine.add_apt(account=1000)
    make = shutil.which("make")
    assert make is not None
    command = [make, "--directory", str(SCRIPT.parents[1]), "test", f"VENV={tmp_path}/venv"]
    env = {"PATH": str(machine.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"sudo apt-get install {BARE}\n" in done.stderr
    assert not (tmp_path / "venv").exists()

"""The built wheel contains the packages and the dashboard files, and has the right metadata."""

from __future__ import annotations

import agent_runner

from .environments import REPOSITORY, Wheel


def test_wheel_holds_the_two_packages_and_nothing_else(wheel: Wheel) -> None:
    tops = {name.split("/")[0] for name in wheel.names}
    assert tops == {"agent_runner", "host_client", f"sandspan-{agent_runner.__version__}.dist-info"}
    assert not [name for name in wheel.names if "__pycache__" in name]


def test_wheel_holds_every_file_of_the_packages(wheel: Wheel) -> None:
    files = [file for package in ("agent_runner", "host_client") for file in (REPOSITORY / package).rglob("*")]
    wanted = {str(file.relative_to(REPOSITORY)) for file in files if file.is_file() and file.suffix != ".pyc"}
    assert len(wanted) > 50
    assert wanted - set(wheel.names) == set()


def test_wheel_holds_every_dashboard_file(wheel: Wheel) -> None:
    files = [file for kind in ("json", "yml") for file in (REPOSITORY / "dashboards").rglob(f"*/*.{kind}")]
    assert len(files) > 10
    assert {f"host_client/{file.relative_to(REPOSITORY)}" for file in files} - set(wheel.names) == set()


def test_wheel_has_the_version_of_the_runner_and_the_licence(wheel: Wheel) -> None:
    assert wheel.metadata["Version"] == agent_runner.__version__
    assert wheel.metadata["License-Expression"] == "Apache-2.0"
    assert f"sandspan-{agent_runner.__version__}.dist-info/licenses/LICENSE" in wheel.names

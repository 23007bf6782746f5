"""The pinned environment: exact versions, complete, and from no particular index."""

from __future__ import annotations

import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from .environments import REPOSITORY, Wheel, closure


def pins() -> dict[str, str]:
    """Return the pinned versions by name; fail on a line in constraints.txt that is not ``name==version``."""
    found: dict[str, str] = {}
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        (only,) = requirement.specifier
        assert only.operator == "==" and not only.version.endswith("*"), line
        assert requirement.url is None and requirement.marker is None and not requirement.extras, line
        found[canonicalize_name(requirement.name)] = only.version
    return found


def test_constraints_name_no_index_and_no_path() -> None:
    text = (REPOSITORY / "constraints.txt").read_text()
    assert not [line for line in text.splitlines() if "/" in line or " @ " in line or line.startswith("-")]


def test_every_direct_dependency_and_the_build_backend_are_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    lines += [line for extra in extras.values() for line in extra]
    direct = {canonicalize_name(Requirement(line).name) for line in lines} - {"sandspan"}
    assert direct - pins().keys() == set()


def test_pins_satisfy_what_the_project_asks_for(wheel: Wheel) -> None:
    pinned = pins()
    asked = [each for each in wheel.requirements if canonicalize_name(each.name) != "sandspan"]
    assert [str(each) for each in asked if not each.specifier.contains(pinned[canonicalize_name(each.name)])] == []


def test_this_environment_is_the_pinned_one(wheel: Wheel) -> None:
    # `Version` normalizes, as one package reports its version as v0.0.21.
    installed = {name: str(Version(each.version)) for name, each in closure(wheel, "dev").items()}
    pinned = pins()
    assert installed == {name: pinned.get(name) for name in installed}

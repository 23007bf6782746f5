"""Fixtures of the built wheel and of environments with it, each made once."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .environments import Environment, Wheel, build_wheel, closure, new_environment

Installed = Callable[..., Environment]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Wheel, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Return a function that gives the environment of ``pip install sandspan[extras]``."""
    made: dict[tuple[str, ...], Environment] = {}

    def of(*extras: str) -> Environment:
        if extras not in made:
            folder = tmp_path_factory.mktemp("-".join(extras) or "bare") / "venv"
            made[extras] = new_environment(folder, wheel, closure(wheel, *extras))
        return made[extras]

    return of

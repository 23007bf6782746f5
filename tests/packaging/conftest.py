"""The wheel is built once, and each environment made once."""

from __future__ import annotations

import pytest

from .environments import Environment, Wheel, build_wheel, closure, new_environment


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def bare(wheel: Wheel, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install sandspan`: neither role."""
    return new_environment(tmp_path_factory.mktemp("bare") / "venv", wheel, closure(wheel))


@pytest.fixture(scope="session")
def runner(wheel: Wheel, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install sandspan[runner]`: a sandbox image."""
    return new_environment(tmp_path_factory.mktemp("runner") / "venv", wheel, closure(wheel, "runner"))


@pytest.fixture(scope="session")
def host(wheel: Wheel, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """`pip install sandspan[host]`: a host whose sandboxes are elsewhere."""
    return new_environment(tmp_path_factory.mktemp("host") / "venv", wheel, closure(wheel, "host"))

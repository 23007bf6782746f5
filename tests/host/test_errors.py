"""The diagram of errors in the documentation of `host_client.errors` matches the classes."""

from __future__ import annotations

import importlib
import pkgutil
import re

import host_client
from host_client import errors
from host_client.errors import SandspanError

LINE = re.compile(r"^ {4}([│├└─ ]*)(\w+Error)\b(.*)$", re.MULTILINE)


def drawn() -> dict[str, str]:
    """Return the parent's name of each error in the module docstring's diagram."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for branches, name, about in LINE.findall(errors.__doc__ or ""):
        depth = len(branches) // 4
        del above[depth:]
        if above:
            parents[name] = above[-1]
            assert about.strip(), f"nothing is said of {name}"
        above.append(name)
    return parents


def defined() -> dict[str, str]:
    """Return the parent's name of each error class in the whole package."""
    for module in pkgutil.walk_packages(host_client.__path__, "host_client."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    parents: dict[str, str] = {}
    left: list[type[SandspanError]] = [SandspanError]
    while left:
        parent = left.pop()
        for child in parent.__subclasses__():
            if child.__module__.startswith("host_client"):
                parents[child.__name__] = parent.__name__
                left.append(child)
    return parents


def test_every_error_is_drawn_below_its_parent() -> None:
    assert drawn() == defined()

"""Tell integration tests, which start a process or open a port, from the tests that `make check` runs."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import pytest

STARTERS = frozenset(
    {
        *("subprocess", "multiprocessing", "sync_playwright"),
        *("bind", "create_server", "start_server", "ThreadingHTTPServer", "grpc", "uvicorn"),
        *("PrometheusServer", "ScriptedModel"),
    }
)
"""Names that the code of an integration test contains, or a fixture or a helper under ``tests`` that it uses."""

EVENTS = frozenset(
    {"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.spawn", "os.system", "socket.bind"}
)
"""Python's audit events for a start. A gRPC server has none; `STARTERS` alone finds it."""


def is_integration(test: pytest.Function) -> bool:
    """Return whether a test reaches a starter: by itself, by its fixtures, or by its parameters."""
    # pytest has no public way to the functions of a test's fixtures before they run.
    fixtures: dict[str, Any] = test._fixtureinfo.name2fixturedefs  # pyright: ignore[reportPrivateUsage]
    parameters: dict[str, Any] = test.callspec.params if hasattr(test, "callspec") else {}
    used: list[Any] = [test.obj, *(defined[-1].func for defined in fixtures.values()), *parameters.values()]
    seen = set[FunctionType]()
    return any(_reaches_starter(function, seen) for each in used for function in _functions(each))


def _reaches_starter(function: FunctionType, seen: set[FunctionType]) -> bool:
    """Follow the names in a function's code to the functions and classes of the tests that they stand for."""
    if function in seen:
        return False
    seen.add(function)
    names = set(_names(function.__code__))
    if names & STARTERS:
        return True
    used = [function.__globals__[name] for name in names & function.__globals__.keys()]
    return any(_reaches_starter(each, seen) for value in used for each in _functions(value))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _functions(value: Any) -> Iterator[FunctionType]:
    """Return a function of the tests without its decorators, or the functions in a class of the tests."""
    if isinstance(value, FunctionType):
        value = inspect.unwrap(value)
        if value.__module__.startswith("tests."):
            yield value
    elif isinstance(value, type):
        for base in value.__mro__:
            for member in vars(base).values():
                function = getattr(member, "fget", getattr(member, "__func__", member))
                if isinstance(function, FunctionType):
                    yield from _functions(function)


_starts: list[str] | None = None
"""Names of the processes and ports that were started within `starts_nothing`; None outside of it."""


def _note_start(event: str, arguments: tuple[Any, ...]) -> None:
    if event in EVENTS and _starts is not None:
        _starts.append(f"{event} {arguments[1] if event == 'socket.bind' else arguments[:2]}")


sys.addaudithook(_note_start)


@contextmanager
def starts_nothing() -> Generator[None]:
    """Fail the test that starts a process or opens a port within the block."""
    global _starts
    _starts = started = []
    try:
        yield
    finally:
        _starts = None
    if started:
        pytest.fail(
            f"{started[0]}: only an integration test may start this. Mark the test with pytest.mark.integration, "
            "or add a name to STARTERS in tests/support/integration.py",
            pytrace=False,
        )

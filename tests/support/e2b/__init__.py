"""A stand-in of E2B: its REST API and the envd of each sandbox, on one port of the loopback interface.

The unmodified SDK and CLI talk to it. Commands run for real, on this machine.

    with StandIn() as e2b:
        monkeypatch_environment(e2b.environ)
        sandbox = await AsyncSandbox.create("sandspan")
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from .answers import ApiError, error_response
from .builds import Build, BuildsApi, Outcome
from .chunks import fixed_chunks, random_chunks
from .envd import Envd
from .faults import (
    Answer,
    CutAfterBytes,
    CutAfterEvents,
    CutAtRandom,
    Fault,
    Faults,
    Hold,
    Reset,
    ResetAfter,
    Rule,
    Slow,
)
from .image import Image
from .keys import Keys, RequireKey
from .processes import Chunking, Process
from .recording import Recorded, Recording
from .rest import RestApi
from .sandboxes import Sandbox, Sandboxes
from .server import Server, loop_in_a_thread, run_in
from .streams import Ending
from .templates import TemplatesApi, TemplateStore

__all__ = [
    "Answer",
    "Build",
    "CutAfterBytes",
    "CutAfterEvents",
    "CutAtRandom",
    "Ending",
    "Fault",
    "Hold",
    "Image",
    "Outcome",
    "Process",
    "Recorded",
    "Reset",
    "ResetAfter",
    "Rule",
    "Sandbox",
    "Slow",
    "StandIn",
    "fixed_chunks",
    "random_chunks",
]

T = TypeVar("T")


class StandIn:
    """A context manager.

    ``templates`` are the names, or ``name:tag``, that exist from the start; ``unprivileged`` is this machine's account
    for the image's ``user``; ``port`` 0 is any free one (CLI 1 knows only 3000, with ``E2B_DEBUG=true``).
    """

    def __init__(
        self,
        *,
        templates: tuple[str, ...] = ("sandspan", "base"),
        unprivileged: str = "nobody",
        image: Image | None = None,
        max_timeout: int = 24 * 3600,
        port: int = 0,
    ) -> None:
        self.keys = Keys(f"e2b_{secrets.token_hex(20)}", f"sk_e2b_{secrets.token_hex(20)}")
        self._root = Path(tempfile.gettempdir()) / f"e2b-stand-in-{secrets.token_hex(6)}"
        self._sandboxes = Sandboxes(self._root, unprivileged, self._interrupt)
        self.templates = TemplateStore(templates)
        self._envd = Envd(self._sandboxes, image or Image())
        self._builds = BuildsApi(self.templates)
        self._rest = RestApi(self._sandboxes, self.templates, max_timeout)
        rest = [
            *self._rest.routes(),
            *TemplatesApi(self.templates, self.keys.api_key).routes(),
            *self._builds.routes(),
        ]
        api = Mount("/", routes=rest, middleware=[Middleware(RequireKey, keys=self.keys)])
        routes = [*self._envd.routes(), *self._builds.uploads(), api]
        app = Starlette(routes=routes, exception_handlers={ApiError: _refuse})
        self._faults = Faults(app)
        self._recording = Recording(self._faults)
        self._server = Server(self._recording, port)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self._root, ignore_errors=True)
            self._root.mkdir()
            self._root.chmod(0o755)  # the unprivileged account has its home below
            self._loop = stack.enter_context(loop_in_a_thread())
            stack.callback(lambda: self._run(self._sandboxes.close()))
            self._run(self._server.listen())
            stack.callback(lambda: self._run(self._server.close()))
            stack.callback(self.heal)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Return the address of the stand-in."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def environ(self) -> dict[str, str]:
        """Return the variables that lead the SDK and the CLI to the stand-in."""
        return {
            "E2B_API_KEY": self.keys.api_key,
            "E2B_ACCESS_TOKEN": self.keys.access_token,
            "E2B_API_URL": self.url,
            "E2B_SANDBOX_URL": self.url,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    @property
    def requests(self) -> list[Recorded]:
        """Return all requests, the oldest first."""
        return list(self._recording.requests)

    @property
    def sandboxes(self) -> list[Sandbox]:
        """Return all sandboxes, also ended ones, the oldest first."""
        return list(self._sandboxes.by_id.values())

    def sandbox(self, sandbox_id: str) -> Sandbox:
        """Return a sandbox by its id."""
        return self._sandboxes.by_id[sandbox_id]

    @property
    def builds(self) -> list[Build]:
        """Return all builds of templates, the oldest first."""
        return list(self._builds.builds)

    def until(self, holds: Callable[[], object]) -> None:
        """Wait, within a limit, until a condition holds that the sandboxes bring about."""
        self._run(_until(holds))

    def build_as(self, outcome: Outcome) -> None:
        """Set the outcome of later builds."""
        self._builds.outcome = outcome

    def forbid_transform_rules(self) -> None:
        """Refuse network transform rules, as for a team that does not have them."""
        self._rest.transform_rules = False

    def fail(self, pattern: str, fault: Fault, *, times: int | None = 1, skip: int = 0) -> Rule:
        """Apply a fault to the next ``times`` requests whose ``METHOD /path`` matches, after ``skip`` of them.

        ``*`` stands for any text; ``times=None`` is until `heal`.
        """
        rule = Rule(pattern, fault, times, skip)
        self._faults.rules.append(rule)
        return rule

    def heal(self) -> None:
        """Clear every fault of `fail`."""
        self._faults.clear()

    @contextlib.contextmanager
    def unreachable(self) -> Generator[None]:
        """Refuse new connections and reset open ones."""
        self._run(self._server.close())
        try:
            yield
        finally:
            self._run(self._server.listen())

    def cut_streams(self, ending: Ending = Ending.RESET) -> int:
        """Cut all live streams; return their number."""
        return self._run(self._cut(ending))

    async def _cut(self, ending: Ending) -> int:
        streams = self._envd.live_streams()
        for stream in streams:
            stream.cut(ending)
        return len(streams)

    def silence_streams(self) -> int:
        """Silence all live streams but leave them open, as a stuck envd does; return their number."""
        return self._run(self._silence())

    async def _silence(self) -> int:
        streams = self._envd.live_streams()
        for stream in streams:
            stream.silence()
        return len(streams)

    def kill_process(self, pid: int) -> None:
        """Kill a process behind the client's back."""
        assert pid in [process.pid for sandbox in self.sandboxes for process in sandbox.table.living]
        os.kill(pid, signal.SIGKILL)

    def lose(self, sandbox_id: str) -> None:
        """Kill a sandbox behind the client's back."""
        self._run(self._sandboxes.kill(self.sandbox(sandbox_id)))

    def pause(self, sandbox_id: str) -> None:
        """Pause a sandbox as E2B does when its time is up."""
        self._run(self._paused(self.sandbox(sandbox_id)))

    async def _paused(self, sandbox: Sandbox) -> None:
        self._sandboxes.pause(sandbox)

    def close_port(self, sandbox_id: str) -> None:
        """Close envd's port for new requests, while the sandbox continues."""
        self.sandbox(sandbox_id).port_open = False

    def open_port(self, sandbox_id: str) -> None:
        """Open envd's port again."""
        self.sandbox(sandbox_id).port_open = True

    def rechunk(self, chunking: Chunking) -> None:
        """Change how the later output of processes is cut into chunks."""
        self._sandboxes.chunking = chunking

    def slow_down(self, seconds: float) -> None:
        """Wait this long after each event of a stream, as envd does for a slow reader."""
        self._envd.pace = seconds

    def _interrupt(self, sandbox: Sandbox) -> None:
        for stream in self._envd.live_streams(sandbox):
            stream.cut(Ending.LOST)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return run_in(self._loop, work)


async def _until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 - what a process does on its own has no event here
        await asyncio.sleep(0.005)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error.status, error.message)

"""A stand-in of E2B: its REST API and the envd of each sandbox, on one port of the loopback interface.

The unmodified SDK and CLI talk to it. Commands run for real, on this machine.

    with StandIn() as e2b:
        monkeypatch_environment(e2b.environ)
        sandbox = await AsyncSandbox.create("sandspan")
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from .answers import ApiError, error_response
from .envd import Envd
from .recording import Recorded, Recording
from .rest import RestApi, TemplateStore
from .sandboxes import Sandbox, Sandboxes
from .server import Server, loop_in_a_thread, run_in
from .streams import Ending

__all__ = ["Ending", "Recorded", "Sandbox", "StandIn"]

T = TypeVar("T")


class StandIn:
    """A context manager; ``unprivileged`` is this machine's account for the image's ``user``."""

    def __init__(
        self,
        *,
        templates: tuple[str, ...] = ("sandspan", "base"),
        unprivileged: str = "nobody",
        max_timeout: int = 24 * 3600,
    ) -> None:
        self.api_key = f"e2b_{secrets.token_hex(20)}"
        self._stack = contextlib.ExitStack()
        self._root = Path(tempfile.mkdtemp(prefix="e2b-stand-in-"))
        self._root.chmod(0o755)  # the unprivileged account has its home below
        self._sandboxes = Sandboxes(self._root, unprivileged, self._interrupt)
        self.templates = TemplateStore(templates)
        self._envd = Envd(self._sandboxes)
        rest = RestApi(self._sandboxes, self.templates, max_timeout)
        routes = [*self._envd.routes(), *rest.routes()]
        app = Starlette(routes=routes, exception_handlers={ApiError: _refuse})
        self._recording = Recording(app)
        self._server = Server(self._recording)

    def __enter__(self) -> Self:
        self._loop = self._stack.enter_context(loop_in_a_thread())
        self._stack.callback(shutil.rmtree, self._root, ignore_errors=True)
        self._run(self._server.listen())
        self._stack.callback(lambda: self._run(self._server.close()))
        self._stack.callback(lambda: self._run(self._sandboxes.close()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def environ(self) -> dict[str, str]:
        """What makes the SDK and the CLI talk to it."""
        return {
            "E2B_API_KEY": self.api_key,
            "E2B_API_URL": self.url,
            "E2B_SANDBOX_URL": self.url,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    @property
    def requests(self) -> list[Recorded]:
        """Every request, the first one first."""
        return list(self._recording.requests)

    @property
    def sandboxes(self) -> list[Sandbox]:
        """Every sandbox there ever was, the first one first."""
        return list(self._sandboxes.by_id.values())

    def sandbox(self, sandbox_id: str) -> Sandbox:
        """Return one of them."""
        return self._sandboxes.by_id[sandbox_id]

    def _interrupt(self, sandbox: Sandbox) -> None:
        for stream in self._envd.live_streams(sandbox):
            stream.cut(Ending.LOST)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return run_in(self._loop, work)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error.status, error.message)

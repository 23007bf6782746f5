"""A sandbox in E2B's cloud: the runner as root, the agent as an account of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from e2b import AsyncSandbox, SandboxNotFoundException

from agent_runner.contract.protocol import ProtocolError, Start, decode_event
from host_client.errors import ConfigurationError, SandboxError
from host_client.sandbox.base import Progress, SandboxInfo

from . import _files as files
from . import _lifecycle as lifecycle
from ._connection import api_params
from ._failures import Translated, failure_of
from ._layout import Layout
from ._process import E2BProcess, progress
from .inventory import owner
from .keys import KeyMode, key_environment, model_host, network_options

DEFAULT_TEMPLATE = "sandspan"
DEFAULT_TIMEOUT = 300

_CLEAN_UP_SECONDS = 30.0
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class E2BOptions:
    """How a sandbox is made; every field is optional.

    ``timeout`` is how many seconds it lives when nobody renews it; a session does. ``allow_out`` are the
    only destinations it may reach (hosts, addresses, CIDR blocks), with the model's host; all, if empty.
    ``metadata`` is listed with the sandbox; ``envs`` is the environment of everything in it.
    ``pause``: a session's end sets it aside instead of removing it. ``secret_name`` is that of the E2B secret
    that holds the model's key, for ``keys="e2b-secrets"``. ``outlives_host``: another process takes its session over
    when this one dies, so that only a lack of renewals says that it was left.
    """

    template: str = DEFAULT_TEMPLATE
    timeout: int = DEFAULT_TIMEOUT
    allow_out: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    envs: Mapping[str, str] = field(default_factory=dict[str, str])
    keys: KeyMode = "gateway"
    secret_name: str = "anthropic"  # noqa: S105 - its name, not the secret
    pause: bool = False
    outlives_host: bool = False
    layout: Layout = field(default_factory=Layout)

    def __post_init__(self) -> None:
        if not 10 <= self.timeout <= 86_400:
            raise ConfigurationError("timeout takes 10 to 86400 seconds: E2B ends a sandbox after a day at most")


class E2BSandbox:
    """Runs the runner in E2B.

    ``environ`` says which E2B, with which key, and where the model is. ``resume`` is the id of a paused
    sandbox: `create` wakes that one.
    """

    def __init__(
        self, options: E2BOptions | None = None, *, environ: Mapping[str, str], resume: str | None = None
    ) -> None:
        self._options = options or E2BOptions()
        self._resume = resume
        secret = self._options.secret_name if self._options.keys == "e2b-secrets" else None
        self._network = network_options(self._options.allow_out, secret, model_host(environ))
        self._environ = environ
        self._connection = api_params(environ)
        self._sandbox: AsyncSandbox | None = None
        self._creating: asyncio.Task[AsyncSandbox] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._processes: list[E2BProcess] = []
        self._ran = False

    # -- life -------------------------------------------------------------------------------------

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        """Create or wake it; raise `SandboxStartError` or another `SandboxError`."""
        began = time.monotonic()
        making = self._wake(self._resume) if self._resume else self._make(metadata)
        self._creating = asyncio.ensure_future(making)
        # Not cancelled with its caller: a request under way may make a sandbox all the same.
        sandbox = await asyncio.shield(self._creating)
        self._sandbox = sandbox
        took = round((time.monotonic() - began) * 1000, 3)
        self._renewing = asyncio.create_task(self._renew(sandbox))
        layout = self._options.layout
        return SandboxInfo(
            id=sandbox.sandbox_id,
            kind="e2b",
            work=layout.work,
            journal=f"{layout.state}/{time.time_ns()}.jsonl",
            conversation=await self._conversation() if self._resume else None,
            attributes={"sandbox.creation_duration_ms": took, **await self._reported()},
        )

    async def adopt(self, info: SandboxInfo, process_id: str) -> E2BProcess:
        """Connect to it; its runner may have gone on meanwhile, or ended."""
        self._sandbox = sandbox = await lifecycle.reach(info.id, self._options.timeout, self._connection)
        self._ran = True
        self._renewing = asyncio.create_task(self._renew(sandbox))
        return await E2BProcess.adopt(sandbox, process_id)

    async def _make(self, metadata: Mapping[str, str]) -> AsyncSandbox:
        options = self._options
        noted = {"sandspan.timeout": str(options.timeout), "sandspan.keys": options.keys}
        if options.pause:
            noted["sandspan.keep"] = "pause"
        owned = {} if options.outlives_host else owner()
        request = {
            "template": options.template,
            "timeout": options.timeout,
            "metadata": {**options.metadata, **metadata, **owned, **noted},
            "envs": dict(options.envs),
            "network": self._network,
            # A killed host leaves a session that is to be kept to be paused, not ended.
            "lifecycle": {"on_timeout": "pause" if options.pause else "kill", "auto_resume": False},
            **self._connection,
        }
        return await lifecycle.make(request, metadata["sandspan.run_id"], self._environ)

    async def _wake(self, sandbox_id: str) -> AsyncSandbox:
        with Translated():
            sandbox = await AsyncSandbox.connect(sandbox_id, timeout=self._options.timeout, **self._connection)
        self._sandbox = sandbox
        await lifecycle.end_earlier(sandbox)
        return sandbox

    async def _reported(self) -> dict[str, str | int | float]:
        """Return what E2B says of the sandbox, as attributes."""
        try:
            said = await self._made.get_info()
        except Exception as error:  # a detail: the sandbox is there
            _logger.warning("E2B does not say what sandbox %s is: %s", self._made.sandbox_id, failure_of(error))
            return {"sandbox.template_id": self._options.template}
        return {
            "sandbox.template_id": said.template_id,
            "sandbox.cpu_cores": said.cpu_count,
            "sandbox.memory_mb": said.memory_mb,
        }

    async def _conversation(self) -> str:
        """Return Claude's session id, from the newest journal that has one."""
        state = self._options.layout.state
        search = (
            f'for j in $(/bin/ls -t {state}/*.jsonl); do /bin/grep -m1 -F \'"type":"start"\' $j && break; done; exit 0'
        )
        with Translated():
            found = await self._made.commands.run(search, user="root")
        try:
            event = decode_event(found.stdout.encode())
        except ProtocolError:
            event = None
        if not isinstance(event, Start):
            raise SandboxError(
                f"sandbox {self._made.sandbox_id} holds no conversation to go on with", "invalid_request"
            )
        return event.data.session_id

    async def _renew(self, sandbox: AsyncSandbox) -> None:
        """Put the sandbox's end off for as long as there is a session; E2B ends it when nobody does."""
        timeout = self._options.timeout
        pause = timeout / 3
        while True:
            await asyncio.sleep(pause)
            try:
                await sandbox.set_timeout(timeout)
                pause = timeout / 3
            except SandboxNotFoundException as error:
                # The streams of a sandbox that is gone can stay open and silent, so their readers are told here.
                for process in self._processes:
                    process.lose(failure_of(error))
                return
            except Exception as error:  # it is tried eight times before the sandbox ends
                pause = timeout / 12
                _logger.warning("sandbox %s was not renewed: %s", sandbox.sandbox_id, failure_of(error))

    async def leave(self) -> None:
        """Let go of it: put its end off no more, read no more."""
        await self._let_go()
        self._sandbox = self._creating = None

    async def _let_go(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        for process in self._processes:
            await process.disconnect()

    async def close(self) -> None:
        """Remove the sandbox, or pause it; raise `SandboxError` where it may have been left."""
        await self._let_go()
        sandbox = self._sandbox or await self._late()
        if sandbox is None:
            return
        # One that was woken and did not get to run goes back to sleep: it is somebody's conversation.
        if self._options.pause if self._ran else self._resume:
            await lifecycle.set_aside(sandbox)
        else:
            await lifecycle.end(sandbox)
        self._sandbox = self._creating = None

    async def _late(self) -> AsyncSandbox | None:
        """Return a sandbox whose creation was under way when its caller was cancelled."""
        if self._creating is None:
            return None
        with contextlib.suppress(Exception):  # its caller was told, or has left
            async with asyncio.timeout(_CLEAN_UP_SECONDS):
                return await self._creating
        return None

    # -- the protocol -----------------------------------------------------------------------------

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> E2BProcess:
        """Start the runner as root; its agent runs as the template's account."""
        layout = self._options.layout
        if args[0] == "run":
            self._ran = True
            env = {**key_environment(self._options.keys, env), "AGENT_USER": layout.user}
        # -P: a module of the agent's making must never be imported by root.
        command = shlex.join((layout.python, "-P", "-m", "agent_runner", *args))
        process = await E2BProcess.start(self._made, command, dict(env))
        self._processes = [each for each in (*self._processes, process) if each.followed]
        return process

    async def progress(self, journal: str, process_id: str) -> Progress:
        """Read the end of the journal, and look for the process, by one short command."""
        return await progress(self._made, journal, process_id)

    async def upload(self, source: Path) -> None:
        """Copy into the working directory."""
        await files.upload(self._made, source, self._options.layout)

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Read from the working directory, as the agent's account."""
        return await files.read_file(self._made, self._options.layout, path, max_bytes)

    async def download(self, target: Path) -> None:
        """Copy out of the working directory."""
        await files.download(self._made, self._options.layout, target)

    @property
    def _made(self) -> AsyncSandbox:
        assert self._sandbox is not None, "create() comes first"
        return self._sandbox

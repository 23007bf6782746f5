"""The sandbox in E2B's cloud: the runner runs as root, the agent under a separate account."""

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
    """Options of a sandbox in E2B; every field is optional.

    ``timeout``: seconds after which E2B ends the sandbox, unless its session renews it. ``allow_out``: the only
    destinations (hosts, addresses, CIDR blocks) that it may reach, besides the model's host; without any, all are
    allowed. ``metadata`` is listed with the sandbox; ``envs`` are variables of every process in it. ``pause``: pause
    the sandbox at the end of the session instead of removing it. ``secret_name``: name of the E2B secret that holds the
    model's key, for ``keys="e2b-secrets"``. ``outlives_host``: another process may take the session over, so
    the sandbox does not count as abandoned when the process that created it has ended.
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
    """Runs the runner in a sandbox of E2B.

    ``environ`` holds the address and key of E2B and the address of the model. ``resume`` is the id of a paused sandbox,
    which `create` resumes in place of creating one.
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

    def work_in(self, folder: Path) -> bool:
        """Return False, as the agent works in a copy; raise `ConfigurationError` for a sandbox that is resumed."""
        if self._resume:
            raise ConfigurationError(f"cwd {folder}: a session that is resumed has its files: use upload for more")
        return False

    async def create(self, metadata: Mapping[str, str]) -> SandboxInfo:
        """Create the sandbox, or resume the paused one; raise `SandboxStartError` or another `SandboxError`."""
        making = self._resume_paused(self._resume) if self._resume else self._create_new(metadata)
        self._creating = asyncio.ensure_future(making)
        # Not cancelled with its caller: the request may create a sandbox all the same, which `close` then removes.
        sandbox = await asyncio.shield(self._creating)
        self._sandbox = sandbox
        self._renewing = asyncio.create_task(self._renew(sandbox))
        layout = self._options.layout
        return SandboxInfo(
            id=sandbox.sandbox_id,
            kind="e2b",
            work=layout.work,
            journal=f"{layout.state}/{time.time_ns()}.jsonl",
            conversation=await self._conversation() if self._resume else None,
            attributes=await self._e2b_attributes(),
        )

    async def adopt(self, info: SandboxInfo, process_id: str) -> E2BProcess:
        """Connect to a sandbox that another host created; return its runner, which may have ended."""
        self._sandbox = sandbox = await lifecycle.connect_to(info.id, self._options.timeout, self._connection)
        self._ran = True
        self._renewing = asyncio.create_task(self._renew(sandbox))
        return await E2BProcess.adopt(sandbox, process_id)

    async def _create_new(self, metadata: Mapping[str, str]) -> AsyncSandbox:
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
            # If the host is killed, E2B pauses a sandbox that is to be kept.
            "lifecycle": {"on_timeout": "pause" if options.pause else "kill", "auto_resume": False},
            **self._connection,
        }
        return await lifecycle.create(request, metadata["sandspan.run_id"], self._environ)

    async def _resume_paused(self, sandbox_id: str) -> AsyncSandbox:
        with Translated():
            sandbox = await AsyncSandbox.connect(sandbox_id, timeout=self._options.timeout, **self._connection)
        self._sandbox = sandbox
        await lifecycle.end_processes(sandbox)
        return sandbox

    async def _e2b_attributes(self) -> dict[str, str | int | float]:
        """Return E2B's facts of the sandbox, as span attributes."""
        try:
            info = await self._created.get_info()
        except Exception as error:  # a detail, as the sandbox exists
            _logger.warning("the facts of sandbox %s cannot be read: %s", self._created.sandbox_id, failure_of(error))
            return {"sandbox.template_id": self._options.template}
        return {
            "sandbox.template_id": info.template_id,
            "sandbox.cpu_cores": info.cpu_count,
            "sandbox.memory_mb": info.memory_mb,
        }

    async def _conversation(self) -> str:
        """Return Claude's session id from the newest journal in the sandbox that has one."""
        state = self._options.layout.state
        search = (
            f'for j in $(/bin/ls -t {state}/*.jsonl); do /bin/grep -m1 -F \'"type":"start"\' $j && break; done; exit 0'
        )
        with Translated():
            found = await self._created.commands.run(search, user="root")
        try:
            event = decode_event(found.stdout.encode())
        except ProtocolError:
            event = None
        if not isinstance(event, Start):
            raise SandboxError(
                f"sandbox {self._created.sandbox_id} holds no conversation to continue", "invalid_request"
            )
        return event.data.session_id

    async def _renew(self, sandbox: AsyncSandbox) -> None:
        """Renew the sandbox's timeout until cancelled; without renewals E2B ends it."""
        timeout = self._options.timeout
        pause = timeout / 3
        while True:
            await asyncio.sleep(pause)
            try:
                await sandbox.set_timeout(timeout)
                pause = timeout / 3
            except SandboxNotFoundException as error:
                # The streams of a sandbox that has ended can stay open and silent, so they are ended here.
                for process in self._processes:
                    process.lose(failure_of(error))
                return
            except Exception as error:  # there are eight attempts before the sandbox ends
                pause = timeout / 12
                _logger.warning("sandbox %s was not renewed: %s", sandbox.sandbox_id, failure_of(error))

    async def leave(self) -> None:
        """Stop renewing and reading; the sandbox continues."""
        await self._disconnect()
        self._sandbox = self._creating = None

    async def _disconnect(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        for process in self._processes:
            await process.disconnect()

    async def close(self) -> None:
        """Remove the sandbox, or pause it; raise `SandboxError` if it may have been left behind."""
        await self._disconnect()
        sandbox = self._sandbox or await self._late_creation()
        if sandbox is None:
            return
        # A sandbox that was resumed but ran nothing is paused again, as it holds a conversation.
        if self._options.pause if self._ran else self._resume:
            await lifecycle.pause(sandbox)
        else:
            await lifecycle.remove_one(sandbox)
        self._sandbox = self._creating = None

    async def _late_creation(self) -> AsyncSandbox | None:
        """Return a sandbox whose creation was not finished when its caller was cancelled; None if there is none."""
        if self._creating is None:
            return None
        with contextlib.suppress(Exception):  # the caller of `create` has received the error, or was cancelled
            async with asyncio.timeout(_CLEAN_UP_SECONDS):
                return await self._creating
        return None

    # -- the protocol -----------------------------------------------------------------------------

    async def run(self, args: tuple[str, ...], env: Mapping[str, str]) -> E2BProcess:
        """Start ``agent_runner`` as root; it runs the agent under the template's account."""
        layout = self._options.layout
        if args[0] == "run":
            self._ran = True
            env = {**key_environment(self._options.keys, env), "AGENT_USER": layout.user}
        # -P: root must never import a module that the agent wrote.
        command = shlex.join((layout.python, "-P", "-m", "agent_runner", *args))
        process = await E2BProcess.start(self._created, command, dict(env))
        self._processes = [each for each in (*self._processes, process) if each.is_followed]
        return process

    async def progress(self, journal: str, process_id: str) -> Progress:
        """Return the last event in a runner's journal and whether the runner still runs, by one short command."""
        return await progress(self._created, journal, process_id)

    async def upload(self, source: Path) -> None:
        """Copy a file, or a folder's contents, into the working directory."""
        await files.upload(self._created, source, self._options.layout)

    async def execute(self, program: str, data: bytes, max_bytes: int) -> bytes:
        """Run a Python program as the agent's account in the working directory; return its stdout."""
        return await files.execute(self._created, self._options.layout, program, data, max_bytes)

    async def read_file(self, path: str, max_bytes: int) -> bytes:
        """Return the content of a file of the working directory, read as the agent's account."""
        return await files.read_file(self._created, self._options.layout, path, max_bytes)

    async def download(self, target: Path) -> None:
        """Copy the working directory's contents into a folder on this host."""
        await files.download(self._created, self._options.layout, target)

    @property
    def _created(self) -> AsyncSandbox:
        assert self._sandbox is not None, "create() comes first"
        return self._sandbox

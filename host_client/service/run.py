"""Run the service in a process of its own until a signal ends it."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import uvicorn

from agent_runner.contract.directories import temporary_directory
from host_client.client.options import AgentOptions, options_from
from host_client.errors import ConfigurationError
from host_client.sandbox import LocalSandbox, Sandbox
from host_client.signals import loop_signals
from host_client.store import open_store
from host_client.store.base import StoredSession, StoreError
from host_client.telemetry import Telemetry
from host_client.telemetry.setup.environment import telemetry_config
from host_client.telemetry.setup.start import start

from ._api import LOCAL_TENANT
from ._app import create_app
from ._hosting import House
from ._service import Retention, Service
from ._tools import read_tenant_tools
from .config import ServiceConfig, is_loopback

DEMO_PROMPT = "The checks of this program fail. Find out why and mend it."
_DEMO = Path(__file__).parents[1] / "demo"
_SCRIPT, _PROJECT = _DEMO / "serve.yaml", _DEMO / "project"


def options_of(stored: StoredSession) -> AgentOptions:
    """Return the options of a session from its creator's request; raise `ConfigurationError`."""
    request = stored.record.request
    known = ("model", "permission_mode", "max_turns", "max_budget_usd", "system_prompt", "user_id", "user_tier")
    return options_from(
        json.dumps(request.get("options", {})),
        **{name: request[name] for name in (*known, "approval_timeout") if name in request},
        allowed_tools=tuple(request.get("allowed_tools", ())),
        disallowed_tools=tuple(request.get("disallowed_tools", ())),
        verbatim_prompts=True,  # a caller of the service may not read the sandbox's files through the prompt's text
        tenant_id=stored.record.tenant_id,
        attributes=request.get("metadata", {}),
    )


async def forget(stored: StoredSession, environ: Mapping[str, str]) -> None:
    """Remove the sandbox that a dead process may have created for a session without having written it down."""
    if environ.get("E2B_API_KEY"):
        from host_client.sandbox.e2b.inventory import remove_session  # imports e2b, 0.3 s

        await remove_session(environ, stored.record.id)


def service_of(
    config: ServiceConfig,
    sandbox: Callable[[StoredSession], Sandbox],
    environ: Mapping[str, str],
    telemetry: Telemetry,
) -> Service:
    """Return the service for a configuration, not yet started."""
    tools = read_tenant_tools(config.host_tools, environ) if config.host_tools is not None else None
    house = House(
        store=open_store(config.store),
        owner=f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}",
        telemetry=telemetry,
        environ=environ,
        sandbox=sandbox,
        options=lambda stored: replace(
            options_of(stored),
            content=config.content,
            tool_content=config.tool_content,
            deep_trace=config.deep_trace,
        ),
        forget=lambda stored: forget(stored, environ),
        upload=config.upload,
        idle_seconds=config.idle_seconds,
        host_tools=tools.of if tools is not None else lambda tenant_id: (),
    )
    return Service(house, retention=Retention(closed_seconds=config.kept_seconds, events=config.max_events))


def run_service(
    config: ServiceConfig,
    sandbox: Callable[[StoredSession], Sandbox],
    environ: Mapping[str, str],
    *,
    telemetry_environ: Mapping[str, str] = os.environ,
    first: Callable[[Service, str], Awaitable[None]] | None = None,
) -> int:
    """Serve until a signal and return the exit code; raise `ConfigurationError` before anything is served.

    ``first`` is called with the service and its URL once it serves.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    listener = _listener(config)
    url = _url_of(config, listener)
    telemetry = _telemetry(telemetry_environ)
    service = service_of(config, sandbox, environ, telemetry)

    async def ready() -> None:
        sys.stderr.write(f"serving {url} ({_access_of(config)}); Ctrl-C ends the service and its sessions\n")
        sys.stderr.flush()
        if first is not None:
            await first(service, url)

    try:
        return asyncio.run(_serve(service, config, listener, ready))
    finally:
        telemetry.shutdown()


def _telemetry(environ: Mapping[str, str]) -> Telemetry:
    """Start telemetry as the environment configures it; traces go to the console only if it is named explicitly."""
    telemetry, problems = telemetry_config(environ)
    if not environ.get("OTEL_EXPORTERS"):
        telemetry = replace(telemetry, exporters=tuple(name for name in telemetry.exporters if name != "console"))
    return start(telemetry, problems)


def _access_of(config: ServiceConfig) -> str:
    if config.auth:
        return "every request needs a token"
    if config.is_local:
        return "to this machine, without tokens"
    ways = ", ".join((*config.allowed_hosts, *config.trusted_proxies))
    return f"WITHOUT TOKENS, also through {ways}: anyone who can reach that can run agents"


def _listener(config: ServiceConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"--host {config.host} --port {config.port}: cannot listen there ({error.strerror});"
            " choose another port, or --port 0 for any free one"
        ) from None
    address = listener.getsockname()[0]
    if not config.auth and not is_loopback(address):  # the address is checked, as a name can lead anywhere
        listener.close()
        raise ConfigurationError(
            f"--host {config.host} is {address}, which other machines can reach: without tokens only loopback is served"
        )
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def _url_of(config: ServiceConfig, listener: socket.socket) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{listener.getsockname()[1]}/"


async def _serve(
    service: Service,
    config: ServiceConfig,
    listener: socket.socket,
    ready: Callable[[], Awaitable[None]],
) -> int:
    server = _Server(
        uvicorn.Config(
            create_app(service, config),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # `create_app` handles them, for trusted proxies only; uvicorn would trust loopback
            timeout_graceful_shutdown=5,
            ws="none",
        )
    )
    exempt_from_collection()
    with _signals(service.hurry) as stopping:
        try:
            await service.start()
        except StoreError as error:
            listener.close()
            raise ConfigurationError(str(error)) from None
        serving = asyncio.ensure_future(server.serve([listener]))
        ended = asyncio.ensure_future(stopping.wait())
        await ready()
        await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
        # Sessions end first, so that their readers get the last events.
        await service.stop()
        server.should_exit = True
        await serving
        ended.cancel()
    return 0


def exempt_from_collection() -> None:
    """Exempt all present objects from garbage collection: modules and the app, which live as long as the process.

    A full collection that visits them stops the service for 0.1 s, in which no event is sent.
    """
    gc.freeze()


class _Server(uvicorn.Server):
    """A server without signal handlers: on a signal, sessions must end before connections do."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture no signals."""
        yield


@contextmanager
def _signals(hurry: Callable[[], None]) -> Generator[asyncio.Event]:
    """Yield an event that the first signal sets; each further signal calls ``hurry``."""
    stopping = asyncio.Event()

    def stop(_number: signal.Signals) -> None:
        if stopping.is_set():
            hurry()
        stopping.set()

    with loop_signals(stop):
        yield stopping


# -- the demo ---------------------------------------------------------------------------------------------


def run_demo_service(config: ServiceConfig, *, keeps: bool) -> int:
    """Serve with a scripted model and a session that waits for approval; ``keeps``: use the configured store."""
    from host_client.scripted_model import ScriptedModel, load_script  # only the demo needs it

    with temporary_directory("sandspan-demo-") as folder, ScriptedModel(load_script(_SCRIPT)) as model:
        store = config.store if keeps else str(folder / "service.sqlite")
        config = replace(config, store=store, auth=False, upload=_PROJECT)
        environ = {
            "ANTHROPIC_BASE_URL": model.url,
            "ANTHROPIC_API_KEY": "the-demo-needs-no-key",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        sys.stderr.write(f"a scripted model answers at {model.url}: no account, no key, no network\n")
        # The scripted model costs nothing, so ledger and spool are deleted with the demo.
        state = {**os.environ, "XDG_STATE_HOME": str(folder)}
        return run_service(
            config, lambda _: LocalSandbox(), environ, telemetry_environ=state, first=_create_demo_session
        )


async def _create_demo_session(service: Service, url: str) -> None:
    request = {"prompt": DEMO_PROMPT, "user_id": "demo", "max_budget_usd": 1.0, "approval_timeout": 3600.0}
    stored = await service.create(request, tenant_id=LOCAL_TENANT, by="demo")
    sys.stderr.write(f"a session that will ask you before it changes anything: {url}#/s/{stored.record.id}\n")
    sys.stderr.flush()

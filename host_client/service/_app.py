"""The service as an ASGI application: routes, the page, and the middleware before them."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from agent_runner.contract import __version__
from host_client.store.base import StoreError

from . import _api as routes
from . import _auth as auth
from . import _files as files
from . import _problems as problems
from ._downloads import Transfers
from ._guard import Guard
from ._service import Service
from .config import ServiceConfig, peers_of

PAGE = Path(__file__).with_name("page")


def create_app(service: Service, config: ServiceConfig) -> FastAPI:
    """Return the application of a service; the caller starts and stops the service."""
    app = described_app()
    app.state.api = routes.Api(service, config)
    app.state.authenticator = auth.Authenticator(service.store, config.auth)
    app.state.uploads = Transfers("too-many-uploads")
    app.add_middleware(Guard, hosts=config.allowed_hosts, origins=config.allowed_origins, limits=config.limits)
    if config.trusted_proxies:  # before `Guard`, which compares the origin with the scheme
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=peers_of(config.trusted_proxies))

    @app.get("/healthz", include_in_schema=False)
    async def alive() -> Response:
        return PlainTextResponse("ok\n")

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> Response:
        try:
            await service.store.ping()
        except StoreError:
            return PlainTextResponse("the store cannot be reached\n", 503)
        return PlainTextResponse("shutting down\n", 503) if service.closing else PlainTextResponse("ok\n")

    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def described_app() -> FastAPI:
    """Return an application with the routes but no service, enough for ``/openapi.json``."""
    # No documentation pages: those of FastAPI load scripts from another site.
    app = FastAPI(
        title="Sandspan",
        version=__version__,
        description="Claude agents in sandboxes: sessions, events, approvals.",
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(auth.router)
    app.include_router(routes.router)
    app.include_router(files.router)
    problems.install(app, routes.PROBLEM_OF)
    return app

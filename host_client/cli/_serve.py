"""``host_client serve``: options to a service."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from host_client.errors import ConfigurationError
from host_client.extras import needs

from . import _parameters as o
from ._checks import check_files
from ._failures import told
from ._place import Wish, place_of, require_local_runner

if TYPE_CHECKING:
    from host_client.sandbox import Sandbox
    from host_client.store.base import StoredSession

DEFAULT_PORT = 8321
_ACCESS = "Who may use it"
_LIMITS = "Limits"


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0: any that is free.")] = DEFAULT_PORT,
    store: Annotated[
        str | None,
        typer.Option(help="A file, or redis://… for several replicas. Default: a file among your state."),
    ] = None,
    auth: Annotated[
        str,
        typer.Option(
            help="on: requires tokens; off: does not; auto: on, unless only this machine can reach the service.",
            rich_help_panel=_ACCESS,
        ),
    ] = "auto",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which the service is reached; repeatable.", rich_help_panel=_ACCESS),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of another site whose pages may use it; repeatable.", rich_help_panel=_ACCESS),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or CIDR block of a proxy whose X-Forwarded-For and -Proto are believed; repeatable.",
            rich_help_panel=_ACCESS,
        ),
    ] = None,
    sandbox: Annotated[str, typer.Option(help="e2b, local, or auto: e2b if E2B_API_KEY is set.")] = "auto",
    template: Annotated[str | None, typer.Option(help="Template in E2B. Default: sandspan.")] = None,
    timeout: o.Timeout = None,
    allow_out: Annotated[
        list[str] | None,
        typer.Option(help="Only host, address or CIDR block a sandbox may reach, in E2B; repeatable."),
    ] = None,
    keys: o.Keys = None,
    secret_name: o.SecretName = None,
    upload: Annotated[Path | None, typer.Option(help="File or folder that each session's sandbox gets.")] = None,
    idle_timeout: Annotated[
        float, typer.Option(help="Seconds without a turn after which a session ends.", rich_help_panel=_LIMITS)
    ] = 1800.0,
    retention_days: Annotated[
        float, typer.Option(help="Days that a closed session is kept.", rich_help_panel=_LIMITS)
    ] = 7.0,
    max_events: Annotated[
        int, typer.Option(help="Events that are kept of a session's log: its last.", rich_help_panel=_LIMITS)
    ] = 100_000,
    max_sessions: Annotated[int, typer.Option(help="Most open sessions of a tenant.", rich_help_panel=_LIMITS)] = 100,
    turns_per_minute: Annotated[
        int, typer.Option(help="Most turns of a tenant in a minute.", rich_help_panel=_LIMITS)
    ] = 60,
    usd_per_day: Annotated[
        float | None, typer.Option(help="Most a tenant may spend in a day (UTC).", rich_help_panel=_LIMITS)
    ] = None,
    trace_url: Annotated[
        str | None, typer.Option(help="Where a trace is shown, with {trace_id} in it; the page links to it.")
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="With a scripted model and a session that waits for you.")
    ] = False,
) -> None:
    """Serve sessions over HTTP and SSE, with a page for the people who decide."""
    hosts, origins, proxies = (tuple(each or ()) for each in (allowed_host, allowed_origin, trusted_proxy))
    with told("host_client serve"):
        with needs("service", "the service"):
            from host_client.service.config import check_demo_reach, service_config
            from host_client.service.run import run_demo_service, run_service  # FastAPI is not needed for --help
        check_files(upload, None, None)
        if demo:
            _check_demo(auth, sandbox, upload)
            check_demo_reach(host, hosts, origins, proxies)
        wish = Wish(
            kind=sandbox,
            template=template,
            timeout=timeout,
            allow_out=tuple(allow_out or ()),
            keys=keys,
            secret_name=secret_name,
            outlives_host=True,
        )
        config = service_config(
            host=host,
            port=port,
            store=store,
            auth=auth,
            allowed_hosts=hosts,
            allowed_origins=origins,
            trusted_proxies=proxies,
            upload=upload,
            idle_timeout=idle_timeout,
            retention_days=retention_days,
            max_events=max_events,
            max_sessions=max_sessions,
            turns_per_minute=turns_per_minute,
            usd_per_day=usd_per_day,
            trace_url=trace_url,
        )
        if demo:
            require_local_runner("the demo")
            raise typer.Exit(run_demo_service(config, keeps=store is not None))
        place = place_of(wish, os.environ)  # what cannot be is told now, and not to the first caller
        for remark in place.remarks:
            typer.echo(remark, err=True)
        raise typer.Exit(run_service(config, lambda stored: sandbox_of(stored, wish), os.environ))


def _check_demo(auth: str, sandbox: str, upload: Path | None) -> None:
    """Raise `ConfigurationError` for what the demo would leave out without a word."""
    given = {"--auth on": auth == "on", "--sandbox e2b": sandbox == "e2b", "--upload": upload is not None}
    for option, is_given in given.items():
        if is_given:
            raise ConfigurationError(
                f"{option} and --demo exclude each other: the demo runs here, without tokens, on its own files"
            )


def sandbox_of(stored: StoredSession, wish: Wish) -> Sandbox:
    """Return a session's sandbox: of the kind that it has already, else of the service's."""
    record, state = stored
    kind = state.sandbox.kind if state.sandbox is not None else wish.kind
    if kind == "auto":
        kind = "e2b" if os.environ.get("E2B_API_KEY") else "local"
    own = replace(wish, kind=kind, metadata=record.request.get("metadata", {}))
    try:
        return place_of(own if kind == "e2b" else Wish(kind=kind), os.environ).sandbox
    except ConfigurationError as error:
        raise ConfigurationError(f"this session's sandbox cannot be had any more: {error}") from error

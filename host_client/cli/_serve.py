"""``host_client serve``: turns its options into a service and runs it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.models import OptionInfo

from host_client.errors import ConfigurationError
from host_client.extras import needs

from . import _parameters as o
from ._checks import check_files
from ._failures import reported_errors
from ._place import SandboxChoice, place_of, require_local_runner

if TYPE_CHECKING:
    from host_client.sandbox import Sandbox
    from host_client.store.base import StoredSession

DEFAULT_PORT = 8321


def _access(text: str) -> OptionInfo:
    """Return an option whose help stands in the panel "Who may use it"."""
    return typer.Option(help=text, rich_help_panel="Who may use it")


def _limit(text: str) -> OptionInfo:
    """Return an option whose help stands in the panel "Limits"."""
    return typer.Option(help=text, rich_help_panel="Limits")


StorePath = Annotated[
    str | None, typer.Option(help="A file, or redis://… for several replicas. Default: a file in your state directory.")
]
Auth = Annotated[
    str, _access("on: requires tokens; off: does not; auto: on, unless only this machine can reach the service.")
]
AllowedHost = Annotated[list[str] | None, _access("Host name that requests may use for the service; repeatable.")]
AllowedOrigin = Annotated[
    list[str] | None, _access("Origin of another site whose pages may use the service; repeatable.")
]
TrustedProxy = Annotated[
    list[str] | None,
    _access("Address or CIDR block of a proxy whose X-Forwarded-For and -Proto are trusted; repeatable."),
]
AllowOut = Annotated[
    list[str] | None,
    typer.Option(help="The only host, address or CIDR block that a sandbox may reach, in E2B; repeatable."),
]
HostTools = Annotated[
    Path | None, typer.Option(help="JSON file with tools of tenants that are called by URL (docs/SERVICE.md).")
]
TraceUrl = Annotated[
    str | None, typer.Option(help="URL that shows a trace, with {trace_id} in it; the page links to it.")
]


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 chooses a free one.")] = DEFAULT_PORT,
    store: StorePath = None,
    auth: Auth = "auto",
    allowed_host: AllowedHost = None,
    allowed_origin: AllowedOrigin = None,
    trusted_proxy: TrustedProxy = None,
    sandbox: o.SandboxKind = "auto",
    template: o.Template = None,
    timeout: o.Timeout = None,
    allow_out: AllowOut = None,
    keys: o.Keys = None,
    secret_name: o.SecretName = None,
    upload: Annotated[Path | None, typer.Option(help="File or folder to copy into each session's sandbox.")] = None,
    idle_timeout: Annotated[float, _limit("Seconds without a turn after which a session ends.")] = 1800.0,
    retention_days: Annotated[float, _limit("Days that a closed session is kept.")] = 7.0,
    max_events: Annotated[int, _limit("Maximum number of events in a session's log; the oldest go first.")] = 100_000,
    max_sessions: Annotated[int, _limit("Maximum number of open sessions of a tenant.")] = 100,
    turns_per_minute: Annotated[int, _limit("Maximum number of turns of a tenant in a minute.")] = 60,
    file_mib: Annotated[int, _limit("Maximum MiB of a tenant's stored uploads and attachments.")] = 1024,
    usd_per_day: Annotated[float | None, _limit("Maximum US dollars that a tenant spends in a day (UTC).")] = None,
    content: o.Content = "preview",
    tool_content: o.ToolContent = "none",
    deep_trace: o.DeepTrace = False,
    session_options: Annotated[
        str | None,
        typer.Option(
            help="Options of the Claude Agent SDK that callers may set, separated by commas, or all."
            " Default: those that change no permission (docs/SERVICE.md)."
        ),
    ] = None,
    host_tools: HostTools = None,
    trace_url: TraceUrl = None,
    demo: Annotated[bool, typer.Option("--demo", help="Use a scripted model; a session waits for you.")] = False,
) -> None:
    """Serve sessions over HTTP and SSE, with a page for the people who approve tool calls."""
    hosts, origins, proxies = (tuple(each or ()) for each in (allowed_host, allowed_origin, trusted_proxy))
    with reported_errors("host_client serve"):
        with needs("service", "the service"):
            from host_client.service.config import check_demo_reach, service_config
            from host_client.service.run import run_demo_service, run_service  # FastAPI is not needed for --help
        check_files(upload, None, None)
        if demo:
            _check_demo(auth, sandbox, upload)
            check_demo_reach(host, hosts, origins, proxies)
        choice = SandboxChoice(
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
            file_mib=file_mib,
            usd_per_day=usd_per_day,
            content=content,
            tool_content=tool_content,
            deep_trace=deep_trace,
            session_options=session_options,
            host_tools=host_tools,
            trace_url=trace_url,
        )
        if demo:
            require_local_runner("the demo")
            raise typer.Exit(run_demo_service(config, keeps=store is not None))
        place = place_of(choice, os.environ)  # so that a wrong option is reported now, not to the first caller
        for remark in place.remarks:
            typer.echo(remark, err=True)
        raise typer.Exit(run_service(config, lambda stored: sandbox_of(stored, choice), os.environ))


def _check_demo(auth: str, sandbox: str, upload: Path | None) -> None:
    """Raise `ConfigurationError` for an option that the demo would ignore."""
    given = {"--auth on": auth == "on", "--sandbox e2b": sandbox == "e2b", "--upload": upload is not None}
    for option, is_given in given.items():
        if is_given:
            raise ConfigurationError(
                f"{option} and --demo exclude each other: the demo is local, without tokens, and has its own files"
            )


def sandbox_of(stored: StoredSession, choice: SandboxChoice) -> Sandbox:
    """Return the sandbox object for a session: of the kind that the session has already, else of the service's kind."""
    record, state = stored
    kind = state.sandbox.kind if state.sandbox is not None else choice.kind
    if kind == "auto":
        kind = "e2b" if os.environ.get("E2B_API_KEY") else "local"
    own = replace(choice, kind=kind, metadata=record.request.get("metadata", {}))
    try:
        return place_of(own if kind == "e2b" else SandboxChoice(kind=kind), os.environ).sandbox
    except ConfigurationError as error:
        raise ConfigurationError(f"this session's sandbox can no longer be used: {error}") from error

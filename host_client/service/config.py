"""Configuration of the service from command-line options. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from starlette.types import Receive, Scope, Send

from agent_runner.contract.sanitize import Content
from agent_runner.contract.sdk_options import SdkOptions
from host_client.client.options import AgentOptions
from host_client.errors import ConfigurationError
from host_client.store.base import DAY_SECONDS

from ._guard import Guard
from ._limits import ServiceLimits
from ._models import CreateSession

DEFAULT_SESSION_OPTIONS = frozenset(
    (
        "betas",
        "effort",
        "enable_file_checkpointing",
        "fallback_model",
        "max_thinking_tokens",
        "output_format",
        "task_budget",
        "thinking",
        "tools",
    )
)
"""Options of the SDK with which a caller changes the model's requests and limits the tools, and no permission."""

NEVER = frozenset({"env", "verbatim_prompts"})
"""Options of the SDK that no caller may set: variables of the runner hold its keys, and prompts are always verbatim."""


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """The configuration of the service. Times are in seconds; ``store`` None is the user's own file.

    ``trace_url`` contains ``{trace_id}``. ``trusted_proxies`` are CIDR blocks whose ``X-Forwarded-For`` and
    ``X-Forwarded-Proto`` headers are trusted.
    """

    host: str = "127.0.0.1"
    port: int = 8321
    store: str | None = None
    auth: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    upload: Path | None = None
    idle_seconds: float = 1800.0
    kept_seconds: float = 7 * DAY_SECONDS
    max_events: int = 100_000
    limits: ServiceLimits = field(default_factory=ServiceLimits)
    content: Content = "preview"
    tool_content: Content = "none"
    deep_trace: bool = False
    trace_url: str | None = None
    session_options: frozenset[str] = DEFAULT_SESSION_OPTIONS
    """Options of the Claude Agent SDK that a caller may set."""
    host_tools: Path | None = None
    """File with the tools of tenants; see `read_tenant_tools`."""

    @property
    def is_local(self) -> bool:
        """Return whether only this machine can reach the service."""
        return _is_local(self.host, self.allowed_hosts, self.trusted_proxies)


def service_config(
    *,
    host: str,
    port: int,
    store: str | None,
    auth: str,
    allowed_hosts: tuple[str, ...],
    allowed_origins: tuple[str, ...],
    trusted_proxies: tuple[str, ...],
    upload: Path | None,
    idle_timeout: float,
    retention_days: float,
    max_events: int,
    max_sessions: int,
    turns_per_minute: int,
    file_mib: int,
    usd_per_day: float | None,
    content: str,
    tool_content: str,
    deep_trace: bool,
    trace_url: str | None,
    session_options: str | None,
    host_tools: Path | None,
) -> ServiceConfig:
    """Return the configuration of these options; raise `ConfigurationError` for wrong or unsafe values."""
    _check_port(port)
    _check_positive("--idle-timeout", idle_timeout)
    _check_positive("--retention-days", retention_days)
    _check_positive("--max-events", max_events)
    _check_positive("--max-sessions", max_sessions)
    _check_positive("--turns-per-minute", turns_per_minute)
    _check_positive("--file-mib", file_mib)
    _check_positive("--usd-per-day", usd_per_day)
    _check_reach(host, auth, allowed_hosts, allowed_origins)
    _check_trace_url(trace_url)
    spans = AgentOptions(content=cast("Content", content), tool_content=cast("Content", tool_content))  # checks both
    proxies = tuple(_proxy_block(each) for each in trusted_proxies)
    return ServiceConfig(
        host=host,
        port=port,
        store=store,
        auth=not _is_local(host, allowed_hosts, proxies) if auth == "auto" else auth == "on",
        allowed_hosts=allowed_hosts,
        allowed_origins=allowed_origins,
        trusted_proxies=proxies,
        upload=upload,
        idle_seconds=idle_timeout,
        kept_seconds=retention_days * DAY_SECONDS,
        max_events=max_events,
        limits=ServiceLimits(
            sessions_per_tenant=max_sessions,
            turns_per_minute=turns_per_minute,
            file_bytes_per_tenant=file_mib * 1024 * 1024,
            usd_per_tenant_day=usd_per_day,
        ),
        content=spans.content,
        tool_content=spans.tool_content,
        deep_trace=deep_trace,
        trace_url=trace_url,
        session_options=_session_options(session_options),
        host_tools=host_tools,
    )


def _session_options(names: str | None) -> frozenset[str]:
    """Return the options that ``--session-options`` names: ``all``, or names separated by commas."""
    if names is None:
        return DEFAULT_SESSION_OPTIONS
    possible = frozenset(SdkOptions.__struct_fields__) - CreateSession.model_fields.keys() - NEVER
    given = possible if names == "all" else frozenset(name.strip() for name in names.split(",") if name.strip())
    if unknown := given - possible:
        raise ConfigurationError(
            f"--session-options: {min(unknown)} is none of {', '.join(sorted(possible))}, which callers can be allowed"
        )
    return given


def _check_port(port: int) -> None:
    if not 0 <= port <= 65_535:
        raise ConfigurationError(f"--port takes 0 to 65535, not {port}")


def _check_positive(option: str, value: float | None) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise ConfigurationError(f"{option} takes a number above 0, not {value:g}")


def _check_trace_url(trace_url: str | None) -> None:
    if trace_url is not None and ("{trace_id}" not in trace_url or urlsplit(trace_url).scheme not in ("http", "https")):
        raise ConfigurationError("--trace-url takes an http or https address with {trace_id} in it")


def _check_reach(host: str, auth: str, allowed_hosts: tuple[str, ...], allowed_origins: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` for a service that anyone could use, or that no browser could reach."""
    if auth not in ("auto", "on", "off"):
        raise ConfigurationError("--auth takes one of auto, on, off")
    if auth == "off" and not is_loopback(host):
        raise ConfigurationError(f"--auth off works on loopback only: anyone who can reach {host} could run agents")
    if not is_loopback(host) and not allowed_hosts:
        raise ConfigurationError(
            f"--host {host} needs --allowed-host: the name under which browsers and programs reach the service"
        )
    try:
        Guard(_nowhere, hosts=allowed_hosts, origins=allowed_origins)
    except ValueError as error:
        raise ConfigurationError(f"--allowed-host, --allowed-origin: {error}") from None


def _proxy_block(value: str) -> str:
    """Return the address or CIDR block of a trusted proxy as a block; raise `ConfigurationError`."""
    try:
        block = ipaddress.ip_network(value)
    except ValueError as error:
        raise ConfigurationError(f"--trusted-proxy takes an address or a CIDR block like 10.0.0.0/8: {error}") from None
    if block.prefixlen == 0:
        raise ConfigurationError(
            f"--trusted-proxy {value} would trust the headers of every caller: give the proxy's own address"
        )
    return str(block)


def peers_of(blocks: tuple[str, ...]) -> list[str]:
    """Add the IPv6 form of IPv4 blocks: a socket that listens on ``::`` shows IPv4 peers as ``::ffff:10.0.0.1``."""
    networks = [ipaddress.ip_network(each) for each in blocks]
    mapped = [f"::ffff:{each.network_address}/{96 + each.prefixlen}" for each in networks if each.version == 4]
    return [*blocks, *mapped]


def check_demo_reach(
    host: str, allowed_hosts: tuple[str, ...], allowed_origins: tuple[str, ...], trusted_proxies: tuple[str, ...]
) -> None:
    """Raise `ConfigurationError` for options that let other machines reach the demo, which requires no tokens."""
    opening = [f"--allowed-host {each}" for each in allowed_hosts if not _names_loopback(f"//{each}")]
    opening += [f"--allowed-origin {each}" for each in allowed_origins if not _names_loopback(each)]
    opening += [f"--trusted-proxy {each}" for each in trusted_proxies]
    if not is_loopback(host):
        opening.insert(0, f"--host {host}")
    if opening:
        raise ConfigurationError(
            f"--demo takes no {opening[0]}: it requires no tokens, and an approval in it can run any command on this "
            "machine. Leave the option out and use a tunnel (ssh -L), or serve without --demo, with tokens"
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_local(host: str, allowed_hosts: tuple[str, ...], trusted_proxies: tuple[str, ...]) -> bool:
    # Any other allowed name than loopback's is for callers on other machines, whose requests a proxy forwards.
    return not trusted_proxies and is_loopback(host) and all(_names_loopback(f"//{each}") for each in allowed_hosts)


def _names_loopback(url: str) -> bool:
    """Return whether the host in a URL (``//host:port`` or more) is a loopback address."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:  # an unclosed bracket
        return False


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Do nothing, as the application of a `Guard` that only checks its arguments."""

"""How the service is set up: options to one frozen value. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from starlette.types import Receive, Scope, Send

from host_client.errors import ConfigurationError

from ._guard import Guard
from ._limits import ServiceLimits

DAY_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """All of it. Times are in seconds; ``trace_url`` holds ``{trace_id}``; ``store`` None is a file of the user's.

    ``trusted_proxies`` are the CIDR blocks whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed.
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
    trace_url: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the options let only this machine reach the service."""
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
    usd_per_day: float | None,
    trace_url: str | None,
) -> ServiceConfig:
    """Return the options' configuration; raise `ConfigurationError` for what cannot be, or is not safe."""
    if not 0 <= port <= 65_535:
        raise ConfigurationError("--port takes 0 to 65535")
    _check_numbers(
        {
            "--idle-timeout": idle_timeout,
            "--retention-days": retention_days,
            "--max-events": max_events,
            "--max-sessions": max_sessions,
            "--turns-per-minute": turns_per_minute,
            "--usd-per-day": usd_per_day,
        }
    )
    _check_reach(host, auth, allowed_hosts, allowed_origins)
    proxies = tuple(_proxy_block(each) for each in trusted_proxies)
    if trace_url is not None and ("{trace_id}" not in trace_url or urlsplit(trace_url).scheme not in ("http", "https")):
        raise ConfigurationError("--trace-url takes an http or https address with {trace_id} in it")
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
            sessions_per_tenant=max_sessions, turns_per_minute=turns_per_minute, usd_per_tenant_day=usd_per_day
        ),
        trace_url=trace_url,
    )


def _check_numbers(options: Mapping[str, float | None]) -> None:
    for option, value in options.items():
        if value is not None and not 0 < value < float("inf"):
            raise ConfigurationError(f"{option} takes a number above 0")


def _check_reach(host: str, auth: str, allowed_hosts: tuple[str, ...], allowed_origins: tuple[str, ...]) -> None:
    """Raise `ConfigurationError` for a service that anybody could use, or nobody could reach."""
    if auth not in ("auto", "on", "off"):
        raise ConfigurationError("--auth takes one of auto, on, off")
    if auth == "off" and not is_loopback(host):
        raise ConfigurationError(f"--auth off is for loopback alone: anybody who reaches {host} could run agents")
    if not is_loopback(host) and not allowed_hosts:
        raise ConfigurationError(
            f"--host {host} needs --allowed-host: the name under which browsers and programs reach the service"
        )
    try:
        Guard(_nowhere, hosts=allowed_hosts, origins=allowed_origins)
    except ValueError as error:
        raise ConfigurationError(f"--allowed-host, --allowed-origin: {error}") from None


def _proxy_block(value: str) -> str:
    """Return a trusted proxy's address or CIDR block as a block; raise `ConfigurationError`."""
    try:
        block = ipaddress.ip_network(value)
    except ValueError as error:
        raise ConfigurationError(f"--trusted-proxy takes an address or a CIDR block like 10.0.0.0/8: {error}") from None
    if block.prefixlen == 0:
        raise ConfigurationError(
            f"--trusted-proxy {value} would believe every caller what it says of its address; name the proxy's own"
        )
    return str(block)


def peers_of(blocks: tuple[str, ...]) -> list[str]:
    """Return blocks as connections show them: a socket that listens on ``::`` has IPv4 peers as ``::ffff:10.0.0.1``."""
    networks = [ipaddress.ip_network(each) for each in blocks]
    mapped = [f"::ffff:{each.network_address}/{96 + each.prefixlen}" for each in networks if each.version == 4]
    return [*blocks, *mapped]


def check_demo_reach(
    host: str, allowed_hosts: tuple[str, ...], allowed_origins: tuple[str, ...], trusted_proxies: tuple[str, ...]
) -> None:
    """Raise `ConfigurationError` for options that open the demo, which takes no tokens, beyond this machine."""
    opening = [f"--allowed-host {each}" for each in allowed_hosts if not _names_loopback(f"//{each}")]
    opening += [f"--allowed-origin {each}" for each in allowed_origins if not _names_loopback(each)]
    opening += [f"--trusted-proxy {each}" for each in trusted_proxies]
    if not is_loopback(host):
        opening.insert(0, f"--host {host}")
    if opening:
        raise ConfigurationError(
            f"--demo takes no {opening[0]}: it has no tokens, and an approval in it can run any command on this "
            "machine. Leave the option out and come through a tunnel (ssh -L), or serve without --demo, with tokens"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_local(host: str, allowed_hosts: tuple[str, ...], trusted_proxies: tuple[str, ...]) -> bool:
    # Another name than loopback's is for callers on other machines, whom a proxy passes on to the loopback address.
    return not trusted_proxies and is_loopback(host) and all(_names_loopback(f"//{each}") for each in allowed_hosts)


def _names_loopback(url: str) -> bool:
    """Whether the host in a URL (``//host:port`` or more) is a loopback address."""
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:  # a bracket that is not closed
        return False


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand for an application."""

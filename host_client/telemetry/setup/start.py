"""How a process gets its telemetry: by one call, or by none."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace

from host_client.errors import ConfigurationError
from host_client.extras import is_installed, missing
from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.tail.pipeline import Telemetry

from .environment import checked, telemetry_config

_EXPORTER_PACKAGES = (
    ("opentelemetry.exporter.otlp.proto.http", "opentelemetry-exporter-otlp"),
    ("opentelemetry.exporter.prometheus", "opentelemetry-exporter-prometheus"),
)
"""A module of each package that the telemetry extra adds."""

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_shared: list[tuple[TelemetryConfig, Telemetry]] = []


def initialize_telemetry(config: TelemetryConfig | None = None) -> Telemetry:
    """Return the telemetry of a configuration; by default of this process's environment.

    What is wrong is one warning each, on stderr where no logging is set up. End it with `Telemetry.shutdown`;
    the end of the process does it otherwise. Raise `ConfigurationError` only if OpenTelemetry's SDK is not installed.
    """
    telemetry = start(*(telemetry_config(os.environ) if config is None else checked(config)))
    atexit.register(telemetry.shutdown)
    return telemetry


def start(config: TelemetryConfig, problems: Iterable[str]) -> Telemetry:
    """Return the telemetry of a configuration that was checked, having told what was wrong with it."""
    _tell(problems)
    if not config.enabled:
        return Telemetry(enabled=False)
    require_sdk()
    from ._assembly import assemble  # OpenTelemetry: not with telemetry off

    config, lacking = without_missing_exporters(config)
    telemetry, more = assemble(config)
    _tell((*lacking, *more))
    return telemetry


def without_missing_exporters(config: TelemetryConfig) -> tuple[TelemetryConfig, tuple[str, ...]]:
    """Return the configuration without the exporters whose packages are missing, and a sentence about them."""
    package = next((package for module, package in _EXPORTER_PACKAGES if not is_installed(module)), None)
    needing = [name for name in config.exporters if name != "console"]
    if config.otlp_metrics is not None and "otlp" not in needing:
        needing.append("otlp")
    if package is None or not needing:
        return config, ()
    kept = tuple(name for name in config.exporters if name == "console")
    config = replace(config, exporters=kept, signoz_metrics=None, otlp_metrics=None)
    return config, (f"{missing(package, 'telemetry', ', '.join(needing))}; nothing is sent there",)


def require_sdk() -> None:
    """Raise `ConfigurationError` if OpenTelemetry's SDK is not installed."""
    if not is_installed("opentelemetry.sdk"):
        advice = missing("opentelemetry-sdk", "client", "the trace")
        raise ConfigurationError(f"{advice}, or set OTEL_ENABLED=false to run without")


def _tell(problems: Iterable[str]) -> None:
    for problem in problems:
        _logger.warning("telemetry: %s", problem)


def telemetry_of(environ: Mapping[str, str]) -> Telemetry:
    """Return the telemetry of a session that was given none: one a process for what its environment asks for.

    Nothing is printed, and no file is made, that the environment does not ask for. It ends with the process.
    """
    config, problems = telemetry_config(environ)
    config = replace(config, exporters=tuple(name for name in config.exporters if name != "console"))
    if not config.exporters and config.otlp_metrics is None:
        _tell(problems)
        if config.enabled:
            require_sdk()
        return Telemetry(enabled=config.enabled)
    with _lock:
        for known, telemetry in _shared:
            if known == config:
                return telemetry
        telemetry = start(config, problems)
        _shared.append((config, telemetry))
    atexit.register(telemetry.shutdown)
    return telemetry

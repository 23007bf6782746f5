"""Start the telemetry of a process, by a call or for its first session."""

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
"""Modules, each with the package of the telemetry extra that it comes from."""

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_shared: list[tuple[TelemetryConfig, Telemetry]] = []


def initialize_telemetry(config: TelemetryConfig | None = None) -> Telemetry:
    """Start the telemetry of a configuration, by default of this process's environment, and return it.

    Each problem is logged as one warning, on stderr if no logging is set up. End it with `Telemetry.shutdown`, else the
    end of the process does. Raise `ConfigurationError` only if OpenTelemetry's SDK is not installed.
    """
    telemetry = start(*(telemetry_config(os.environ) if config is None else checked(config)))
    atexit.register(telemetry.shutdown)
    return telemetry


def start(config: TelemetryConfig, problems: Iterable[str]) -> Telemetry:
    """Start the telemetry of a checked configuration, and log the problems that were found in it."""
    _warn(problems)
    if not config.enabled:
        return Telemetry(enabled=False)
    require_sdk()
    from ._assembly import assemble  # imports OpenTelemetry, which is not loaded with telemetry off

    config, lacking = without_missing_exporters(config)
    telemetry, more = assemble(config)
    _warn((*lacking, *more))
    return telemetry


def without_missing_exporters(config: TelemetryConfig) -> tuple[TelemetryConfig, tuple[str, ...]]:
    """Return the configuration without exporters whose packages are missing, and a sentence about these, if any."""
    package = next((package for module, package in _EXPORTER_PACKAGES if not is_installed(module)), None)
    needing = [name for name in config.exporters if name != "console"]
    if config.otlp_metrics is not None and "otlp" not in needing:
        needing.append("otlp")
    if config.metrics_textfile is not None:
        needing.append("the textfile of metrics")
    if package is None or not needing:
        return config, ()
    kept = tuple(name for name in config.exporters if name == "console")
    config = replace(config, exporters=kept, signoz_metrics=None, otlp_metrics=None, metrics_textfile=None)
    return config, (f"{missing(package, 'telemetry', ', '.join(needing))}; nothing is sent there",)


def require_sdk() -> None:
    """Raise `ConfigurationError` if OpenTelemetry's SDK is not installed."""
    if not is_installed("opentelemetry.sdk"):
        advice = missing("opentelemetry-sdk", "client", "the trace")
        raise ConfigurationError(f"{advice}, or set OTEL_ENABLED=false to run without")


def _warn(problems: Iterable[str]) -> None:
    for problem in problems:
        _logger.warning("telemetry: %s", problem)


def telemetry_of(environ: Mapping[str, str]) -> Telemetry:
    """Return the telemetry for a session whose caller passed none; equal configurations share one.

    It prints nothing and creates no file unless the environment asks for that, and it ends with the process.
    """
    config, problems = telemetry_config(environ)
    config = replace(config, exporters=tuple(name for name in config.exporters if name != "console"))
    if not config.exporters and config.otlp_metrics is None and config.metrics_textfile is None:
        _warn(problems)
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

"""How a process gets its telemetry: by one call, or by none."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace

from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.tail.pipeline import Telemetry

from .environment import checked, telemetry_config

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_shared: list[tuple[TelemetryConfig, Telemetry]] = []


def initialize_telemetry(config: TelemetryConfig | None = None) -> Telemetry:
    """Return the telemetry of a configuration; by default of this process's environment.

    Never raises: what is wrong is one warning each, on stderr where no logging is set up. End it with
    `Telemetry.shutdown`; the end of the process does it otherwise.
    """
    telemetry = start(*(telemetry_config(os.environ) if config is None else checked(config)))
    atexit.register(telemetry.shutdown)
    return telemetry


def start(config: TelemetryConfig, problems: Iterable[str]) -> Telemetry:
    """Return the telemetry of a configuration that was checked, having told what was wrong with it."""
    _tell(problems)
    if not config.enabled:
        return Telemetry(enabled=False)
    from ._assembly import assemble  # OpenTelemetry: not with telemetry off

    telemetry, more = assemble(config)
    _tell(more)
    return telemetry


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
        return Telemetry(enabled=config.enabled)
    with _lock:
        for known, telemetry in _shared:
            if known == config:
                return telemetry
        telemetry = start(config, problems)
        _shared.append((config, telemetry))
    atexit.register(telemetry.shutdown)
    return telemetry

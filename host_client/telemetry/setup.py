"""The one call by which a process gets its telemetry."""

from __future__ import annotations

import logging
import os

from .config import TelemetryConfig, checked, telemetry_config
from .pipeline import Telemetry

_logger = logging.getLogger(__name__)


def initialize_telemetry(config: TelemetryConfig | None = None) -> Telemetry:
    """Return the telemetry of a configuration; by default of this process's environment.

    Never raises: what is wrong is one warning each, on stderr where no logging is set up. End it with
    `Telemetry.shutdown`.
    """
    config, problems = telemetry_config(os.environ) if config is None else checked(config)
    for problem in problems:
        _logger.warning("telemetry: %s", problem)
    if not config.enabled:
        return Telemetry(enabled=False)
    from .assembly import assemble  # OpenTelemetry: not with telemetry off

    return assemble(config)

"""What spans say of the process that made them, without OpenTelemetry's SDK: importing that costs a run 15 ms."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from .contract import __version__
from .contract.sanitize import replace_lone_surrogates

_logger = logging.getLogger(__name__)


class ProcessResource(NamedTuple):
    """A resource as OTLP has it; OpenTelemetry's own `ProcessResource` has the same two attributes."""

    attributes: Mapping[str, str]
    schema_url: str = ""


def resource(service_name: str, environ: Mapping[str, str]) -> ProcessResource:
    """Return the resource of this process: ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES`` win."""
    given = _pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    if name := environ.get("OTEL_SERVICE_NAME") or given.get("service.name") or service_name:
        given["service.name"] = name
    own = {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "sandspan",
        "telemetry.sdk.version": __version__,
        "service.instance.id": str(uuid.uuid4()),
        "service.version": __version__,
    }
    return ProcessResource({**own, **given})


def _pairs(text: str) -> dict[str, str]:
    """Read ``name=value`` pairs, percent-encoded; what is none is left out and told, as the SDK does."""
    pairs: dict[str, str] = {}
    for item in filter(str.strip, replace_lone_surrogates(text).split(",")):
        name, separator, value = item.partition("=")
        if separator and name.strip():
            pairs[name.strip()] = unquote(value.strip())
        else:
            _logger.warning("OTEL_RESOURCE_ATTRIBUTES: %r is no name=value, and is left out", item)
    return pairs

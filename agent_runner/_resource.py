"""Describe this process for its spans without OpenTelemetry's SDK, whose import takes 15 ms."""

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
    """Attributes of a process and the URL of their schema, as in OpenTelemetry's class ``Resource``."""

    attributes: Mapping[str, str]
    schema_url: str = ""


def resource(service_name: str, environ: Mapping[str, str]) -> ProcessResource:
    """Return this process's resource; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES override its attributes."""
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
    """Return the percent-encoded pairs of a list such as ``a=1,b=2``; log and skip malformed ones, as the SDK does."""
    pairs: dict[str, str] = {}
    for item in filter(str.strip, replace_lone_surrogates(text).split(",")):
        name, separator, value = item.partition("=")
        if separator and name.strip():
            pairs[name.strip()] = unquote(value.strip())
        else:
            _logger.warning("OTEL_RESOURCE_ATTRIBUTES: %r is not name=value; it is ignored", item)
    return pairs

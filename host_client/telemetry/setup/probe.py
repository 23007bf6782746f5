"""Check telemetry for ``host_client doctor``: send a span to each exporter, and check what it needs on this machine.

Importing this module imports OpenTelemetry.
"""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from agent_runner.contract import otlp, readable
from agent_runner.contract.findings import Finding
from agent_runner.contract.sanitize import brief
from agent_runner.contract.spans import Ids, Span
from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.export.destinations import (
    Delivered,
    Destination,
    Outcome,
    Refused,
    Retry,
    TooLarge,
    explained,
)
from host_client.telemetry.export.destinations.otlp import otlp_metrics
from host_client.telemetry.export.endpoints import Endpoint, shown

from ._assembly import remote_destinations

SPAN_NAME = "sandspan.doctor"
NO_METRICS = b""
"""A serialized ``ExportMetricsServiceRequest`` with nothing in it."""

FREE_BYTES = 64 * 1024 * 1024
"""Free space on the spool's disk below which the check fails."""

ADVICE = {
    "langfuse": "Check LANGFUSE_OTLP_ENDPOINT (each region has its own) and both keys, which belong to one project",
    "phoenix": "Check PHOENIX_COLLECTOR_ENDPOINT (the address of its page) and PHOENIX_API_KEY",
    "signoz": "Check SIGNOZ_OTLP_ENDPOINT (the cloud has regions), SIGNOZ_OTLP_PROTOCOL and SIGNOZ_INGESTION_KEY",
    "otlp": "Check OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL and OTEL_EXPORTER_OTLP_HEADERS",
}


def examine(config: TelemetryConfig) -> Iterator[Finding]:
    """Check every part of a configuration; yield a finding for each."""
    for destination, endpoint in remote_destinations(config):
        yield check_destination(destination, endpoint)
        destination.close()
    for name, endpoint in (("signoz", config.signoz_metrics), ("otlp", config.otlp_metrics)):
        if endpoint is not None:
            destination = otlp_metrics(name, endpoint)
            yield _finding(f"Metrics to {name}", name, endpoint, destination.send(NO_METRICS), "an empty export")
            destination.close()
    if "prometheus" in config.exporters:
        yield check_port(config.prometheus_host, config.prometheus_port)
    if config.metrics_textfile is not None:
        yield check_textfile(config.metrics_textfile)
    if config.pushgateway is not None:
        yield check_pushgateway(config.pushgateway)
    yield check_spool(config.spool_directory)
    yield check_ledger(config.ledger)


def check_destination(destination: Destination, endpoint: Endpoint) -> Finding:
    """Send one span to a destination; return a finding with the outcome."""
    trace_id = Ids().trace_id()
    outcome = destination.send(_probe(trace_id))
    return _finding(f"Exporter {destination.name}", destination.name, endpoint, outcome, f"a probe, trace {trace_id}")


def _finding(title: str, exporter: str, endpoint: Endpoint, outcome: Outcome, what: str) -> Finding:
    where, advice = shown(endpoint.url), ADVICE.get(exporter, "")
    match outcome:
        case Delivered(rejected=0):
            return Finding(title, True, f"{where} accepted {what}")
        case Delivered(why=why):
            return Finding(title, False, f"{where} refused {what}: {why}", advice)
        case Refused() | TooLarge():
            return Finding(title, False, f"{where} refused {what}: {explained(outcome)}", advice)
        case Retry():
            return Finding(title, False, f"{where}: {explained(outcome)}", advice)


def _probe(trace_id: str) -> bytes:
    now = time.time_ns()
    span = Span(SPAN_NAME, trace_id, Ids().span_id(), None, now)
    span.end = now
    return otlp.encode([span], readable.resource("host_client"))


def check_port(host: str, port: int) -> Finding:
    """Check that the port for Prometheus is free."""
    where = f"{host}:{port}"
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on: {error.strerror}"
        advice = "Set OTEL_EXPORTER_PROMETHEUS_PORT and _HOST; a host that runs already serves its own metrics there"
        return Finding("Prometheus", False, f"{where} {why}", advice)
    return Finding("Prometheus", True, f"{where} is free; metrics are at /metrics while a host runs")


def check_textfile(path: Path) -> Finding:
    """Check that the directory of the textfile can be written, as the file in it is replaced."""
    if _writable(path.parent) is None:
        advice = "Set SANDSPAN_METRICS_TEXTFILE to a file in a directory that you can write"
        return Finding("Textfile", False, f"{path.parent} cannot be written", advice)
    return Finding("Textfile", True, f"{path}")


def check_pushgateway(gateway: Endpoint) -> Finding:
    """Ask a Pushgateway whether it is ready; nothing is pushed."""
    where = shown(gateway.url)
    ready = f"{gateway.url.rstrip('/')}/-/ready"
    request = Request(ready, headers=dict(gateway.headers))  # noqa: S310 - `endpoints` lets only http and https pass
    try:
        with urlopen(request, timeout=gateway.timeout):  # noqa: S310 - as above
            return Finding("Pushgateway", True, f"{where} is ready")
    except (OSError, HTTPException) as error:
        advice = "Check SANDSPAN_PUSHGATEWAY, with its user and password if it needs any"
        return Finding("Pushgateway", False, f"{where}: {brief(str(error))}", advice)


def check_spool(directory: Path | None) -> Finding:
    """Check that the spool's directory can be written and has room."""
    if directory is None:
        return Finding("Spool", None, "none: spans that cannot be delivered are lost with the process")
    advice = "Set SANDSPAN_SPOOL_DIRECTORY to a directory that you can write"
    if (existing := _writable(directory)) is None:
        return Finding("Spool", False, f"{directory} cannot be written", advice)
    room = os.statvfs(existing)
    free = room.f_bavail * room.f_frsize
    if free < FREE_BYTES:
        return Finding("Spool", False, f"{directory}: its disk is full ({free // 2**20} MiB are free)", advice)
    return Finding("Spool", True, f"{directory}")


def check_ledger(path: Path | None) -> Finding:
    """Check that the ledger can be written, and that an existing file is intact."""
    if path is None:
        return Finding("Ledger", None, "none: no costs are stored")
    advice = "Set SANDSPAN_LEDGER to a file that you can write, or move the broken one away"
    if not os.path.exists(path):  # noqa: PTH110 - as below
        is_writable = _writable(path) is not None
        return Finding("Ledger", is_writable, f"{path}{'' if is_writable else ' cannot be written'}", advice)
    try:
        connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=1.0)
        try:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Finding("Ledger", False, f"{path}: {error}", advice)
    return Finding("Ledger", verdict == "ok", f"{path}{'' if verdict == 'ok' else f': {verdict}'}", advice)


def _writable(path: Path) -> Path | None:
    """Return the path or its nearest existing parent, None if that is not a directory that can be written."""
    existing = next(each for each in (path, *path.parents) if os.path.exists(each))  # noqa: PTH110 - `Path.exists` raises below a directory that may not be searched
    return existing if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK) else None

"""Add the metrics of processes up in a file, for processes that end before Prometheus scrapes them.

node_exporter's textfile collector reads the file, or a Pushgateway receives its sums. A push replaces all metrics of
its group, so each process pushes the sums of all processes, not its own metrics alone. Importing this module imports
OpenTelemetry.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    push_to_gateway,  # pyright: ignore[reportUnknownVariableType] - its handler has no type
    write_to_textfile,
)
from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import default_handler
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from agent_runner.contract.sanitize import brief
from host_client.telemetry.export.endpoints import Endpoint, shown
from host_client.telemetry.otlp import ENVIRONMENT

from ._prometheus import BaseUnitReader

JOB = "host_client"
GROUP = "claude_agent_textfile_info"
"""Metric whose label ``group`` names the file: the ``instance`` of its group in a Pushgateway."""

PUSH_FAILURES = "claude_agent_telemetry_push_failures"
MAX_SERIES = 2000
"""Maximum number of series of one metric in the file; values beyond it are added up in one further series."""

_OVERFLOW = (("otel_metric_overflow", "true"),)
"""Labels of the further series, as OpenTelemetry's SDK has them."""

_logger = logging.getLogger(__name__)


class TextfilePart:
    """Add this process's metrics to a file at its end, and push the file's sums to a Pushgateway, if there is one."""

    def __init__(self, path: Path, gateway: Endpoint | None = None) -> None:
        self._path = path
        self._gateway = gateway
        self._registry = CollectorRegistry()
        self.reader = BaseUnitReader(
            registry=self._registry,
            scope_info_enabled=False,
            disable_target_info=True,
            resource_attribute_filter=ENVIRONMENT.__eq__,
        )

    def close(self, timeout: float) -> bool:
        """Add and push the metrics; return whether both succeeded. A failed push is counted in the file."""
        try:
            self._add(self._registry.collect())
            return self._gateway is None or self._push(self._gateway, timeout / 2)
        except (OSError, ValueError) as error:
            _logger.warning("metrics were not added to %s, and are lost: %s", self._path, brief(str(error)))
            return False

    def _add(self, families: Iterable[Family]) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked("lock"):
            sums = self._stored()
            sums.setdefault(GROUP, _group())
            for family in families:
                if family.type in ("counter", "histogram"):  # a gauge says nothing about a process that has ended
                    sums[family.name] = added(sums.get(family.name), family)
            write_to_textfile(str(self._path), _Families(sums))

    def _push(self, gateway: Endpoint, timeout: float) -> bool:
        try:
            # Without a lock, older sums could replace newer ones. It is not the lock of `_add`, so that a gateway that
            # hangs keeps no other process from adding its metrics.
            with self._locked("push.lock"):
                sums = self._stored()
                instance = sums[GROUP].samples[0].labels["group"]
                send = partial(_send, gateway.headers)
                push_to_gateway(gateway.url, JOB, _Families(sums), {"instance": instance}, timeout, send)
        except Exception as error:  # a failed push, of whatever kind, must not affect the run
            why, where = brief(str(error) or repr(error)), shown(gateway.url)
            _logger.warning("metrics were not pushed to %s: %s; the next push includes them", where, why)
            self._add([CounterMetricFamily(PUSH_FAILURES, "Pushes to a Pushgateway that failed.", value=1)])
            return False
        return True

    def _stored(self) -> dict[str, Family]:
        """Return the file's metrics by name; raise ValueError for another format."""
        try:
            text = self._path.read_bytes().decode()
            return {family.name: family for family in text_string_to_metric_families(text)}
        except FileNotFoundError:
            return {}
        except ValueError:
            raise ValueError("it is not in Prometheus' text format; move it away") from None

    @contextmanager
    def _locked(self, suffix: str) -> Generator[None]:
        """Keep other processes out of a block. The file itself is replaced, so another one beside it is locked."""
        # Read-only is enough for the lock, and works for a file of another account.
        descriptor = os.open(f"{self._path}.{suffix}", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class _Families(Collector):
    """Families in the form that prometheus-client's functions take."""

    by_name: dict[str, Family]

    def collect(self) -> Iterable[Family]:
        return self.by_name.values()


def _group() -> Family:
    """Return a new name for a file: not the host's name alone, as accounts of one host have files of their own."""
    family = GaugeMetricFamily(GROUP, "Name of this file, and of its group in a Pushgateway.", labels=["group"])
    family.add_metric([f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"], 1)
    return family


def added(stored: Family | None, family: Family) -> Family:
    """Return the sums of two families' series. Those of a histogram with other buckets begin again."""
    samples = list(family.samples)
    if stored is not None and _buckets(stored) == _buckets(family):
        samples = [*stored.samples, *samples]
    known: set[tuple[tuple[str, str], ...]] = set()
    sums: dict[tuple[str, tuple[tuple[str, str], ...], str], float] = {}
    for sample in samples:
        bucket = sample.labels.get("le", "")
        # To Prometheus a label without a value is the same as no label.
        labels = tuple(sorted((name, value) for name, value in sample.labels.items() if value and name != "le"))
        if labels not in known and len(known) >= MAX_SERIES:
            labels = _OVERFLOW
        known.add(labels)
        key = sample.name, labels, bucket
        sums[key] = sums.get(key, 0) + sample.value
    result = Family(family.name, family.documentation, family.type)
    for (name, labels, bucket), value in sums.items():
        result.samples.append(Sample(name, {**dict(labels), **({"le": bucket} if bucket else {})}, value))
    return result


def _buckets(family: Family) -> set[str | None]:
    return {sample.labels.get("le") for sample in family.samples}


def _send(credentials: Mapping[str, str], *, headers: Sequence[tuple[str, str]], **request: Any) -> Callable[[], None]:
    """Return the request of prometheus-client's own handler, with the headers that hold the credentials."""
    return default_handler(headers=[*headers, *credentials.items()], **request)

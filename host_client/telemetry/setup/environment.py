"""Read the configuration of telemetry from the environment. Pure.

A bad value becomes one sentence about the problem, and a safe default replaces it: telemetry never stops an agent. The
variables are the rows of `SETTINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from host_client.environment import state_path
from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.export import endpoints
from host_client.telemetry.export.endpoints import (
    LANGFUSE_CLOUD,
    OTLP_LOCAL,
    PHOENIX_LOCAL,
    Endpoint,
    Protocol,
    Signal,
)
from host_client.telemetry.tail.sampling import SamplingConfig

from ._variables import EXPORTERS, PRODUCTION, SETTINGS, TelemetrySetting, environment_name

PRODUCTION_RATE = 0.1
_NO_TEXTFILE = "has no file to add metrics up in, so nothing is pushed"
_LANGFUSE_KEYS = {"langfuse_public_key": "LANGFUSE_PUBLIC_KEY", "langfuse_secret_key": "LANGFUSE_SECRET_KEY"}


def telemetry_config(environ: Mapping[str, str]) -> tuple[TelemetryConfig, tuple[str, ...]]:
    """Read the environment; return the configuration, and one sentence for each problem. Never raises.

    An empty variable counts as absent, as in the OpenTelemetry specification.
    """
    reader = _EnvironmentReader(environ)
    environment = reader.get("environment", _environment_of_resource(environ))
    config = TelemetryConfig(
        enabled=reader.get("enabled", True) and not reader.get("disabled", False),
        environment=environment,
        exporters=(),
        sampling=SamplingConfig(
            rate=reader.rate(PRODUCTION_RATE if environment == PRODUCTION else 1.0),
            slow_ms=reader.get("slow_ms", 5000.0),
            slow_rate=reader.get("slow_rate", None),
            tier_rates=reader.get("tier_rates", {}),
            tool_error_rate=reader.get("tool_error_rate", None),
        ),
        phoenix_project=reader.get("phoenix_project", TelemetryConfig.phoenix_project),
        metric_interval=reader.get("metric_interval", 60.0),
        metric_temporality=reader.get("metric_temporality", "cumulative"),
        prometheus_host=reader.get("prometheus_host", "localhost"),
        prometheus_port=reader.get("prometheus_port", 9464),
        spool_directory=reader.get("spool_directory", state_path(environ, "spool")),
        spool_max_bytes=reader.get("spool_max_bytes", TelemetryConfig.spool_max_bytes),
        user_label_limit=reader.get("user_label_limit", 1000),
        tier=reader.get("tier", None),
        conventions=reader.get("conventions", "v0.1.0"),
        ledger=reader.get("ledger", state_path(environ, "ledger.sqlite")),
        metrics_textfile=reader.get("metrics_textfile", None),
    )
    if config.enabled:
        config = reader.with_pushgateway(reader.with_exporters(config), state_path(environ, "metrics.prom"))
    return config, tuple(dict.fromkeys(reader.problems))


def checked(config: TelemetryConfig) -> tuple[TelemetryConfig, tuple[str, ...]]:
    """Replace bad values in a configuration made in code by defaults; return it and the problems. Never raises."""
    problems: list[str] = []
    sampling = config.sampling
    for name in ("rate", "slow_rate", "tool_error_rate"):
        value: float | None = getattr(sampling, name)
        if value is not None and not 0 <= value <= 1:
            problems.append(f"SamplingConfig({name}={value!r}) takes a number from 0 to 1; using 1.0")
            sampling = replace(sampling, **{name: 1.0})
    for tier, value in sampling.tier_rates.items():
        if not 0 <= value <= 1:
            problems.append(f"SamplingConfig(tier_rates={{{tier!r}: {value!r}}}) takes a number from 0 to 1; using 1.0")
            sampling = replace(sampling, tier_rates={**sampling.tier_rates, tier: 1.0})
    exporters: list[str] = []
    for name in dict.fromkeys(name.lower() for name in config.exporters):
        if name not in EXPORTERS:
            problems.append(_unknown("TelemetryConfig(exporters=…)", name))
        elif name in ("langfuse", "phoenix", "signoz", "otlp") and getattr(config, name) is None:
            problems.append(f"TelemetryConfig(exporters=…) has {name} and {name}=Endpoint(…) is missing; left out")
        else:
            exporters.append(name)
    if not 0 <= config.prometheus_port <= 65535:
        problems.append(f"TelemetryConfig(prometheus_port={config.prometheus_port}) takes 0 to 65535; using 9464")
        config = replace(config, prometheus_port=9464)
    if config.metric_interval <= 0:
        problems.append(f"TelemetryConfig(metric_interval={config.metric_interval}) takes seconds above 0; using 60")
        config = replace(config, metric_interval=60.0)
    if config.pushgateway is not None and config.metrics_textfile is None:
        problems.append(f"TelemetryConfig(pushgateway=…) {_NO_TEXTFILE}: give metrics_textfile=Path(…)")
        config = replace(config, pushgateway=None)
    return replace(config, sampling=sampling, exporters=tuple(exporters)), tuple(problems)


class _EnvironmentReader:
    """Read the settings of one environment; ``problems`` has a sentence for each bad value."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self._values: dict[str, Any] = {}
        self._variable: dict[str, str] = {}
        for row in SETTINGS:
            for variable in row.variables:
                if text := environ.get(variable, "").strip():
                    self._read(row, variable, text)
                    break

    def _read(self, row: TelemetrySetting, variable: str, text: str) -> None:
        self._variable[row.key] = variable
        try:
            self._values[row.key] = row.parse(text)
        except ValueError as error:
            given = variable if row.secret else f"{variable}={text[:40]!r}"
            self.problems.append(f"{given} {error}; using the default")

    def get(self, key: str, default: Any) -> Any:
        """Return the value of a setting, or the default if it is not set or bad."""
        return self._values.get(key, default)

    def rate(self, default: float) -> float:
        """Return the share of traces: from OTEL_SAMPLING_RATE, else from OTEL_TRACES_SAMPLER, else the default."""
        sampler: str = self.get("sampler", "").removeprefix("parentbased_")
        by_sampler = {"always_on": 1.0, "always_off": 0.0, "traceidratio": self.get("sampler_arg", 1.0)}
        return self.get("rate", by_sampler.get(sampler, default))

    def with_exporters(self, config: TelemetryConfig) -> TelemetryConfig:
        """Add the exporters and their endpoints to a configuration; an exporter with a problem is left out."""
        chosen = self._chosen(config.environment)
        makers = {
            "langfuse": self._langfuse,
            "phoenix": self._phoenix,
            "signoz": self._signoz,
            "otlp": self._otlp,
        }
        made = {name: self._try(name, makers[name]) for name in chosen if name in makers}
        chosen = [name for name in chosen if made.get(name, True)]
        metrics = {f"{name}_metrics": self._try(name, makers[name], "metrics") for name in self._otlp_metrics(chosen)}
        return replace(config, exporters=tuple(chosen), **made, **metrics)

    def with_pushgateway(self, config: TelemetryConfig, textfile: Path | None) -> TelemetryConfig:
        """Add the Pushgateway to a configuration, if one is set, and a textfile if it has none."""
        if "pushgateway" not in self._values:
            return config
        if (textfile := config.metrics_textfile or textfile) is None:
            self.problems.append(f"SANDSPAN_PUSHGATEWAY {_NO_TEXTFILE}: set SANDSPAN_METRICS_TEXTFILE")
            return config
        return replace(config, metrics_textfile=textfile, pushgateway=self._try("pushgateway", self._pushgateway))

    def _chosen(self, environment: str) -> list[str]:
        if "exporters" in self._values:
            chosen = self._known("exporters", EXPORTERS)
        elif "traces_exporter" in self._values:
            chosen = self._known("traces_exporter", ("otlp", "console"))
        else:
            chosen = self._default_exporters(environment)
        if "prometheus" in self.get("metrics_exporter", ()) and "prometheus" not in chosen:
            chosen.append("prometheus")
        return chosen

    def _known(self, key: str, allowed: tuple[str, ...]) -> list[str]:
        """Return the known names of a list setting; ``none`` selects no exporter, other names are problems."""
        names: tuple[str, ...] = self._values[key]
        self.problems += [_unknown(self._variable[key], n, allowed) for n in names if n not in (*allowed, "none")]
        return [name for name in names if name in allowed]

    def _default_exporters(self, environment: str) -> list[str]:
        chosen = ["otlp"] if "otlp_url" in self._values or "traces_url" in self._values else []
        if environment != PRODUCTION:
            return ["console", *chosen]
        if any(key in self._values for key in _LANGFUSE_KEYS):
            return ["langfuse", *chosen]
        if not chosen:
            keys = " and ".join(_LANGFUSE_KEYS.values())
            self.problems.append(
                f"production has no exporter for traces: set {keys}, or OTEL_EXPORTERS (`none` exports nothing)"
            )
        return chosen

    def _otlp_metrics(self, chosen: Sequence[str]) -> list[str]:
        """Return the names of the exporters that send metrics over OTLP."""
        named = "metrics_exporter" in self._values
        if named and "otlp" not in self._known("metrics_exporter", ("otlp", "prometheus")):
            return []
        chosen_otlp = [name for name in ("signoz", "otlp") if name in chosen]
        return chosen_otlp or (["otlp"] if named or "metrics_url" in self._values else [])

    def _try(self, name: str, make: Callable[[Signal], Endpoint], signal: Signal = "traces") -> Endpoint | None:
        try:
            return make(signal)
        except ValueError as error:
            self.problems.append(f"{error}; nothing is sent to {name}")
            return None

    def _langfuse(self, _: Signal) -> Endpoint:
        missing = [variable for key, variable in _LANGFUSE_KEYS.items() if key not in self._values]
        if missing:
            raise ValueError(f"langfuse needs {' and '.join(missing)}")
        keys = (self._values[key] for key in _LANGFUSE_KEYS)
        with self._naming("langfuse_url"):
            return endpoints.langfuse(self.get("langfuse_url", LANGFUSE_CLOUD), *keys)

    def _phoenix(self, _: Signal) -> Endpoint:
        with self._naming("phoenix_url"):
            return endpoints.phoenix(self.get("phoenix_url", PHOENIX_LOCAL), self.get("phoenix_key", ""))

    def _signoz(self, signal: Signal) -> Endpoint:
        protocol: Protocol | None = self.get("signoz_protocol", None)
        url = self.get("signoz_url", OTLP_LOCAL[protocol or "http/protobuf"])
        with self._naming("signoz_url"):
            return endpoints.signoz(url, self.get("signoz_key", ""), signal, protocol)

    def _otlp(self, signal: Signal) -> Endpoint:
        own = f"{signal}_url"
        key, make = (own, endpoints.exact) if own in self._values else ("otlp_url", partial(endpoints.otlp, signal))
        protocol: Protocol | None = self.get(f"{signal}_protocol", None)
        with self._naming(key):
            endpoint = make(self.get(key, OTLP_LOCAL[protocol or "http/protobuf"]), protocol)
        return replace(
            endpoint,
            headers={**endpoint.headers, **self.get(f"{signal}_headers", {})},
            timeout=self.get(f"{signal}_timeout", 10.0),
            compression=self.get(f"{signal}_compression", "gzip"),
            certificate=self.get(f"{signal}_certificate", None),
            client_certificate=self.get(f"{signal}_client_certificate", None),
            client_key=self.get(f"{signal}_client_key", None),
        )

    def _pushgateway(self, _: Signal) -> Endpoint:
        with self._naming("pushgateway"):
            return endpoints.exact(self._values["pushgateway"])

    @contextmanager
    def _naming(self, key: str) -> Generator[None]:
        """Put the name of a setting's variable before the message of a ValueError about its URL."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{self._variable.get(key, key)} {error}") from None


def _unknown(where: str, name: str, allowed: Sequence[str] = EXPORTERS) -> str:
    return f"{where} has {name[:40]!r}; known are {', '.join(allowed)}; it is left out"


def _environment_of_resource(environ: Mapping[str, str]) -> str:
    """Return the deployment's name in OTEL_RESOURCE_ATTRIBUTES, ``development`` if it is missing or bad."""
    pairs = (pair.partition("=") for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    attributes = {name.strip(): unquote(value).strip() for name, _, value in pairs}
    name = attributes.get("deployment.environment.name") or attributes.get("deployment.environment") or ""
    try:
        return environment_name(name)
    except ValueError:
        return "development"

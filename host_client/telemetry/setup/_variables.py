"""The environment variables of telemetry, with a parser for each. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from agent_runner.contract import parsing
from host_client.telemetry.config import TEMPORALITIES
from host_client.telemetry.conventions import CONVENTIONS
from host_client.telemetry.export.endpoints import (
    COMPRESSIONS,
    LANGFUSE_CLOUD,
    PHOENIX_LOCAL,
    PHOENIX_PROJECT,
    PROTOCOLS,
    parse_headers,
)

EXPORTERS = ("langfuse", "phoenix", "signoz", "prometheus", "console", "otlp")
PRODUCTION = "production"
_SHORT_NAMES = {"prod": PRODUCTION, "dev": "development"}
_ENVIRONMENT_NAME = re.compile(r"(?!langfuse)[a-z0-9_-]{1,40}")


class TelemetrySetting(NamedTuple):
    """One setting: its variables, of which the first that is set wins, its parser, and its default in words."""

    key: str
    variables: tuple[str, ...]
    parse: Callable[[str], Any]
    default: str
    help: str
    secret: bool = False
    """Set if a bad value must not be shown."""


def _milliseconds(value: str) -> float:
    return parsing.number_above_zero(value) / 1000


def _timeout(value: str) -> float:
    # OpenTelemetry for Python reads seconds, the specification says milliseconds; a timeout of 1,000 s is implausible.
    number = parsing.number_above_zero(value)
    return number / 1000 if number >= 1000 else number


def _names(value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip().lower() for name in value.split(",") if name.strip()))


def environment_name(value: str) -> str:
    """Return the name of a deployment in the form that Langfuse accepts; raise ValueError."""
    name = _SHORT_NAMES.get(value.lower(), value.lower())
    if not _ENVIRONMENT_NAME.fullmatch(name):
        raise ValueError("takes up to 40 letters, digits, '-' and '_', and does not begin with langfuse")
    return name


def _rates(value: str) -> dict[str, float]:
    return {name: parsing.share(rate) for name, rate in parsing.pairs(value, "tier=rate").items()}


_word = partial(parsing.one_of, ignore_case=True)


def _path(value: str) -> Path | None:
    return None if value.lower() == "off" else Path(parsing.printable(value)).expanduser()


_SAMPLERS = tuple(
    f"{parent}{name}" for parent in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio")
)
_OTLP = "OTEL_EXPORTER_OTLP_"
_OTLP_LOCAL = "`http://localhost:4318`; with gRPC `http://localhost:4317`"
_USUAL_PROTOCOL = "`grpc` on port 4317, else `http/protobuf`"


def _otlp_row(
    name: str, parse: Callable[[str], Any], default: str, help_: str, *, secret: bool = False
) -> tuple[TelemetrySetting, ...]:
    """Return one setting for traces and one for metrics, each with a variable of its own before the common one."""
    return tuple(
        TelemetrySetting(
            f"{signal.lower()}_{name.lower()}",
            (f"{_OTLP}{signal}_{name}", f"{_OTLP}{name}"),
            parse,
            default,
            help_,
            secret,
        )
        for signal in ("TRACES", "METRICS")
    )


SETTINGS = (
    TelemetrySetting(
        "enabled",
        ("OTEL_ENABLED",),
        parsing.true_false,
        "true",
        "`false`: no telemetry, and no OpenTelemetry module loaded.",
    ),
    TelemetrySetting(
        "disabled",
        ("OTEL_SDK_DISABLED",),
        parsing.true_false,
        "false",
        "`true`: the same, by OpenTelemetry's own variable.",
    ),
    TelemetrySetting(
        "environment",
        ("ENVIRONMENT", "LANGFUSE_TRACING_ENVIRONMENT"),
        environment_name,
        "`deployment.environment.name` of OTEL_RESOURCE_ATTRIBUTES, else `development`",
        "Name of the deployment. `production` (`prod`) has defaults of its own; all others have those of development.",
    ),
    TelemetrySetting(
        "exporters",
        ("OTEL_EXPORTERS",),
        _names,
        "`console`; in production `langfuse`, if its keys are set; `otlp` too, if it has an endpoint",
        f"Exporters, separated by commas: {', '.join(f'`{name}`' for name in EXPORTERS)}; or `none`.",
    ),
    TelemetrySetting(
        "traces_exporter",
        ("OTEL_TRACES_EXPORTER",),
        _names,
        "",
        "OpenTelemetry's own list: `otlp`, `console`, `none`. Read where OTEL_EXPORTERS is not set.",
    ),
    TelemetrySetting(
        "metrics_exporter",
        ("OTEL_METRICS_EXPORTER",),
        _names,
        "to every exporter that takes metrics",
        "OpenTelemetry's own list for metrics: `otlp`, `prometheus`, `none`.",
    ),
    TelemetrySetting(
        "rate",
        ("OTEL_SAMPLING_RATE",),
        parsing.share,
        "1.0; in production 0.1",
        "Share of traces that is kept, 0 to 1. Failed and slow traces have shares of their own: see Sampling.",
    ),
    TelemetrySetting(
        "sampler",
        ("OTEL_TRACES_SAMPLER",),
        _word(*_SAMPLERS),
        "",
        "OpenTelemetry's own variable for the share. Read where OTEL_SAMPLING_RATE is not set.",
    ),
    TelemetrySetting("sampler_arg", ("OTEL_TRACES_SAMPLER_ARG",), parsing.share, "1.0", "The share of `traceidratio`."),
    TelemetrySetting(
        "slow_ms",
        ("SANDSPAN_SLOW_MS",),
        parsing.number,
        "5000",
        "Milliseconds of model and tool work above which a trace is slow.",
    ),
    TelemetrySetting(
        "slow_rate",
        ("SANDSPAN_SLOW_RATE",),
        parsing.share,
        "twice the general share",
        "Share of slow traces that is kept.",
    ),
    TelemetrySetting(
        "tool_error_rate",
        ("SANDSPAN_TOOL_ERROR_RATE",),
        parsing.share,
        "the general share",
        "Share of traces that is kept if a tool call failed and the turn ended well.",
    ),
    TelemetrySetting(
        "tier_rates",
        ("SANDSPAN_TIER_RATES",),
        _rates,
        "none",
        "Shares by the user's tier, in place of the general one: `free=0.05,enterprise=1`.",
    ),
    TelemetrySetting(
        "tier", ("SANDSPAN_USER_TIER",), parsing.printable, "none", "Tier of users whose session names none."
    ),
    TelemetrySetting(
        "conventions",
        ("SANDSPAN_GENAI_CONVENTIONS",),
        _word(*CONVENTIONS),
        "`v0.1.0`",
        "Version of the GenAI conventions whose names spans and metrics have: `v0.1.0`, `v1.41.0`, or `both`.",
    ),
    TelemetrySetting(
        "langfuse_url",
        ("LANGFUSE_OTLP_ENDPOINT", "LANGFUSE_BASE_URL", "LANGFUSE_HOST"),
        parsing.printable,
        f"`{LANGFUSE_CLOUD}`",
        "Langfuse's address; the path to its OTLP endpoint is added where it is missing.",
        secret=True,
    ),
    TelemetrySetting(
        "langfuse_public_key",
        ("LANGFUSE_PUBLIC_KEY",),
        parsing.printable,
        "",
        "Langfuse's public key, `pk-lf-…`.",
        secret=True,
    ),
    TelemetrySetting(
        "langfuse_secret_key",
        ("LANGFUSE_SECRET_KEY",),
        parsing.printable,
        "",
        "Langfuse's secret key, `sk-lf-…`.",
        secret=True,
    ),
    TelemetrySetting(
        "phoenix_url",
        ("PHOENIX_COLLECTOR_ENDPOINT",),
        parsing.printable,
        f"`{PHOENIX_LOCAL}`",
        "Phoenix's address, with the port of its page; spans go over HTTP.",
        secret=True,
    ),
    TelemetrySetting(
        "phoenix_key",
        ("PHOENIX_API_KEY",),
        parsing.printable,
        "",
        "API key of Phoenix; one without authentication needs none.",
        secret=True,
    ),
    TelemetrySetting(
        "phoenix_project",
        ("PHOENIX_PROJECT", "PHOENIX_PROJECT_NAME"),
        parsing.printable,
        f"`{PHOENIX_PROJECT}`",
        "Project in Phoenix that the spans go to.",
    ),
    TelemetrySetting(
        "signoz_url",
        ("SIGNOZ_OTLP_ENDPOINT",),
        parsing.printable,
        _OTLP_LOCAL,
        "SigNoz's address. Cloud: `https://ingest.<region>.signoz.cloud:443`.",
        secret=True,
    ),
    TelemetrySetting(
        "signoz_protocol",
        ("SIGNOZ_OTLP_PROTOCOL",),
        _word(*PROTOCOLS),
        _USUAL_PROTOCOL,
        "Protocol to SigNoz: `http/protobuf` or `grpc`.",
    ),
    TelemetrySetting(
        "signoz_key",
        ("SIGNOZ_INGESTION_KEY",),
        parsing.printable,
        "",
        "Key of SigNoz's cloud; a self-hosted SigNoz needs none.",
        secret=True,
    ),
    TelemetrySetting(
        "otlp_url",
        (f"{_OTLP}ENDPOINT",),
        parsing.printable,
        _OTLP_LOCAL,
        "Any OTLP receiver; over HTTP the signal's path is added.",
        secret=True,
    ),
    TelemetrySetting(
        "traces_url",
        (f"{_OTLP}TRACES_ENDPOINT",),
        parsing.printable,
        "",
        "Endpoint for traces alone; no path is added.",
        secret=True,
    ),
    TelemetrySetting(
        "metrics_url",
        (f"{_OTLP}METRICS_ENDPOINT",),
        parsing.printable,
        "",
        "Endpoint for metrics alone; no path is added.",
        secret=True,
    ),
    *_otlp_row("PROTOCOL", _word(*PROTOCOLS), _USUAL_PROTOCOL, "One of `http/protobuf`, `grpc`."),
    *_otlp_row(
        "HEADERS", parse_headers, "", "Headers, `name=value` separated by commas, percent-encoded.", secret=True
    ),
    *_otlp_row("TIMEOUT", _timeout, "10", "Seconds that a request may take; from 1000 on, milliseconds."),
    *_otlp_row("COMPRESSION", _word(*COMPRESSIONS), "`gzip`", f"One of {', '.join(COMPRESSIONS)}."),
    *_otlp_row("CERTIFICATE", parsing.printable, "the system's", "PEM file of the certificate authority."),
    *_otlp_row("CLIENT_CERTIFICATE", parsing.printable, "", "PEM file of a client certificate."),
    *_otlp_row("CLIENT_KEY", parsing.printable, "", "PEM file of the client certificate's key."),
    TelemetrySetting(
        "metric_interval",
        ("OTEL_METRIC_EXPORT_INTERVAL",),
        _milliseconds,
        "60000",
        "Milliseconds between two exports of metrics.",
    ),
    TelemetrySetting(
        "metric_temporality",
        (f"{_OTLP}METRICS_TEMPORALITY_PREFERENCE",),
        _word(*TEMPORALITIES),
        "`cumulative`",
        "Temporality of metrics over OTLP, to SigNoz too: `cumulative`, `delta`, `lowmemory`.",
    ),
    TelemetrySetting(
        "prometheus_host",
        ("OTEL_EXPORTER_PROMETHEUS_HOST",),
        parsing.printable,
        "`localhost`",
        "Address that Prometheus scrapes; `0.0.0.0` opens it to the network.",
    ),
    TelemetrySetting(
        "prometheus_port",
        ("OTEL_EXPORTER_PROMETHEUS_PORT",),
        parsing.port,
        "9464",
        "Port that Prometheus scrapes; 0 picks a free one.",
    ),
    TelemetrySetting(
        "metrics_textfile",
        ("SANDSPAN_METRICS_TEXTFILE",),
        _path,
        "none; with a Pushgateway `$XDG_STATE_HOME/sandspan/metrics.prom`, else `~/.local/state/sandspan/metrics.prom`",
        "File to which each process adds its metrics at its end, for node_exporter: its name ends in `.prom`.",
    ),
    TelemetrySetting(
        "pushgateway",
        ("SANDSPAN_PUSHGATEWAY",),
        parsing.printable,
        "none",
        "Address of a Pushgateway, which gets the file's sums at the end of each process: `http://host:9091`.",
        secret=True,
    ),
    TelemetrySetting(
        "user_label_limit",
        ("SANDSPAN_USER_LABEL_LIMIT",),
        parsing.count,
        "1000",
        "Maximum number of users on the cost metric; further ones are `other`.",
    ),
    TelemetrySetting(
        "spool_directory",
        ("SANDSPAN_SPOOL_DIRECTORY",),
        _path,
        "`$XDG_STATE_HOME/sandspan/spool`, else `~/.local/state/sandspan/spool`",
        "Directory where spans wait for an exporter that is down; `off`: in memory only.",
    ),
    TelemetrySetting(
        "spool_max_bytes",
        ("SANDSPAN_SPOOL_MAX_BYTES",),
        parsing.count,
        "268435456",
        "Maximum size of the spool in bytes.",
    ),
    TelemetrySetting(
        "ledger",
        ("SANDSPAN_LEDGER",),
        _path,
        "`$XDG_STATE_HOME/sandspan/ledger.sqlite`, else `~/.local/state/sandspan/ledger.sqlite`",
        "SQLite file with the cost of every turn; `off`: none.",
    ),
)

SDK_VARIABLES = {
    "OTEL_SERVICE_NAME": "`service.name` of the host's spans and metrics. Read by OpenTelemetry's SDK.",
    "OTEL_RESOURCE_ATTRIBUTES": "Further attributes of the host's resource: `name=value` separated by commas."
    " `deployment.*` and `service.namespace` go on spans of sandboxes too. Read by the SDK.",
}
"""Variables that OpenTelemetry's SDK reads, with their help text."""

"""Telemetry's configuration from the environment, and its messages about mistakes."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host_client.telemetry.config import TelemetryConfig
from host_client.telemetry.export.endpoints import Endpoint, exact, langfuse, otlp, parse_headers, shown, signoz
from host_client.telemetry.setup._variables import SDK_VARIABLES, SETTINGS
from host_client.telemetry.setup.environment import checked, telemetry_config
from host_client.telemetry.tail.sampling import SamplingConfig

KEYS = {"LANGFUSE_PUBLIC_KEY": "pk-lf-public", "LANGFUSE_SECRET_KEY": "sk-lf-secret"}
BASIC = "Basic " + base64.b64encode(b"pk-lf-public:sk-lf-secret").decode()


def good(**environ: str) -> TelemetryConfig:
    config, problems = telemetry_config(environ)
    assert problems == ()
    return config


def bad(**environ: str) -> tuple[TelemetryConfig, str]:
    config, (problem,) = telemetry_config(environ)
    return config, problem


def test_development_shows_every_trace_on_the_console() -> None:
    config = good()
    assert (config.environment, config.exporters, config.sampling.rate) == ("development", ("console",), 1.0)


@pytest.mark.parametrize("name", ["production", "prod", "Production"])
def test_production_sends_a_tenth_to_langfuse_when_its_keys_are_there(name: str) -> None:
    config = good(ENVIRONMENT=name, **KEYS)
    assert (config.environment, config.exporters, config.sampling.rate) == ("production", ("langfuse",), 0.1)


def test_production_without_an_exporter_says_so() -> None:
    config, problem = bad(ENVIRONMENT="production")
    assert config.exporters == ()
    assert "LANGFUSE_PUBLIC_KEY" in problem
    assert "OTEL_EXPORTERS" in problem
    assert good(ENVIRONMENT="production", OTEL_EXPORTERS="none").exporters == ()


def test_a_deployment_may_have_any_name_and_is_found_where_opentelemetry_puts_it() -> None:
    assert good(ENVIRONMENT="staging").environment == "staging"
    assert good(OTEL_RESOURCE_ATTRIBUTES="a=b,deployment.environment.name=production", **KEYS).sampling.rate == 0.1
    assert good(LANGFUSE_TRACING_ENVIRONMENT="qa").environment == "qa"


@pytest.mark.parametrize("off", [{"OTEL_ENABLED": "false"}, {"OTEL_ENABLED": "False"}, {"OTEL_SDK_DISABLED": "true"}])
def test_telemetry_can_be_switched_off_and_then_nothing_else_is_wrong(off: dict[str, str]) -> None:
    config = good(**off, OTEL_EXPORTERS="nonsense")
    assert (config.enabled, config.exporters) == (False, ())


def test_several_exporters_in_any_case() -> None:
    text = "Langfuse, sigNoz,prometheus,CONSOLE,otlp,signoz"
    config = good(OTEL_EXPORTERS=text, **KEYS)
    assert config.exporters == ("langfuse", "signoz", "prometheus", "console", "otlp")
    assert config.signoz == Endpoint(url="http://localhost:4318/v1/traces")
    assert config.otlp_metrics == Endpoint(url="http://localhost:4318/v1/metrics")


def test_an_unknown_exporter_is_left_out_and_the_others_stay() -> None:
    config, problem = bad(OTEL_EXPORTERS="jaeger,console")
    assert config.exporters == ("console",)
    assert problem == (
        "OTEL_EXPORTERS has 'jaeger'; known are langfuse, phoenix, signoz, prometheus, console, otlp; it is left out"
    )


@pytest.mark.parametrize("missing", list(KEYS))
def test_langfuse_without_a_key_is_left_out(missing: str) -> None:
    config, problem = bad(OTEL_EXPORTERS="langfuse,console", **{k: v for k, v in KEYS.items() if k != missing})
    assert config.exporters == ("console",)
    assert problem == f"langfuse needs {missing}; nothing is sent to langfuse"


@pytest.mark.parametrize(
    ("variable", "value", "url"),
    [
        ("LANGFUSE_HOST", "https://lf.example", "https://lf.example"),
        ("LANGFUSE_BASE_URL", "https://lf.example/", "https://lf.example"),
        ("LANGFUSE_OTLP_ENDPOINT", "https://lf.example/api/public/otel", "https://lf.example"),
        ("LANGFUSE_OTLP_ENDPOINT", "https://lf.example/api/public/otel/v1/traces", "https://lf.example"),
        ("LANGFUSE_OTLP_ENDPOINT", "http://proxy/langfuse", "http://proxy/langfuse"),
        ("LANGFUSE_OTLP_ENDPOINT", "lf.example:3000", "http://lf.example:3000"),
    ],
)
def test_langfuses_address_is_made_whole(variable: str, value: str, url: str) -> None:
    config = good(OTEL_EXPORTERS="langfuse", **KEYS, **{variable: value})
    assert config.langfuse == Endpoint(
        url=f"{url}/api/public/otel/v1/traces",
        headers={"authorization": BASIC, "x-langfuse-ingestion-version": "4"},
    )


def test_langfuses_own_endpoint_wins_over_its_host() -> None:
    config = good(OTEL_EXPORTERS="langfuse", LANGFUSE_HOST="http://a", LANGFUSE_OTLP_ENDPOINT="http://b", **KEYS)
    assert config.langfuse is not None
    assert config.langfuse.url.startswith("http://b/")


def test_phoenix_is_on_this_machine_or_at_an_address_with_a_key() -> None:
    config = good(OTEL_EXPORTERS="phoenix")
    assert (config.phoenix, config.phoenix_project) == (Endpoint(url="http://localhost:6006/v1/traces"), "default")
    there = "https://phoenix.example/s/acme"
    config = good(
        OTEL_EXPORTERS="phoenix", PHOENIX_COLLECTOR_ENDPOINT=there, PHOENIX_API_KEY="k", PHOENIX_PROJECT_NAME="agents"
    )
    assert config.phoenix == Endpoint(url=f"{there}/v1/traces", headers={"authorization": "Bearer k"})
    assert config.phoenix_project == "agents"
    config, problem = bad(OTEL_EXPORTERS="phoenix", PHOENIX_COLLECTOR_ENDPOINT="http://localhost:4317")
    assert config.exporters == ()
    assert problem == (
        "PHOENIX_COLLECTOR_ENDPOINT has Phoenix's gRPC port 4317: write the port of its page, such as"
        " http://localhost:6006; nothing is sent to phoenix"
    )


def test_signoz_speaks_grpc_on_its_port_and_takes_a_key_in_the_cloud() -> None:
    assert signoz("localhost:4317") == Endpoint(url="http://localhost:4317", protocol="grpc")
    cloud = signoz("https://ingest.eu.signoz.cloud:443", "key", "metrics")
    assert cloud == Endpoint(
        url="https://ingest.eu.signoz.cloud:443/v1/metrics", headers={"signoz-ingestion-key": "key"}
    )
    named = good(OTEL_EXPORTERS="signoz", SIGNOZ_OTLP_ENDPOINT="localhost:9000", SIGNOZ_OTLP_PROTOCOL="grpc")
    assert named.signoz == named.signoz_metrics == Endpoint(url="http://localhost:9000", protocol="grpc")
    assert good(OTEL_EXPORTERS="signoz", SIGNOZ_OTLP_PROTOCOL="grpc").signoz == signoz("localhost:4317")
    assert signoz("localhost:4317", protocol="http/protobuf").url == "http://localhost:4317/v1/traces"
    config, problem = bad(OTEL_EXPORTERS="signoz", SIGNOZ_OTLP_ENDPOINT="ingest.eu.signoz.cloud:443")
    assert config.exporters == ()
    assert "SIGNOZ_INGESTION_KEY" in problem


def test_an_otlp_endpoint_adds_its_exporter_and_follows_the_standard() -> None:
    config = good(
        OTEL_EXPORTER_OTLP_ENDPOINT="https://collector:4318/in/",
        OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20abc, x-team=a%2Cb",
        OTEL_EXPORTER_OTLP_TIMEOUT="3",
        OTEL_EXPORTER_OTLP_COMPRESSION="none",
        OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="http://metrics/as-it-is",
        OTEL_EXPORTER_OTLP_METRICS_HEADERS="k=v",
        OTEL_EXPORTER_OTLP_METRICS_TIMEOUT="2500",
        OTEL_EXPORTER_OTLP_CERTIFICATE="/ca.pem",
    )
    assert config.exporters == ("console", "otlp")
    assert config.otlp == Endpoint(
        url="https://collector:4318/in/v1/traces",
        headers={"authorization": "Bearer abc", "x-team": "a,b"},
        timeout=3.0,
        compression="none",
        certificate="/ca.pem",
    )
    assert config.otlp_metrics == Endpoint(
        url="http://metrics/as-it-is",
        headers={"k": "v"},
        timeout=2.5,
        compression="none",
        certificate="/ca.pem",
    )


def test_grpc_is_asked_for_by_its_name_or_its_port() -> None:
    assert otlp("traces", "http://c:4317") == Endpoint(url="http://c:4317", protocol="grpc")
    assert otlp("traces", "http://c:4317/x", "http/protobuf").url == "http://c:4317/x/v1/traces"
    config = good(OTEL_EXPORTERS="otlp", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert config.otlp == Endpoint(url="http://localhost:4317", protocol="grpc")


@pytest.mark.parametrize(
    ("environ", "exporters", "signoz_metrics", "otlp_metrics"),
    [
        ({"OTEL_TRACES_EXPORTER": "none"}, (), None, None),
        ({"OTEL_TRACES_EXPORTER": "otlp,console"}, ("otlp", "console"), None, "http://localhost:4318/v1/metrics"),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, ("console", "prometheus"), None, None),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, ("console",), None, "http://localhost:4318/v1/metrics"),
        ({"OTEL_EXPORTERS": "signoz"}, ("signoz",), "http://localhost:4318/v1/metrics", None),
        ({"OTEL_EXPORTERS": "signoz,otlp", "OTEL_METRICS_EXPORTER": "none"}, ("signoz", "otlp"), None, None),
        ({"OTEL_EXPORTERS": "console", "OTEL_TRACES_EXPORTER": "otlp"}, ("console",), None, None),
    ],
    ids=str,
)
def test_opentelemetrys_own_lists_are_followed(
    environ: dict[str, str], exporters: tuple[str, ...], signoz_metrics: str | None, otlp_metrics: str | None
) -> None:
    config = good(**environ)
    urls = [each and each.url for each in (config.signoz_metrics, config.otlp_metrics)]
    assert (config.exporters, *urls) == (exporters, signoz_metrics, otlp_metrics)


@pytest.mark.parametrize(
    ("environ", "rate"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_off"}, 0.0),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}, 0.25),
        ({"OTEL_TRACES_SAMPLER": "always_off", "OTEL_SAMPLING_RATE": "0.5"}, 0.5),
        ({"OTEL_SAMPLING_RATE": "1e-3"}, 0.001),
        ({"OTEL_SAMPLING_RATE": ""}, 1.0),
    ],
    ids=str,
)
def test_the_share_of_traces_is_ours_else_opentelemetrys(environ: dict[str, str], rate: float) -> None:
    assert good(**environ).sampling.rate == rate


def test_all_that_is_ours_has_a_variable() -> None:
    config = good(
        SANDSPAN_SLOW_MS="250",
        SANDSPAN_SLOW_RATE="0.5",
        SANDSPAN_TOOL_ERROR_RATE="0.25",
        SANDSPAN_TIER_RATES="free=0.05, enterprise=1",
        SANDSPAN_USER_TIER="free",
        SANDSPAN_USER_LABEL_LIMIT="0",
        SANDSPAN_SPOOL_DIRECTORY="/var/spool/agents",
        SANDSPAN_SPOOL_MAX_BYTES="1000000",
        SANDSPAN_LEDGER="off",
        OTEL_EXPORTER_PROMETHEUS_HOST="0.0.0.0",
        OTEL_EXPORTER_PROMETHEUS_PORT="0",
        OTEL_METRIC_EXPORT_INTERVAL="1500",
        SANDSPAN_METRICS_TEXTFILE="/var/lib/node/sandspan.prom",
        SANDSPAN_PUSHGATEWAY="gateway:9091",
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="Delta",
    )
    assert config == TelemetryConfig(
        sampling=SamplingConfig(
            slow_ms=250, slow_rate=0.5, tier_rates={"free": 0.05, "enterprise": 1.0}, tool_error_rate=0.25
        ),
        tier="free",
        user_label_limit=0,
        spool_directory=Path("/var/spool/agents"),
        spool_max_bytes=1_000_000,
        prometheus_host="0.0.0.0",
        prometheus_port=0,
        metric_interval=1.5,
        metrics_textfile=Path("/var/lib/node/sandspan.prom"),
        pushgateway=Endpoint(url="http://gateway:9091"),
        metric_temporality="delta",
    )


def test_state_lies_in_the_users_own_folder() -> None:
    config = good(HOME="/home/ada")
    assert config.spool_directory == Path("/home/ada/.local/state/sandspan/spool")
    assert config.ledger == Path("/home/ada/.local/state/sandspan/ledger.sqlite")
    assert good(HOME="/home/ada", XDG_STATE_HOME="/state").ledger == Path("/state/sandspan/ledger.sqlite")
    assert good(HOME="relative").spool_directory is None
    assert config.metrics_textfile is None
    pushed = good(HOME="/home/ada", SANDSPAN_PUSHGATEWAY="https://ada:hush@gateway")
    assert pushed.metrics_textfile == Path("/home/ada/.local/state/sandspan/metrics.prom")
    assert pushed.pushgateway == exact("https://ada:hush@gateway")


@pytest.mark.parametrize("environ", [{}, {"HOME": "/home/ada", "SANDSPAN_PUSHGATEWAY": "ftp://gateway"}], ids=str)
def test_a_pushgateway_that_cannot_be_used_is_one_problem_and_left_out(environ: dict[str, str]) -> None:
    config, problem = bad(**{"SANDSPAN_PUSHGATEWAY": "gateway:9091", **environ})
    assert config.pushgateway is None
    assert problem.startswith("SANDSPAN_PUSHGATEWAY ")
    assert "ftp" not in problem


BAD = {
    "OTEL_ENABLED": "maybe",
    "OTEL_SDK_DISABLED": "perhaps",
    "ENVIRONMENT": "Prod!",
    "OTEL_EXPORTERS": "kafka",
    "OTEL_TRACES_EXPORTER": "zipkin",
    "OTEL_METRICS_EXPORTER": "statsd",
    "OTEL_SAMPLING_RATE": "7",
    "OTEL_TRACES_SAMPLER": "jaeger_remote",
    "SANDSPAN_SLOW_MS": "-1",
    "SANDSPAN_SLOW_RATE": "nan",
    "SANDSPAN_TOOL_ERROR_RATE": "2",
    "SANDSPAN_TIER_RATES": "free:1",
    "SIGNOZ_OTLP_PROTOCOL": "http/json",
    "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
    "OTEL_EXPORTER_OTLP_HEADERS": "no-value",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "0",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "brotli",
    "OTEL_EXPORTER_PROMETHEUS_PORT": "70000",
    "OTEL_METRIC_EXPORT_INTERVAL": "soon",
    "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "both",
    "SANDSPAN_USER_LABEL_LIMIT": "many",
    "SANDSPAN_SPOOL_MAX_BYTES": "1GB",
}


@pytest.mark.parametrize("variable", BAD)
def test_a_bad_value_is_one_problem_that_names_it_and_the_default_holds(variable: str) -> None:
    config, problem = bad(**{variable: BAD[variable]})
    assert variable in problem
    assert "\n" not in problem
    assert config == TelemetryConfig(
        exporters=() if variable in ("OTEL_EXPORTERS", "OTEL_TRACES_EXPORTER") else ("console",)
    )


@pytest.mark.parametrize("rate", ["7", "-0.1", "nan", "inf", "1,0", "10%", "1e999"])
def test_a_rate_out_of_bounds_keeps_everything(rate: str) -> None:
    config, problem = bad(OTEL_SAMPLING_RATE=rate)
    assert config.sampling.rate == 1.0
    assert problem == f"OTEL_SAMPLING_RATE={rate!r} takes a number from 0 to 1; using the default"


@pytest.mark.parametrize(
    "url", ["ftp://a:hush@h", "http://", "http://a:hush@h:port", "http://hush:99999", "http:/hush", "hush\r\nX: y"]
)
def test_a_bad_address_is_told_without_being_shown(url: str) -> None:
    config, problems = telemetry_config({"OTEL_EXPORTERS": "otlp,console", "OTEL_EXPORTER_OTLP_ENDPOINT": url})
    assert "console" in config.exporters
    assert all(problem.startswith("OTEL_EXPORTER_OTLP_ENDPOINT ") for problem in problems)
    assert problems
    assert "hush" not in "".join(problems)


def test_credentials_of_an_address_become_a_header_and_are_shown_nowhere() -> None:
    endpoint = exact("https://ada:s%40cret@collector:4318/v1/traces?token=s%40cret")
    assert endpoint.headers == {"authorization": "Basic " + base64.b64encode(b"ada:s@cret").decode()}
    assert shown(endpoint.url) == "https://collector:4318/v1/traces?…"
    assert shown("https://ada:secret@[::1]:4318/x") == "https://[::1]:4318/x"
    assert "cret" not in repr(endpoint)


def test_no_key_is_in_what_a_configuration_says_of_itself() -> None:
    config = good(OTEL_EXPORTERS="langfuse,otlp", OTEL_EXPORTER_OTLP_HEADERS="authorization=hush", **KEYS)
    assert config.langfuse == langfuse("https://cloud.langfuse.com", *KEYS.values())
    for secret in (*KEYS.values(), BASIC, "hush"):
        assert secret not in repr(config)


@pytest.mark.parametrize("text", ["a=b%0d%0aX-Injected: yes", "a=caf%C3%A9", "a b=c", "=c", "novalue"])
def test_a_header_that_would_break_a_request_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"takes name=value|a header may not contain") as refused:
        parse_headers(text)
    assert "Injected" not in str(refused.value)


class Watched(dict[str, str]):
    """An environment that records the names of the variables that were read."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: str = "") -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> str:
        raise AssertionError("read past get")

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("read past get")


def test_every_variable_that_is_read_is_in_the_table() -> None:
    environ = Watched({})
    telemetry_config(environ)
    known = {variable for row in SETTINGS for variable in row.variables}
    assert environ.asked == known | {"OTEL_RESOURCE_ATTRIBUTES", "HOME", "XDG_STATE_HOME"}
    assert "OTEL_RESOURCE_ATTRIBUTES" in SDK_VARIABLES


@given(st.dictionaries(st.sampled_from([v for row in SETTINGS for v in row.variables]), st.text(max_size=30)))
def test_no_environment_raises(environ: dict[str, str]) -> None:
    config, problems = telemetry_config(environ)
    assert checked(config) == (config, ())
    assert all(problem.isprintable() for problem in problems)


def test_a_bad_configuration_in_code_is_mended_and_told() -> None:
    config, problems = checked(
        TelemetryConfig(
            exporters=("SigNoz", "kafka", "console"),
            sampling=SamplingConfig(rate=7, slow_rate=float("nan"), tier_rates={"free": -1}),
            prometheus_port=-1,
            pushgateway=exact("http://gateway:9091"),
            metric_interval=0,
        )
    )
    assert config == TelemetryConfig(sampling=SamplingConfig(slow_rate=1.0, tier_rates={"free": 1.0}))
    assert len(problems) == 8

"""``host_client doctor`` checks that telemetry arrives, and advises if it does not."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from agent_runner.contract.findings import SYMBOLS
from host_client.telemetry.export import endpoints
from host_client.telemetry.setup.probe import (
    SPAN_NAME,
    check_ledger,
    check_pushgateway,
    check_spool,
    check_textfile,
)
from tests.support.collector import Collector
from tests.support.prometheus import pushgateway
from tests.template.test_host_doctor import Doctor, finding
from tests.template.tools import REPOSITORY

KEYS = {"LANGFUSE_PUBLIC_KEY": "pk-lf-x", "LANGFUSE_SECRET_KEY": "sk-never-shown"}
NEITHER = SYMBOLS[None]


class HereDoctor(Doctor):
    """The doctor of this checkout, also if another version is installed."""

    def __call__(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return super().__call__(*args, PYTHONPATH=str(REPOSITORY), **environ)


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    return HereDoctor(tmp_path)


def test_each_exporter_gets_a_probe_of_its_own(doctor: Doctor) -> None:
    with Collector() as collector:
        environ = {
            "OTEL_EXPORTERS": "langfuse,phoenix,sigNoz,otlp,console",
            "LANGFUSE_OTLP_ENDPOINT": collector.url,
            "PHOENIX_COLLECTOR_ENDPOINT": f"{collector.url}/phoenix",
            "SIGNOZ_OTLP_ENDPOINT": f"{collector.url}/signoz",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"{collector.url}/otlp",
        }
        done = doctor(**environ, **KEYS)
        url = collector.url
    assert finding(done, "Telemetry") == "✓development, 100 % of the traces to langfuse, phoenix, signoz, otlp, console"
    paths = {"langfuse": "/api/public/otel", "phoenix": "/phoenix", "signoz": "/signoz", "otlp": "/otlp"}
    for name, path in paths.items():
        assert finding(done, f"Exporter {name}").startswith(f"✓{url}{path}/v1/traces accepted a probe, trace ")
    for name, path in (("signoz", "/signoz"), ("otlp", "/otlp")):
        assert finding(done, f"Metrics to {name}") == f"✓{url}{path}/v1/metrics accepted an empty export"
    probes = collector.named(SPAN_NAME)
    assert len(probes) == len(collector.spans) == 4
    assert all(f"trace {probe.trace_id}" in done.stdout for probe in probes)


@pytest.mark.parametrize(("status", "why"), [(401, "401"), (404, "404"), (400, "400"), (302, "302"), (503, "503")])
def test_what_an_exporter_says_is_told_and_how_to_mend_it(doctor: Doctor, status: int, why: str) -> None:
    with Collector(status) as collector:
        done = doctor(OTEL_EXPORTERS="langfuse", LANGFUSE_HOST=collector.url, **KEYS)
    line = finding(done, "Exporter langfuse")
    assert done.returncode == 1
    assert line.startswith(f"✗{collector.url}/api/public/otel/v1/traces")
    assert why in line
    assert "Check LANGFUSE_OTLP_ENDPOINT" in line


def test_an_exporter_that_is_not_there_is_told(doctor: Doctor) -> None:
    with Collector() as collector:
        url = collector.url
    line = finding(
        doctor(OTEL_EXPORTERS="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://a:hush@{url[7:]}"), "Exporter otlp"
    )
    assert line.startswith(f"✗{url}/v1/traces: ConnectionRefusedError")
    assert "Check OTEL_EXPORTER_OTLP_ENDPOINT" in line
    assert "hush" not in line


def test_a_bad_setting_is_a_finding(doctor: Doctor) -> None:
    done = doctor(OTEL_SAMPLING_RATE="7", OTEL_EXPORTERS="console")
    assert done.returncode == 1
    assert finding(done, "Telemetry setting").startswith("✗OTEL_SAMPLING_RATE='7' takes a number from 0 to 1")


def test_keys_that_nobody_asks_for_are_told(doctor: Doctor) -> None:
    told = finding(doctor(**KEYS), "Exporter langfuse")
    assert told == f"{NEITHER}its keys are set, but OTEL_EXPORTERS does not name langfuse"


def test_telemetry_that_is_off_is_neither_good_nor_bad(doctor: Doctor) -> None:
    done = doctor(OTEL_ENABLED="false", OTEL_EXPORTERS="kafka")
    assert finding(done, "Telemetry").startswith(f"{NEITHER}off")
    assert "Exporter" not in done.stdout


def test_a_port_that_is_taken_is_told(doctor: Doctor) -> None:
    with socket.create_server(("localhost", 0)) as server:
        port = str(server.getsockname()[1])
        done = doctor(OTEL_EXPORTERS="prometheus", OTEL_EXPORTER_PROMETHEUS_PORT=port)
    assert finding(done, "Prometheus").startswith(f"✗localhost:{port} is in use. Set OTEL_EXPORTER_PROMETHEUS_PORT")


def test_a_pushgateway_is_asked_whether_it_is_ready(doctor: Doctor, tmp_path: Path) -> None:
    with pushgateway(tmp_path) as address:
        done = doctor(OTEL_EXPORTERS="none", SANDSPAN_PUSHGATEWAY=f"ada:hush@{address}")
    assert finding(done, "Pushgateway") == f"✓http://{address} is ready"
    assert finding(done, "Textfile").startswith("✓")
    refused = check_pushgateway(endpoints.exact(f"ada:hush@{address}"))
    assert (refused.ok, refused.detail) == (False, f"http://{address}: <urlopen error [Errno 111] Connection refused>")


def test_a_textfile_wants_a_directory_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_textfile(tmp_path / "new/sandspan.prom").ok
    assert check_textfile(tmp_path / "file/sandspan.prom").ok is False


def test_a_spool_wants_a_directory_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert check_spool(tmp_path / "not" / "yet").ok
    assert check_spool(tmp_path / "file" / "spool").ok is False
    assert check_spool(None).ok is None


def test_a_ledger_is_none_yet_or_a_sound_database(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"not a database, by any measure" * 200)
    assert check_ledger(tmp_path / "not" / "yet.sqlite").ok
    assert check_ledger(None).ok is None
    finding_ = check_ledger(broken)
    assert finding_.ok is False
    assert "not a database" in finding_.detail

"""Each role of the built wheel works in an environment with only that role's requirements."""

from __future__ import annotations

import json

import pytest

import agent_runner

from .conftest import Installed
from .environments import Wheel, closure

IMPORT_ALL = """
import importlib, pkgutil, sys
import {package} as package
for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".", onerror=lambda name: None):
    if not module.name.endswith(".__main__") and ".claude" not in module.name:
        importlib.import_module(module.name)
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""

SERVICE = {"fastapi", "starlette"}
EXPORTERS = {"grpcio", "opentelemetry-exporter-prometheus", "prometheus-client"}
CLAUDE = "claude-agent-sdk"


def test_the_contract_imports_with_msgspec_alone(wheel: Wheel, installed: Installed) -> None:
    assert set(closure(wheel)) == {"msgspec"}
    code = (
        "import sys; from agent_runner.contract import protocol as p; print(len(p.EVENT_TYPES), *sorted(sys.modules))"
    )
    count, *modules = installed().python(code).split()
    assert int(count) >= 15
    assert not {"asyncio", "claude_agent_sdk", "opentelemetry", "host_client"} & set(modules)


def test_each_role_requires_what_it_uses_and_no_more(wheel: Wheel) -> None:
    requires = {
        role: closure(wheel, role).keys()
        for role in ("runner", "client", "telemetry", "service", "redis", "local", "claude", "all", "host")
    }
    assert CLAUDE in requires["runner"] & requires["local"] & requires["claude"] & requires["all"]
    for role in ("client", "telemetry", "service", "redis", "host"):
        assert CLAUDE not in requires[role]
    # A library user needs neither a web framework nor gRPC nor Prometheus.
    assert not (SERVICE | EXPORTERS) & requires["client"]
    assert not {"e2b", "grpcio", "rich", "typer"} & requires["runner"]
    assert requires["telemetry"] >= EXPORTERS | requires["client"]
    assert not {"fastapi"} & requires["telemetry"]
    assert requires["service"] >= SERVICE | requires["client"]
    assert not EXPORTERS & requires["service"]
    assert requires["redis"] >= {"redis"} | requires["service"]
    assert requires["local"] >= requires["runner"] | requires["client"]
    assert requires["claude"] >= requires["client"]
    assert requires["host"] >= requires["client"] | requires["telemetry"] | requires["service"]
    assert requires["all"] == set().union(*requires.values())


def test_runner_role_runs_its_commands(installed: Installed) -> None:
    runner = installed("runner")
    version = runner.run("agent_runner", "--version")
    assert (version.returncode, version.stdout) == (0, f"agent_runner {agent_runner.__version__}\n")
    schema = runner.run("agent_runner", "schema")
    assert schema.returncode == 0
    assert set(json.loads(schema.stdout)) == {"events", "commands"}


def test_runner_role_imports_all_of_the_runner_and_nothing_of_the_host(installed: Installed) -> None:
    loaded = installed("runner").python(IMPORT_ALL.format(package="agent_runner")).split()
    assert {"agent_runner", "claude_agent_sdk", "opentelemetry"} <= set(loaded)
    assert not {"host_client", "e2b", "typer"} & set(loaded)


def test_a_runner_without_the_claude_sdk_says_so_in_its_events(installed: Installed) -> None:
    done = installed("client").run("agent_runner", "run", "--prompt", "go")
    error, telemetry, end = (json.loads(line) for line in done.stdout.splitlines())
    assert telemetry["type"] == "telemetry"
    assert done.returncode == 3, done.stderr
    assert error["type"] == "error"
    assert error["data"]["message"] == (
        "claude_agent_sdk is not installed, and the runner needs it: pip install 'sandspan[runner]'"
    )
    assert (end["type"], end["data"]) == ("end", {"reason": "failed", "exit_code": 3})
    assert done.stderr == ""


def test_client_role_runs_the_command_line_under_both_names(installed: Installed) -> None:
    client = installed("client")
    assert not client.can_import("claude_agent_sdk")
    client.python("import host_client, host_client.__main__, host_client.sandbox.e2b")
    for name in ("host_client", "sandspan"):
        help_page = client.run(name, "--help")
        assert help_page.returncode == 0, help_page.stderr
        assert "demo" in help_page.stdout


def test_importing_the_host_imports_no_e2b(installed: Installed) -> None:
    # Importing e2b takes 0.3 s, and a local session does not use it.
    assert installed("client").python("import sys, host_client; print('e2b' in sys.modules)") == "False"


def test_all_of_the_host_imports_without_the_claude_sdk(installed: Installed) -> None:
    loaded = installed("host", "redis").python(IMPORT_ALL.format(package="host_client")).split()
    assert {"host_client", "fastapi", "prometheus_client", "e2b"} <= set(loaded)
    assert "claude_agent_sdk" not in loaded


def test_the_stand_in_for_the_sdk_says_which_extra_it_needs(installed: Installed) -> None:
    code = (
        "from host_client.errors import ConfigurationError\n"
        "try: import host_client.claude\n"
        "except ConfigurationError as error: print(error)"
    )
    assert installed("client").python(code) == (
        "host_client.claude needs claude_agent_sdk, which is not installed: pip install 'sandspan[claude]'"
    )


def test_service_role_serves_without_exporters_of_its_own(installed: Installed) -> None:
    code = "import host_client.service.run, sys; print('grpc' in sys.modules, 'prometheus_client' in sys.modules)"
    assert installed("service").python(code) == "False False"


def test_telemetry_role_brings_the_dashboards(installed: Installed) -> None:
    telemetry = installed("telemetry")
    listed = telemetry.run("host_client", "dashboards", "list")
    assert listed.returncode == 0, listed.stderr
    assert {"grafana/overview.json", "langfuse/cost.json", "prometheus/alerts.yml"} <= set(listed.stdout.split())
    provisioned = telemetry.run("host_client", "dashboards", "provision", "langfuse")
    assert (provisioned.returncode, provisioned.stdout) == (2, "")
    assert "set LANGFUSE_PUBLIC_KEY" in provisioned.stderr


def test_local_role_runs_the_demo(installed: Installed) -> None:
    done = installed("local").run("host_client", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agent.session" in done.stdout


@pytest.mark.parametrize(
    ("role", "command", "says"),
    [
        ((), "--help", "the command line needs typer, which is not installed: pip install 'sandspan[client]'"),
        (
            ("client",),
            "serve",
            "the service needs starlette, which is not installed: pip install 'sandspan[service]'",
        ),
        (("client",), "demo", "the demo needs uvicorn, which is not installed: pip install 'sandspan[local]'"),
        (
            ("service",),
            "serve --demo",
            "the demo needs claude-agent-sdk, which is not installed: pip install 'sandspan[local]'",
        ),
        (
            ("client",),
            "run go --sandbox local",
            "the local sandbox needs claude-agent-sdk, which is not installed: pip install 'sandspan[local]', "
            "or set E2B_API_KEY",
        ),
        (
            ("service",),
            "serve --sandbox e2b --store redis://127.0.0.1:1",
            "--store redis://… needs redis, which is not installed: pip install 'sandspan[redis]'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "",
)
def test_what_lacks_an_extra_says_which_in_one_line(
    installed: Installed, role: tuple[str, ...], command: str, says: str
) -> None:
    done = installed(*role).run("host_client", *command.split(), E2B_API_KEY="e2b_none", ANTHROPIC_API_KEY="none")
    assert done.returncode == 2, done.stdout + done.stderr
    *remarks, line = done.stderr.splitlines()
    assert line.endswith(says)
    assert not [remark for remark in remarks if "Traceback" in remark]
    assert done.stdout == ""


def test_the_library_without_opentelemetry_says_what_to_install(installed: Installed) -> None:
    code = """
import asyncio
from host_client import SandspanError, run_agent
try:
    asyncio.run(run_agent("go", environ={}))
except SandspanError as error:
    print(type(error).__name__, error)
try:
    import host_client.sandbox.e2b
except SandspanError as error:
    print(type(error).__name__, error)
"""
    assert installed().python(code).splitlines() == [
        "ConfigurationError the trace needs opentelemetry-sdk, which is not installed: "
        "pip install 'sandspan[client]', or set OTEL_ENABLED=false to run without",
        "ConfigurationError host_client.sandbox.e2b needs e2b, which is not installed: pip install 'sandspan[client]'",
    ]


def test_an_exporter_without_its_extra_is_left_out_with_one_warning(installed: Installed) -> None:
    code = """
from host_client.telemetry import initialize_telemetry
telemetry = initialize_telemetry()
print(telemetry.shutdown() is not None)
"""
    done = installed("client").run("python", "-c", code, OTEL_EXPORTERS="otlp,prometheus")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line == (
        "telemetry: otlp, prometheus needs opentelemetry-exporter-otlp, which is not installed: "
        "pip install 'sandspan[telemetry]'; nothing is sent there"
    )

"""Each role of the built wheel, alone in an environment that holds its own requirements only."""

from __future__ import annotations

import json

import agent_runner

from .environments import Environment, Wheel, closure

IMPORT_ALL = """
import importlib, pkgutil, sys
import {package} as package
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith(".__main__"):
        importlib.import_module(module.name)
print(*sorted({{name.split(".")[0] for name in sys.modules}}))
"""


def test_the_contract_imports_with_msgspec_alone(wheel: Wheel, bare: Environment) -> None:
    assert set(closure(wheel)) == {"msgspec"}
    code = "import sys; from agent_runner import protocol; print(len(protocol.EVENT_TYPES), *sorted(sys.modules))"
    count, *modules = bare.python(code).split()
    assert int(count) >= 15
    assert not {"asyncio", "claude_agent_sdk", "opentelemetry", "host_client"} & set(modules)


def test_runner_role_runs_its_commands(runner: Environment) -> None:
    version = runner.run("agent_runner", "--version")
    assert (version.returncode, version.stdout) == (0, f"agent_runner {agent_runner.__version__}\n")
    schema = runner.run("agent_runner", "schema")
    assert schema.returncode == 0
    assert set(json.loads(schema.stdout)) == {"events", "commands"}


def test_runner_role_imports_all_of_the_runner_and_nothing_of_the_host(runner: Environment) -> None:
    loaded = runner.python(IMPORT_ALL.format(package="agent_runner")).split()
    assert {"agent_runner", "claude_agent_sdk", "opentelemetry"} <= set(loaded)
    assert not {"host_client", "e2b", "typer"} & set(loaded)


def test_runner_role_holds_nothing_that_only_the_host_needs(wheel: Wheel, runner: Environment) -> None:
    only_host = closure(wheel, "host").keys() - closure(wheel, "runner").keys()
    assert {"e2b", "rich", "typer", "grpcio"} <= only_host
    assert not [name for name in ("e2b", "rich", "typer", "grpc") if runner.can_import(name)]


def test_host_role_runs_without_the_claude_sdk(host: Environment) -> None:
    assert not host.can_import("claude_agent_sdk")
    host.python("import host_client, host_client.__main__")
    help_page = host.run("host_client", "--help")
    assert help_page.returncode == 0, help_page.stderr
    assert "demo" in help_page.stdout


def test_host_role_imports_all_of_the_host_without_the_claude_sdk(host: Environment) -> None:
    loaded = host.python(IMPORT_ALL.format(package="host_client")).split()
    assert "host_client" in loaded
    assert "claude_agent_sdk" not in loaded


def test_importing_the_host_imports_no_e2b(host: Environment) -> None:
    # It takes 0.3 s, and a local session needs none of it.
    assert host.python("import sys, host_client; print('e2b' in sys.modules)") == "False"


def test_host_role_brings_the_dashboards(host: Environment) -> None:
    listed = host.run("host_client", "dashboards", "list")
    assert listed.returncode == 0, listed.stderr
    assert {"grafana/overview.json", "langfuse/cost.json", "prometheus/alerts.yml"} <= set(listed.stdout.split())
    provisioned = host.run("host_client", "dashboards", "provision", "langfuse")
    assert (provisioned.returncode, provisioned.stdout) == (2, "")
    assert "set LANGFUSE_PUBLIC_KEY" in provisioned.stderr

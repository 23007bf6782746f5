"""The checks of ``host_client doctor``: whether agents can run from here, and what to do if not.

A check is a function of the `Circumstances` that yields findings; `CHECKS` lists all, in order. A part that the
circumstances do not need gets a finding that is neither good nor bad.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from agent_runner.contract.credentials import CREDENTIALS
from agent_runner.contract.findings import Finding, check_python
from host_client.errors import ConfigurationError, SandboxError
from host_client.extras import is_installed
from host_client.signals import run_until_signal
from host_client.telemetry.setup.environment import telemetry_config

__all__ = ["CHECKS", "Circumstances", "Finding", "Kind", "diagnose"]

Kind = Literal["e2b", "local"]

CLI_TIMEOUT = 30.0
"""Seconds to wait for ``e2b --version``."""

RUNNER_TIMEOUT = 120.0
"""Seconds to wait for ``agent_runner doctor``, which itself waits up to 60 s for the CLI's first start."""


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """The environment, the kind of sandbox and the E2B template that the checks are for."""

    environ: Mapping[str, str]
    kind: Kind
    template: str


class Check(Protocol):
    """A function that checks one part and yields its findings."""

    __name__: str

    def __call__(self, circumstances: Circumstances, /) -> Iterable[Finding]: ...


def diagnose(circumstances: Circumstances) -> Iterator[Finding]:
    """Run all checks and yield their findings; an exception in a check becomes a finding too."""
    for check in CHECKS:
        try:
            yield from check(circumstances)
        except Exception as error:  # a check may fail in any way
            yield Finding(check.__name__, False, f"{type(error).__name__}: {error}")


def check_host(circumstances: Circumstances) -> Iterator[Finding]:
    """Check the version of Python."""
    yield check_python()


def check_model(circumstances: Circumstances) -> Iterator[Finding]:
    """Check that there is a credential for the model; its name is shown, never its value."""
    names = [name for name in CREDENTIALS if circumstances.environ.get(name)]
    advice = "Set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN; `host_client demo` needs neither"
    yield Finding("Model credential", bool(names), f"{names[0]} is set" if names else "none is set", advice)


def check_e2b(circumstances: Circumstances) -> Iterator[Finding]:
    """Check that E2B answers, accepts the key and has the template."""
    if circumstances.kind != "e2b":
        yield Finding("E2B", None, "not asked for (--sandbox e2b, or set E2B_API_KEY)")
        return
    if not is_installed("e2b"):
        yield Finding("E2B", False, "its SDK is not installed", "pip install 'sandspan[client]'")
        return
    if not circumstances.environ.get("E2B_API_KEY"):
        yield Finding("E2B key", False, "E2B_API_KEY is not set", "Create one at https://e2b.dev/dashboard?tab=keys")
        return
    from host_client.sandbox.e2b import probe  # imports the SDK, which takes 0.5 s

    url = probe.api_url(circumstances.environ)
    try:
        run_until_signal(probe.ask_for_sandboxes(circumstances.environ))
    except (ConfigurationError, SandboxError) as error:
        yield _e2b_failure(error, url)
        return
    yield Finding("E2B key", True, f"accepted by {url}")
    yield _template(circumstances)


def _e2b_failure(error: ConfigurationError | SandboxError, url: str) -> Finding:
    if error.error_type == "authentication":
        return Finding("E2B key", False, f"{url} does not accept it", "Set E2B_API_KEY to a key of this E2B")
    if error.error_type in ("network", "timeout"):
        advice = "Check E2B_API_URL, E2B_DOMAIN, the proxy variables and the network"
        return Finding("E2B API", False, f"{url} does not answer: {error}", advice)
    return Finding("E2B API", False, f"{url}: {error}", "Try again later")


def _template(circumstances: Circumstances) -> Finding:
    from host_client.sandbox.e2b import probe  # imported by the check above already

    name = circumstances.template
    try:
        exists = run_until_signal(probe.template_exists(name, circumstances.environ))
    except (ConfigurationError, SandboxError) as error:
        return Finding("E2B template", False, f"{name}: {error}")
    advice = f"Build it: host_client template build --name {name.partition(':')[0]}"
    return Finding("E2B template", exists, f"{name} {'exists' if exists else 'does not exist'}", advice)


def check_e2b_cli(circumstances: Circumstances) -> Iterator[Finding]:
    """Report the version of the E2B CLI, as that decides how it builds a template; no CLI is needed."""
    path = shutil.which("e2b", path=circumstances.environ.get("PATH"))
    if path is None:
        yield Finding("E2B CLI", None, "not on PATH, and not needed: `host_client template build` works without it")
        return
    version = _e2b_cli_version(path, circumstances.environ)
    if version is None:
        yield Finding("E2B CLI", None, f"{path} reports no version; `host_client template build` works without it")
    elif version.startswith(("0.", "1.")):
        yield Finding("E2B CLI", True, f"{version}: builds from e2b.toml with `e2b template build`, and needs Docker")
    else:
        instead = f"`e2b template create {circumstances.template} -d template/e2b.Dockerfile` in a checkout"
        detail = f"{version}: refuses `e2b template build`; use `host_client template build`, or {instead}"
        yield Finding("E2B CLI", True, detail)


def _e2b_cli_version(path: str, environ: Mapping[str, str]) -> str | None:
    # Without this the CLI asks its registry for a newer version of itself.
    quiet = {**environ, "NO_UPDATE_NOTIFIER": "1"}
    try:
        done = subprocess.run(
            [path, "--version"],
            env=quiet,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CLI_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"\d+\.\d+\.\d+", done.stdout)
    return version.group() if version is not None else None


def check_local(circumstances: Circumstances) -> Iterator[Finding]:
    """Check that the runner and Claude's CLI work on this machine."""
    if circumstances.kind == "local":
        yield from (finding for finding in _runner_findings() if finding.name != "Python")  # check_host has reported it
        return
    installed = is_installed("claude_agent_sdk")
    detail = "possible" if installed else "claude-agent-sdk is not installed: pip install 'sandspan[local]'"
    yield Finding("Local sandbox", None, f"not asked for (--sandbox local); {detail}")


def _runner_findings() -> list[Finding]:
    """Return the findings of `agent_runner doctor` on this machine; raise `OSError` or `ValueError`."""
    command = [sys.executable, "-m", "agent_runner", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, timeout=RUNNER_TIMEOUT, check=False)
    try:
        return msgspec.json.decode(done.stdout, type=list[Finding])
    except msgspec.DecodeError:
        stderr = done.stderr.decode(errors="replace").strip()[-500:]
        raise ValueError(f"agent_runner doctor ended with exit code {done.returncode}: {stderr}") from None


def check_telemetry(circumstances: Circumstances) -> Iterator[Finding]:
    """Check the telemetry settings, and that each exporter accepts a span."""
    config, problems = telemetry_config(circumstances.environ)
    if not config.enabled:
        yield Finding("Telemetry", None, "off (OTEL_ENABLED, OTEL_SDK_DISABLED)")
        return
    for problem in problems:
        yield Finding("Telemetry setting", False, problem, "All settings: docs/OPENTELEMETRY_INTEGRATION.md")
    percent = f"{config.sampling.rate * 100:.6f}".rstrip("0").rstrip(".")  # never 1e-05
    share = f"{percent} % of the traces to {', '.join(config.exporters) or 'nowhere'}"
    yield Finding("Telemetry", True, f"{config.environment}, {share}")
    if circumstances.environ.get("LANGFUSE_SECRET_KEY") and "langfuse" not in config.exporters and not problems:
        yield Finding("Exporter langfuse", None, "its keys are set, but OTEL_EXPORTERS does not name langfuse")
    if not is_installed("opentelemetry.sdk"):
        yield Finding("OpenTelemetry", False, "its SDK is not installed", "pip install 'sandspan[client]'")
        return
    from host_client.telemetry.setup import probe  # imports OpenTelemetry, which takes 0.2 s

    yield from probe.examine(config)


CHECKS: tuple[Check, ...] = (check_host, check_model, check_e2b, check_e2b_cli, check_local, check_telemetry)

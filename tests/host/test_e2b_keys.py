"""The model's key for each way of passing it: the requests to E2B, and the agent's environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, run_agent
from host_client.errors import ConfigurationError
from host_client.sandbox.e2b import E2BOptions, E2BSandbox
from host_client.sandbox.e2b.keys import KEY_MODES, PLACEHOLDER, key_environment, model_host, network_options
from host_client.telemetry import telemetry_of
from tests.e2e.test_commands import ROOT
from tests.support.hosts import E2BLab, e2b_lab

KEY = "sk-ant-the-real-key-of-the-model"
SHOW = """
    model: scripted
    conversations:
      main:
        replies:
          - tools: [{name: Bash, input: {command: env}}]
          - text: Done.
"""


async def shown(lab: E2BLab, environ: Mapping[str, str], **options: Any) -> str:
    """Run an agent that prints its environment; return the output."""
    seen: list[p.AnyEvent] = []
    result = await run_agent(
        "go",
        AgentOptions(allowed_tools=("Bash",)),
        sandbox=E2BSandbox(E2BOptions(**options), environ=environ),
        environ=environ,
        on_event=seen.append,
    )
    assert result.error_type is None, result.error_message
    [output] = [event for event in seen if isinstance(event, p.ToolResult)]
    return str(output.data.content)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("variable", "header", "value"),
    [
        ("ANTHROPIC_API_KEY", "x-api-key", KEY),
        ("ANTHROPIC_AUTH_TOKEN", "authorization", f"Bearer {KEY}"),
        ("CLAUDE_CODE_OAUTH_TOKEN", "authorization", f"Bearer {KEY}"),
    ],
)
async def test_by_default_the_model_gets_the_key_and_the_agent_does_not(variable: str, header: str, value: str) -> None:
    with e2b_lab(SHOW) as lab:
        environ = {**lab.environ, variable: KEY}
        if variable != "ANTHROPIC_API_KEY":
            environ.pop("ANTHROPIC_API_KEY")
        found = await shown(lab, environ)
        asked = lab.model.requests
    assert KEY not in found
    assert "ANTHROPIC_BASE_URL=http://127.0.0.1:" in found
    assert lab.model.url not in found
    assert [request.headers[header] for request in asked] == [value] * len(asked)


def by_name(lab: E2BLab) -> dict[str, str]:
    """Return an environment with a host name in the model's URL, as E2B accepts no rules for an IP address."""
    return {
        **lab.environ,
        "ANTHROPIC_API_KEY": KEY,
        "ANTHROPIC_BASE_URL": lab.model.url.replace("127.0.0.1", "localhost"),
    }


@pytest.mark.anyio
async def test_with_e2bs_secrets_the_key_never_enters_and_the_proxy_is_told_to_add_it() -> None:
    with e2b_lab(SHOW) as lab:
        found = await shown(lab, by_name(lab), keys="e2b-secrets", secret_name="anthropic-prod")
        everything = b"".join(bytes(request.body) for request in lab.e2b.requests)
        network = lab.e2b.sandboxes[0].request["network"]
    assert KEY.encode() not in everything
    assert f"ANTHROPIC_API_KEY={PLACEHOLDER}" in found
    headers = {"x-api-key": "${e2b.secrets.anthropic-prod}"}
    assert network == {"rules": {"localhost": [{"transform": {"headers": headers}}]}}


@pytest.mark.anyio
async def test_with_e2bs_secrets_and_an_allow_list_all_but_the_list_and_the_model_is_denied() -> None:
    with e2b_lab(SHOW) as lab:
        await shown(lab, by_name(lab), keys="e2b-secrets", allow_out=("pypi.org",))
        network = lab.e2b.sandboxes[0].request["network"]
    assert (network["allowOut"], network["denyOut"]) == (["pypi.org", "localhost"], ["0.0.0.0/0"])
    assert list(network["rules"]) == ["localhost"]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_e2bs_secrets_are_refused_for_a_model_whose_host_is_an_address(host: str) -> None:
    environ = {"E2B_API_KEY": "e2b_x", "ANTHROPIC_BASE_URL": f"http://{host}:8080"}
    with pytest.raises(ConfigurationError, match=f"the address {host.strip('[]')}: .* or use --keys gateway"):
        E2BSandbox(E2BOptions(keys="e2b-secrets"), environ=environ)


@pytest.mark.anyio
async def test_the_plain_way_hands_the_key_to_the_agent() -> None:
    with e2b_lab(SHOW) as lab:
        found = await shown(lab, {**lab.environ, "ANTHROPIC_API_KEY": KEY}, keys="env")
    assert f"ANTHROPIC_API_KEY={KEY}" in found


@pytest.mark.anyio
async def test_backend_credentials_and_e2bs_own_key_never_enter() -> None:
    secrets = {
        "LANGFUSE_SECRET_KEY": "sk-lf-secret",
        "SIGNOZ_INGESTION_KEY": "signoz-secret",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=otlp-secret",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1/otlp-endpoint",
    }
    with e2b_lab(SHOW) as lab:
        found = await shown(lab, {**lab.environ, **secrets})
        sent = json.dumps([bytes(request.body).decode("latin-1") for request in lab.e2b.requests])
        own_key = lab.environ["E2B_API_KEY"]
        telemetry_of({**lab.environ, **secrets}).shutdown(0.1)  # otherwise it retries until the process ends
    for value in (*secrets.values(), own_key):
        assert value not in found
        assert value not in sent


def test_without_any_key_the_gateway_has_nothing_to_keep_and_says_so() -> None:
    with pytest.raises(ConfigurationError, match="set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN"):
        key_environment("gateway", {"PATH": "/bin"})


def test_an_allow_list_denies_all_else_and_keeps_the_models_host() -> None:
    assert network_options(("pypi.org", "10.0.0.0/8"), None, "api.anthropic.com") == {
        "allow_out": ["pypi.org", "10.0.0.0/8", "api.anthropic.com"],
        "deny_out": ["0.0.0.0/0"],
    }
    assert network_options((), None, "api.anthropic.com") is None


def test_the_models_host_is_that_of_its_base_url() -> None:
    assert model_host({}) == "api.anthropic.com"
    assert model_host({"ANTHROPIC_BASE_URL": "https://gateway.example:8443/v1"}) == "gateway.example"
    with pytest.raises(ConfigurationError, match="takes a URL"):
        model_host({"ANTHROPIC_BASE_URL": "nonsense"})


def test_the_placeholder_is_the_one_that_the_sdk_makes() -> None:
    from e2b import Secret

    options = network_options((), "my-key", "api.anthropic.com")
    assert options is not None
    [rule] = options["rules"]["api.anthropic.com"]
    assert rule["transform"]["headers"]["x-api-key"] == Secret.fill("my-key")


def test_every_way_is_documented() -> None:
    assert E2BOptions().keys == "gateway"
    for document in ("README.md", "docs/SECURITY.md"):
        text = (ROOT / document).read_text()
        assert [mode for mode in KEY_MODES if f"`--keys {mode}`" not in text] == [], document

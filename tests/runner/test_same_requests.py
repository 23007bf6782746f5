"""The CLI sends the same to Anthropic's API with and without the runner."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import pytest
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, PermissionResultAllow, ResultMessage

from agent_runner.contract import protocol
from tests.support.anthropic_api import AnthropicApi, anthropic_api
from tests.support.runs import MODEL, Lab, clean_environment

MakeLab = Callable[[str], Lab]

SCRIPT = """
    conversations:
      main:
        replies:
          - text: I look.
            tools: [{name: Bash, input: {command: echo one}}]
          - tools:
              - name: Agent
                input: {description: d, prompt: Help with it, subagent_type: general-purpose, run_in_background: false}
          - text: Done.
      helper:
        when: Help with it
        replies: [{tools: [{name: Bash, input: {command: echo two}}]}, {text: Helped.}]
"""

ALLOWED = ("--allowed-tools", "Bash")

VARYING = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # ids of sessions, requests and prompts
    r"|\ba[0-9a-f]{16}\b"  # ids of tasks
    r"|cch=[0-9a-f]+|(?<=Bash=)\d+|(?<=Agent=)\d+|duration_ms: \d+"
)
OF_THE_CONNECTION = {"host", "connection", "accept-encoding", "content-length", "authorization", "x-api-key"}


def requests_of(lab: Lab) -> list[Any]:
    """Return headers and body of the requests since the last call, without what differs between any two runs."""
    seen = [
        [
            {name: VARYING.sub("*", value) for name, value in each.headers.items() if name not in OF_THE_CONNECTION},
            json.loads(VARYING.sub("*", json.dumps(each.body))),
        ]
        for each in lab.model.requests
    ]
    lab.model.requests.clear()
    return seen


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Return where two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        a, b = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        return [each for key in sorted({*a, *b}) for each in differences(a.get(key), b.get(key), f"{path}.{key}")]
    if isinstance(one, list) and isinstance(other, list):
        pairs = zip_longest(cast("list[Any]", one), cast("list[Any]", other))
        return [each for n, (a, b) in enumerate(pairs) for each in differences(a, b, f"{path}[{n}]")]
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]


async def bare(lab: Lab, environment: dict[str, str]) -> None:
    """Run the script with the Claude Agent SDK alone."""

    async def allow(*_args: Any) -> PermissionResultAllow:
        return PermissionResultAllow()

    options = ClaudeAgentOptions(
        model=MODEL,
        cwd=lab.cwd,
        system_prompt={"type": "preset", "preset": "claude_code"},
        setting_sources=[],
        forward_subagent_text=True,  # with it, the CLI asks for more of a subagent's thinking
        can_use_tool=allow,  # with it, the CLI offers AskUserQuestion
        env=environment,
    )
    async with ClaudeSDKClient(options) as client:
        await client.query("go")
        async for message in client.receive_response():
            if isinstance(message, ResultMessage):
                assert not message.is_error, message


def environment_of(lab: Lab, api: AnthropicApi) -> dict[str, str]:
    return {
        **clean_environment(lab.home, CLAUDE_CONFIG_DIR=str(lab.home / "claude"), CLAUDE_CODE_DISABLE_AUTO_MEMORY="1"),
        **api.environment(),
    }


@pytest.mark.parametrize(
    ("gateway", "variable"),
    [("auto", "ANTHROPIC_API_KEY"), ("auto", "CLAUDE_CODE_OAUTH_TOKEN"), ("off", "ANTHROPIC_API_KEY")],
)
def test_the_requests_of_a_run_equal_those_of_the_sdk_alone(
    make_lab: MakeLab, tmp_path: Path, gateway: str, variable: str
) -> None:
    lab = make_lab(SCRIPT)
    with anthropic_api(tmp_path, lab.model.url) as api:
        # The gateway sets the first of these variables; the proxy here refuses other hosts.
        environ = {
            **environment_of(lab, api),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "",
            "ANTHROPIC_API_KEY": "",
            variable: "sk-ant-not-a-key",
        }
        asyncio.run(bare(lab, environ))
        expected = requests_of(lab)
        done = lab.run("--prompt", "go", "--gateway", gateway, *ALLOWED, env=environ)
    assert done.exit_code == 0, done.events
    assert len(expected) == 5
    assert differences(requests_of(lab), expected) == []


@pytest.mark.parametrize("trusted", ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"])
@pytest.mark.parametrize("proxy", ["HTTPS_PROXY", "https_proxy"])
def test_the_gateway_uses_the_proxy_and_the_certificates_of_the_cli(
    make_lab: MakeLab, tmp_path: Path, proxy: str, trusted: str
) -> None:
    lab = make_lab("conversations: {main: {replies: [{text: Hi.}]}}")
    with anthropic_api(tmp_path, lab.model.url, mutual=True) as api:
        certificate, key = api.client_certificate
        own = {"CLAUDE_CODE_CLIENT_CERT": str(certificate), "CLAUDE_CODE_CLIENT_KEY": str(key)}
        env = {proxy: api.url, trusted: str(api.authority), "ANTHROPIC_BASE_URL": "", **own}
        done = lab.run("--prompt", "go", env=env)
    assert done.exit_code == 0, done.events
    assert done.one(protocol.Result).data.result == "Hi."
    assert set(api.hosts) == {"api.anthropic.com:443"}


def test_a_run_that_cannot_reach_anthropic_starts_without_delay(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab("conversations: {main: {replies: []}}")
    with anthropic_api(tmp_path, lab.model.url) as api:
        # The authority is not trusted.
        env = {**environment_of(lab, api), "NODE_EXTRA_CA_CERTS": "", "CLAUDE_CODE_MAX_RETRIES": "0"}
        done = lab.run("--prompt", "go", env=env)
    assert done.exit_code == 1
    (error,) = done.of(protocol.Error)
    assert error.data.error_type == "network"
    # The gateway's own attempts; the CLI would ask Anthropic for its settings a dozen times.
    assert len(api.hosts) <= 4

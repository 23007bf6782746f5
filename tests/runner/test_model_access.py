"""The runner distinguishes model requests that cannot succeed from those that a retry may repair."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from agent_runner._model_access import PATIENCE_SECONDS, ModelAccess

pytestmark = pytest.mark.anyio
KEY = {"ANTHROPIC_API_KEY": "x"}
NO_HOST = ".".join(["a" * 60] * 5)
"""A name that is too long for DNS, which no resolver asks anybody for."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def closed() -> Iterator[int]:
    """Bind a port without listening, so that connections are refused and no other process can take it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


async def test_a_refused_connection_names_the_variable_to_check(closed: int) -> None:
    access = ModelAccess({**KEY, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{closed}/v1"})
    await access.look()
    assert access.problem == (
        f"the model cannot be reached: 127.0.0.1 refuses connections on port {closed}. Check ANTHROPIC_BASE_URL"
    )


@pytest.mark.parametrize("host", [NO_HOST, "a" * 64])
async def test_a_host_that_is_none_is_told(host: str) -> None:
    access = ModelAccess({**KEY, "ANTHROPIC_BASE_URL": f"https://{host}"})
    await access.look()
    assert access.problem == f"the model cannot be reached: there is no host {host[:100]}. Check ANTHROPIC_BASE_URL"


@pytest.mark.parametrize(
    ("scheme", "variable"),
    [("https", "HTTPS_PROXY"), ("https", "https_proxy"), ("http", "HTTP_PROXY"), ("http", "http_proxy")],
)
async def test_a_proxy_that_cannot_be_reached_is_named_in_the_models_place(
    closed: int, scheme: str, variable: str
) -> None:
    base = {"ANTHROPIC_BASE_URL": f"{scheme}://model.test"}
    access = ModelAccess({**KEY, **base, variable: f"http://user:secret@127.0.0.1:{closed}"})
    await access.look()
    assert access.problem is not None
    assert access.problem.endswith(f"127.0.0.1 refuses connections on port {closed}. Check {variable}")
    assert "secret" not in access.problem


@pytest.mark.parametrize("exempt", ["127.0.0.1", "*", "acme.com, 127.0.0.1"])
async def test_a_host_that_is_exempt_from_the_proxy_is_looked_at_itself(closed: int, exempt: str) -> None:
    base = {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{closed}", "HTTP_PROXY": "http://127.0.0.1:9"}
    access = ModelAccess({**KEY, **base, "NO_PROXY": exempt})
    await access.look()
    assert access.problem is not None and access.problem.endswith("Check ANTHROPIC_BASE_URL")


@pytest.mark.parametrize(
    "environ",
    [
        {"ANTHROPIC_BASE_URL": "http://127.0.0.1:port"},
        {"ANTHROPIC_BASE_URL": "127.0.0.1:9"},
        {"ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "CLAUDE_CODE_USE_BEDROCK": "1"},
    ],
)
async def test_a_model_that_is_elsewhere_or_nowhere_is_the_clis_to_judge(environ: dict[str, str]) -> None:
    access = ModelAccess({**KEY, **environ})
    await access.look()
    assert access.problem is None


async def test_only_what_lasts_is_hopeless_and_an_answer_ends_it(closed: int) -> None:
    clock = Clock()
    access = ModelAccess({**KEY, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{closed}"}, clock=clock)
    await access.look()
    assert (access.is_hopeless, access.verdict(None, 1)) == (False, None)
    clock.now = PATIENCE_SECONDS
    await access.look()
    verdict = access.verdict(None, 2)
    assert verdict is not None
    assert (verdict.failure, verdict.message) == (("network", False), access.problem)
    access.reached()
    await access.look()
    assert not access.is_hopeless


async def test_a_server_that_listens_is_no_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        access = ModelAccess({**KEY, "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{listening.getsockname()[1]}"})
        await access.look()
    assert access.problem is None


@pytest.mark.parametrize("status", [400, 429, 500, 502, 529, None])
async def test_what_may_succeed_is_left_to_the_cli(status: int | None) -> None:
    access = ModelAccess(KEY)
    assert [access.verdict(status, attempt) for attempt in range(1, 11)] == [None] * 10
    assert access.final_verdict(status, "API Error: no luck") is None


async def test_a_refused_key_is_given_up_after_a_login_could_be_renewed() -> None:
    access = ModelAccess(KEY)
    assert access.verdict(401, 1) is None
    verdict = access.verdict(401, 2)
    assert verdict is not None
    assert verdict.failure == ("authentication", False)
    assert "It is from ANTHROPIC_API_KEY" in verdict.message

"""The gateway computes the same costs as the CLI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, ResultMessage

from agent_runner._answers import ModelAnswer
from agent_runner.contract.prices import DEAREST, PRICES, cost, price_of
from host_client.scripted_model import ScriptedModel, parse_script
from tests.support.runs import clean_environment

USAGE = {
    "input_tokens": 60_000,
    "output_tokens": 1_000,
    "cache_read_input_tokens": 30_000,
    "cache_creation_input_tokens": 20_000,
}


@pytest.mark.anyio
async def test_the_prices_are_the_clis(tmp_path: Path) -> None:
    replies = [{"text": "Hi.", "usage": USAGE} for _ in PRICES]
    script = json.dumps({"conversations": {"main": {"replies": replies}}})
    told: dict[str, float] = {}
    with ScriptedModel(parse_script(script)) as model:
        options = ClaudeAgentOptions(
            setting_sources=[], cwd=tmp_path, env=clean_environment(tmp_path, model.url, CLAUDE_CODE_MAX_RETRIES="0")
        )
        async with ClaudeSDKClient(options) as client:
            for name in PRICES:
                await client.set_model(name)
                await client.query("go")
                async for message in client.receive_response():
                    if isinstance(message, ResultMessage):
                        told = {name: entry["costUSD"] for name, entry in (message.model_usage or {}).items()}
    assert told == pytest.approx({name: cost(name, USAGE) for name in PRICES})


@pytest.mark.parametrize("name", ["claude-opus-4-5-20251101", "claude-opus-4-5"])
def test_a_model_is_priced_by_the_longest_name_that_fits(name: str) -> None:
    assert price_of(name) == PRICES["claude-opus-4-5"] != PRICES["claude-opus-4"]


def test_an_unknown_model_is_taken_for_the_dearest() -> None:
    assert price_of("gpt-9") == DEAREST
    assert cost("gpt-9", USAGE) >= max(cost(name, USAGE) for name in PRICES)


@pytest.mark.parametrize(
    ("more", "factor"),
    [
        ({"inference_geo": "us"}, 1.1),
        ({"speed": "fast"}, 6.0),
        ({"cache_creation": {"ephemeral_1h_input_tokens": 20_000}}, (0.465 + 0.075) / 0.465),
        ({"server_tool_use": {"web_search_requests": 3}}, (0.465 + 0.03) / 0.465),
        ({"cache_creation": {"ephemeral_1h_input_tokens": -5}, "server_tool_use": "?", "output_tokens": 1_000}, 1.0),
    ],
)
def test_what_costs_more_is_counted_as_more(more: dict[str, object], factor: float) -> None:
    assert cost("claude-opus-4-5", {**USAGE, **more}) == pytest.approx(cost("claude-opus-4-5", USAGE) * factor)


def stream(*events: Mapping[str, object]) -> bytes:
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


START = {
    "type": "message_start",
    "message": {"model": "claude-opus-4-5", "usage": {"input_tokens": 1_000_000, "output_tokens": 1}},
}
DELTA = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 3_000_000}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 200_000}}


@pytest.mark.parametrize("size", [1, 7, 10_000_000])
def test_a_stream_is_counted_however_it_is_cut_into_chunks(size: int) -> None:
    data = stream(START, {"type": "ping"}, END, {"type": "message_stop"})
    answer = ModelAnswer("text/event-stream; charset=utf-8")
    for start in range(0, len(data), size):
        answer.feed(data[start : start + size])
    answer.end()
    assert answer.cost == pytest.approx(5 + 0.2 * 25)


def test_a_stream_that_breaks_off_is_counted_by_what_came() -> None:
    answer = ModelAnswer("text/event-stream")
    assert (answer.begun, answer.cost) == (False, 0)
    answer.feed(stream(START))
    assert answer.begun
    answer.feed(stream(DELTA))
    assert answer.cost == pytest.approx(5 + 25)  # a million tokens of three characters


def test_a_whole_message_is_counted_at_its_end() -> None:
    answer = ModelAnswer("application/json")
    message = {"type": "message", "model": "claude-opus-4-5", "usage": {"input_tokens": 1_000_000, "output_tokens": 0}}
    data = json.dumps(message).encode()
    answer.feed(data[:50])
    answer.feed(data[50:])
    assert answer.cost == 0
    answer.end()
    assert answer.cost == pytest.approx(5)


@pytest.mark.parametrize("data", [b"", b"<html>no luck</html>", b'{"type":"error","error":{}}', b"[1]", b"\xff"])
def test_an_answer_without_usage_costs_nothing(data: bytes) -> None:
    for kind in ("application/json", "text/event-stream"):
        answer = ModelAnswer(kind)
        answer.feed(b"data: " + data + b"\n")
        answer.end()
        assert answer.cost == 0

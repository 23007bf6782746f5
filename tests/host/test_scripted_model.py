"""The scripted model speaks the Messages API as the real one does, and never guesses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from host_client.scripted_model import Script, ScriptedModel, ScriptError, load_script, parse_script
from host_client.scripted_model._script import Usage

SCRIPT = """
model: claude-test
conversations:
  main:
    replies:
      - thinking: Hm.
        text: Hello there.
        chunk: 6
        tools: [{name: Bash, input: {command: ls}}]
        usage: {input_tokens: 3, output_tokens: 9, cache_read_input_tokens: 100}
        fail: [{status: 529, retry_after: 2}, {error: overloaded_error}, {cut: true}]
      - expect: fine
        otherwise: {text: Not fine.}
        text: Fine.
  sub:
    when: count them
    replies: [{text: Three.}]
"""

USER = {"role": "user", "content": "go"}


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    with ScriptedModel(parse_script(SCRIPT)) as model:
        yield model


def ask(model: ScriptedModel, *messages: dict[str, Any], stream: bool = True) -> httpx.Response:
    body = {"model": "m", "max_tokens": 1, "stream": stream, "messages": list(messages)}
    return httpx.post(f"{model.url}/v1/messages?beta=true", json=body, trust_env=False)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: ")]


def drain_failures(model: ScriptedModel) -> None:
    assert ask(model, USER).status_code == 529
    assert events(ask(model, USER))[-1]["error"]["type"] == "overloaded_error"
    with pytest.raises(httpx.RemoteProtocolError):
        ask(model, USER)


def test_failures_come_first_and_in_order(model: ScriptedModel) -> None:
    first = ask(model, USER)
    assert (first.status_code, first.headers["retry-after"]) == (529, "2")
    assert first.json()["error"]["type"] == "overloaded_error"
    assert events(ask(model, USER))[-1]["error"]["type"] == "overloaded_error"
    with pytest.raises(httpx.RemoteProtocolError):
        ask(model, USER)
    assert ask(model, USER).status_code == 200


def test_a_reply_streams_as_the_real_api_does(model: ScriptedModel) -> None:
    drain_failures(model)
    stream = events(ask(model, USER))
    assert [event["type"] for event in stream] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert stream[0]["message"]["usage"] == {
        "input_tokens": 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 100,
        "output_tokens": 1,
    }
    deltas = [event["delta"] for event in stream if event["type"] == "content_block_delta"]
    assert [delta["type"] for delta in deltas] == [
        "thinking_delta",
        "signature_delta",
        "text_delta",
        "text_delta",
        "input_json_delta",
        "input_json_delta",
    ]
    assert "".join(delta.get("partial_json", "") for delta in deltas) == '{"command": "ls"}'
    assert stream[-2]["delta"]["stop_reason"] == "tool_use"
    assert stream[-2]["usage"] == {"output_tokens": 9}


def test_without_stream_the_reply_is_one_message(model: ScriptedModel) -> None:
    drain_failures(model)
    message = ask(model, USER, stream=False).json()
    assert message["usage"]["output_tokens"] == 9
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
    assert message["content"][2]["input"] == {"command": "ls"}
    assert message["stop_reason"] == "tool_use"


def test_a_subagent_is_known_by_its_first_message(model: ScriptedModel) -> None:
    (text,) = (
        e["delta"]["text"]
        for e in events(ask(model, {"role": "user", "content": "count them all"}))
        if "delta" in e and "text" in e["delta"]
    )
    assert text == "Three."


@pytest.mark.parametrize(("answer", "said"), [("all fine", "Fine."), ("broken", "Not fine.")])
def test_a_reply_can_depend_on_what_a_tool_said(model: ScriptedModel, answer: str, said: str) -> None:
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": answer}]}
    message = ask(model, USER, {"role": "assistant", "content": "x"}, result, stream=False).json()
    assert message["content"] == [{"type": "text", "text": said}]


def test_an_unexpected_request_is_refused_and_kept(model: ScriptedModel) -> None:
    turns = [USER, {"role": "assistant", "content": "x"}] * 2
    response = ask(model, *turns, USER)
    assert response.status_code == 400
    assert "has 2 replies, but this is request 3" in response.json()["error"]["message"]
    assert len(model.unexpected) == 1


def test_the_base_url_is_alive_and_tokens_are_counted(model: ScriptedModel) -> None:
    assert httpx.head(model.url, trust_env=False).status_code == 200
    counted = httpx.post(f"{model.url}/v1/messages/count_tokens", json={"messages": []}, trust_env=False)
    assert counted.json()["input_tokens"] > 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("conversations: {main: {replies: [{txet: hi}]}}", "txet"),
        ("conversations: {main: {replies: [{fail: [{status: 500, cut: true}]}]}}", "exactly one"),
        ("conversations: [1, 2]", "conversations"),
        ("{unclosed", "not a valid script"),
    ],
)
def test_a_bad_script_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(ScriptError, match=told):
        parse_script(text)


def test_a_script_may_be_json_and_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text(json.dumps({"conversations": {"main": {"replies": [{"text": "hi"}]}}}))
    script = load_script(path)
    assert isinstance(script, Script)
    assert script.conversations["main"].replies[0].usage == Usage()
    with pytest.raises(ScriptError, match=r"nowhere\.yaml"):
        load_script(tmp_path / "nowhere.yaml")

"""The JSON of messages in spans: its parts, its limits, and what of it is readable."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_runner.contract.messages import (
    MAX_TEXTS,
    ContentSanitizer,
    read_messages,
    read_text,
    text_message,
    tool_definitions,
    with_texts,
)
from agent_runner.contract.sanitize import FULL_LENGTH, ToolSanitizer, full, preview

Json = dict[str, Any]
CALL = {"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "ls"}}
WHOLE = ContentSanitizer(full, ToolSanitizer(full, True), whole_requests=True)


def text(words: str) -> Json:
    return {"type": "text", "text": words}


def test_the_last_parts_of_a_long_conversation_are_kept() -> None:
    many = [{"role": "assistant", "content": [text(f"{number} " + "word " * 2000)]} for number in range(20)]
    written = WHOLE.input(many)
    assert len(written) < FULL_LENGTH + 1000
    kept = [message["parts"][0]["content"].split()[0] for message in json.loads(written)]
    assert kept == [str(number) for number in range(20 - len(kept), 20)]
    assert len(kept) > 3


def test_of_a_message_that_is_too_long_the_last_parts_are_kept() -> None:
    blocks = [text(f"{number} " + "word " * 2000) for number in range(20)]
    history = [{"role": "assistant", "content": content} for content in ("first", blocks)]
    (message,) = json.loads(WHOLE.input(history))
    kept = [part["content"].split()[0] for part in message["parts"]]
    assert kept == [str(number) for number in range(20 - len(kept), 20)]


def test_a_single_part_is_kept_however_long_it_is() -> None:
    (message,) = json.loads(
        WHOLE.input([{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "x" * 200_000}])
    )
    assert len(message["parts"][0]["content"]) == FULL_LENGTH


def test_a_conversation_of_many_small_calls_fits_and_its_texts_can_be_changed() -> None:
    history: list[Json] = []
    for number in range(1000):
        call: Json = {"type": "tool_use", "id": f"t{number}", "name": "Read", "input": {}}
        history.append({"role": "assistant", "content": [call]})
        history.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"t{number}"}]})
    written = ContentSanitizer(full, whole_requests=True).input(history)
    assert FULL_LENGTH - 1000 < len(written) <= FULL_LENGTH
    changed = with_texts(written, str.upper, str)
    assert changed is not None
    assert json.loads(changed)[-1]["parts"][0] == {"type": "tool_call_response", "id": "t999", "response": "[LEFT OUT]"}


def test_a_tool_of_the_api_is_called_by_the_server() -> None:
    search = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}}
    (part,) = json.loads(WHOLE.output([search], "stop"))[0]["parts"]
    assert part == {
        "type": "server_tool_call",
        "id": "s",
        "name": "web_search",
        "server_tool_call": {"type": "web_search"},
        "arguments": '{"query":"q"}',
    }


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}},
            {"type": "image", "mime_type": "image/png", "size": "5"},
        ),
        (
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "grün"}, "title": "t"},
            {"type": "document", "mime_type": "text/plain", "size": "5"},
        ),
        ({"type": "image", "source": {"type": "url", "url": "https://example.com"}}, {"type": "image"}),
        ({"type": "image", "source": "?"}, {"type": "image"}),
        ({"type": "video", "source": {"type": "base64", "data": "aGVsbG8="}}, {"type": "video"}),
    ],
)
def test_what_is_not_text_is_described_without_its_content(block: Json, part: Json) -> None:
    written = WHOLE.input([{"role": "user", "content": [text("See"), block]}])
    assert json.loads(written) == [{"role": "user", "parts": [{"type": "text", "content": "See"}, part]}]
    assert with_texts(written, str, str) == written


def test_reasoning_is_shown_with_whole_requests_only() -> None:
    blocks = [{"type": "thinking", "thinking": "Hm."}, text("Hi.")]
    shown = json.loads(WHOLE.output(blocks, "stop"))[0]["parts"]
    assert shown == [{"type": "reasoning", "content": "Hm."}, {"type": "text", "content": "Hi."}]
    assert json.loads(ContentSanitizer(preview).output(blocks, "stop"))[0]["parts"] == shown[1:]


def test_results_of_commands_are_left_out_and_those_of_mcp_tools_whole() -> None:
    names = {"a": "Bash", "b": "mcp__lab__add"}
    calls: list[Json] = [{"type": "tool_use", "id": key, "name": name, "input": {}} for key, name in names.items()]
    results = [{"type": "tool_result", "tool_use_id": key, "content": f"result {key}"} for key in names]
    history: list[Json] = [{"role": "assistant", "content": calls}, {"role": "user", "content": results}]
    shown = json.loads(ContentSanitizer(full, ToolSanitizer(full, False), whole_requests=True).input(history))
    assert [part["response"] for part in shown[1]["parts"]] == ["[left out]", '"result b"']
    assert shown[1]["role"] == "tool"
    without = json.loads(ContentSanitizer(full, whole_requests=True).input(history))
    assert [part["response"] for part in without[1]["parts"]] == ["[left out]"] * 2
    assert all("arguments" not in part for part in without[0]["parts"])


@pytest.mark.parametrize(
    ("value", "messages", "found"),
    [
        (text_message("user", "Go"), 1, "Go"),
        (WHOLE.output([text("One."), text("Two.")], "end_turn"), 1, "One.\nTwo."),
        (WHOLE.input([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]), 2, None),
        ("{", 0, None),
        ("[" * 100_000, 0, None),
        ("[]", 0, None),
        ("7", 0, None),
        ('[{"role":"user"}]', 0, None),
        ('[{"role":"user","parts":["a"]}]', 0, None),
        ('[{"role":1,"parts":[]}]', 0, None),
        ('[{"role":"user","parts":[]}]', 1, None),
    ],
)
def test_messages_are_read_from_any_value(value: str, messages: int, found: str | None) -> None:
    assert (len(read_messages(value)), read_text(value)) == (messages, found)


def test_texts_are_changed_and_words_of_the_form_are_not() -> None:
    history = [{"role": "user", "content": "secret"}]
    shown = json.loads(with_texts(WHOLE.input(history), str.upper, str) or "")
    assert shown == [{"role": "user", "parts": [{"type": "text", "content": "SECRET"}]}]
    words = json.loads(with_texts(WHOLE.input(history), str.upper, str.title) or "")
    assert words == [{"Role": "User", "Parts": [{"Type": "Text", "Content": "SECRET"}]}]


@pytest.mark.parametrize("value", ["", "{", "{}", "[]", "7", '"a"', "[7]", '[{"parts":[null]}]', "[" * 100_000])
def test_what_the_runner_does_not_write_is_not_changed_as_messages(value: str) -> None:
    assert with_texts(value, str.upper, str) is None


def test_names_in_arguments_are_content_and_not_words_of_the_form() -> None:
    part = {"type": "tool_call", "name": "mcp__a__b", "arguments": {"name": "jane", "id": ["x"]}}
    forged = json.dumps([{"role": "assistant", "parts": [part], "other": {"name": "jane"}}])
    shown = json.loads(with_texts(forged, str.upper, str) or "")
    assert shown[0]["parts"] == [{**part, "arguments": {"NAME": "JANE", "ID": ["X"]}}]
    assert shown[0]["other"] == {"NAME": "JANE"}


def test_a_function_is_called_for_so_many_texts_at_most() -> None:
    assert with_texts(json.dumps(["a"] * MAX_TEXTS), str.upper, str) is not None
    assert with_texts(json.dumps(["a"] * (MAX_TEXTS + 1)), str.upper, str) is None


def test_a_preview_of_an_answer_is_one_for_all_of_its_texts() -> None:
    blocks = [*(text("word " * 10) for _ in range(10)), CALL]
    texts, call = json.loads(ContentSanitizer(preview).output(blocks, "tool_use"))[0]["parts"]
    assert (len(texts["content"]), call["name"]) == (100, "Bash")


def test_an_answer_and_a_system_prompt_have_a_limit_too() -> None:
    blocks = [text("word " * 5000) for _ in range(20)]
    for written in (WHOLE.output(blocks, "stop"), WHOLE.instructions(blocks)):
        assert 20_000 < len(written) < FULL_LENGTH + 1000
    many = [{"name": f"mcp__server__tool_{number}"} for number in range(5000)]
    assert len(tool_definitions(many)) <= FULL_LENGTH + 10


def test_texts_of_others_than_user_and_model_are_excerpts_or_left_out() -> None:
    skill = "Base directory for this skill: /skills/a\n" + "line\n" * 500
    history = [
        {"role": "user", "content": [text("<system-reminder>\n" + "line\n" * 500), text(" Go \n")]},
        {"role": "assistant", "content": [text("An answer. " * 200)]},
        {"role": "user", "content": skill},
    ]
    for shows, reminder in ((True, 1000), (False, len("[left out]"))):
        content = ContentSanitizer(full, ToolSanitizer(full, shows), whole_requests=True, prompts={"Go"})
        parts = [part["content"] for message in json.loads(content.input(history)) for part in message["parts"]]
        assert [len(part) for part in parts] == [reminder, len(" Go \n"), 2200, reminder]


def test_the_git_status_in_a_system_prompt_is_an_excerpt_or_left_out() -> None:
    system = [text("You are Claude.\n"), text("Be brief.\ngitStatus: On branch main\n" + "M a\n" * 1000)]
    first, second = json.loads(WHOLE.instructions(system))
    assert first["content"] == "You are Claude.\n"
    assert second["content"].startswith("Be brief.\ngitStatus: ") and len(second["content"]) < 1050
    hidden = json.loads(ContentSanitizer(full, whole_requests=True).instructions(system))[1]
    assert hidden["content"] == "Be brief.\ngitStatus: [left out]"


@pytest.mark.parametrize("given", [None, 7, "x", ["x"], [7], [{}], [{"role": 1}], [{"content": 7}], [{"content": [7]}]])
def test_a_request_of_any_form_is_shown_as_far_as_it_is_one(given: object) -> None:
    for written in (WHOLE.input(given), WHOLE.instructions(given), tool_definitions(given)):
        assert isinstance(json.loads(written), list)


def test_tools_have_types_and_names() -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    bash: Json = {"name": "Bash", "description": "d", "input_schema": {}}
    assert json.loads(tool_definitions([bash, search])) == [
        {"type": "function", "name": "Bash"},
        {"type": "web_search_20250305", "name": "web_search"},
    ]

"""Prompts with images and documents: what of them reaches the model, events and spans, and which are refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent_runner.contract import protocol as p
from agent_runner.contract.attachments import (
    MAX_ATTACHMENTS,
    MAX_BYTES,
    MAX_NAME,
    MAX_TEXT_BYTES,
    AttachmentError,
    block_of,
    check,
    media_type_of,
    view_of,
)
from tests.support.attachments import PDF, PNG, document, image, pdf, png, sent_blocks, size_of
from tests.support.runs import CHAT, Finished, Lab, RunnerProcess

MakeLab = Callable[[str], Lab]

TWO = "conversations: {main: {replies: [{text: One.}, {text: Two.}]}}"
SECRET = "b3V0IG9mIHNpZ2h0"
"""A word in a document, which must be in no event and in no span."""


# -- the contract ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a\1\0", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (PDF, "application/pdf"),
        ("grün\n".encode(), "text/plain"),
        (b"RIFF\x10\0\0\0WAVEfmt \xff", None),
        (b"PK\3\4\0\0", None),
        ("grün".encode("latin-1"), None),
        (b"a\0b", None),
    ],
)
def test_the_content_of_a_file_tells_its_media_type(data: bytes, media_type: str | None) -> None:
    assert media_type_of(data) == media_type
    if media_type is None:
        with pytest.raises(AttachmentError, match=r"^the attachment 'x\.bin' is none of PNG, JPEG"):
            block_of(data, "x.bin")
    else:
        view = view_of(block_of(data, "x"))
        assert (view.media_type, view.size, view.name) == (media_type, len(data), "x")


def test_blocks_pass_through_a_command_unchanged() -> None:
    prompt = p.Prompt(text="go", content=(block_of(PNG, "a.png"), block_of(PDF, "b.pdf"), block_of(b"c")))
    assert p.decode_command(p.encode(prompt)) == prompt


def test_a_prompt_with_half_a_surrogate_pair_keeps_its_blocks() -> None:
    line = p.encode(p.Prompt(text="cut", content=(block_of(PNG, "a.png"),))).replace(b'"cut"', b'"cut \\ud83d"')
    command = p.decode_command(line)
    assert isinstance(command, p.Prompt)
    assert (command.text, command.content) == ("cut \ufffd", (block_of(PNG, "a.png"),))


def test_a_name_is_one_line_of_limited_length() -> None:
    title = block_of(b"text", "a\nb\udcff" + "c" * 1000).title
    assert title is not None and title.startswith("a b c") and len(title) == MAX_NAME


def text_block(text: str = "t", **more: Any) -> dict[str, Any]:
    return {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": text}, **more}


REFUSED = {
    "an unknown kind": ([{"type": "video"}], "Invalid value 'video' - at `$.content[0].type`"),
    "a text": ([{"type": "text", "text": "x"}], "Invalid value 'text' - at `$.content[0].type`"),
    "a URL": (
        [text_block(), {"type": "image", "source": {"type": "url", "url": "https://example.com"}}],
        "Invalid value 'url' - at `$.content[1].source.type`",
    ),
    "a file of the Files API": (
        [{"type": "document", "source": {"type": "file", "file_id": "f"}}],
        "Invalid value 'file' - at `$.content[0].source.type`",
    ),
    "another type of image": (
        [{"type": "image", "source": {"type": "base64", "media_type": "image/tiff", "data": ""}}],
        "Invalid enum value 'image/tiff' - at `$.content[0].source.media_type`",
    ),
    "no base64": (
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "?"}}],
        "Invalid base64 encoded string - at `$.content[0].source.data`",
    ),
    "data of another type": (
        [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}}],
        "the data of an attachment is not image/png - at `$.content[0].source`",
    ),
    "an empty text": ([text_block("")], "an attachment is empty - at `$.content[0].source`"),
    "a long title": (
        [text_block(title="x" * 201)],
        "Expected `str` of length <= 200 - at `$.content[0].title`",
    ),
    "too many": ([text_block()] * 21, "a prompt has at most 20 attachments, not 21"),
    "too large": (
        [msgspec.to_builtins(block_of(PDF + b"x" * (MAX_BYTES - len(PDF)))), text_block()],
        "the attachments of a prompt have at most 10,485,760 bytes together, not 10,485,761",
    ),
    "a text that is too large": (
        [text_block("x" * MAX_TEXT_BYTES), text_block()],
        "the texts attached to a prompt have at most 524,288 bytes together, not 524,289: put larger files into the"
        " sandbox and name them in the prompt",
    ),
}


@pytest.mark.parametrize(("content", "why"), REFUSED.values(), ids=REFUSED)
def test_a_prompt_with_other_content_is_no_command(content: list[Any], why: str) -> None:
    with pytest.raises(p.ProtocolError) as refused:
        p.decode_command(json.dumps({"type": "prompt", "text": "go", "content": content}).encode())
    assert str(refused.value) == why


def test_as_many_and_as_large_attachments_as_the_limits_allow_are_taken() -> None:
    check([block_of(PDF + b"x" * (MAX_BYTES // MAX_ATTACHMENTS - len(PDF)))] * MAX_ATTACHMENTS)
    check([block_of(b"x" * MAX_TEXT_BYTES)])


def test_prompts_that_wait_have_only_so_many_attachments(make_lab: MakeLab) -> None:
    """The runner keeps them in memory."""
    lab = make_lab("conversations: {main: {replies: [{tools: [{name: Bash, input: {command: touch made}}]}]}}")
    largest = block_of(PDF + b"x" * (MAX_BYTES - len(PDF)))
    runner = start(lab)
    runner.send(p.Prompt(text="look"))
    runner.until(p.ApprovalRequest)
    runner.send(*(p.Prompt(text=str(number), content=(largest,)) for number in range(8)), p.Stop())
    refused = [error.data.message for error in runner.finish().of(p.Error)]
    assert len(refused) == 2
    assert refused[0].startswith("a prompt was refused: those that wait have attachments of 62,914,560 bytes")


# -- with the CLI ---------------------------------------------------------------------------------


def start(lab: Lab, *args: str, setup: Callable[[Path], None] | None = None) -> RunnerProcess:
    """Start a runner whose CLI keeps its files in the lab."""
    if setup is not None:
        setup(lab.cwd)
    temporary = lab.root / "tmp"
    temporary.mkdir()
    return lab.start(*args, env={"CLAUDE_CODE_TMPDIR": str(temporary)})


def one_turn(lab: Lab, prompt: p.Prompt, *args: str, setup: Callable[[Path], None] | None = None) -> Finished:
    runner = start(lab, *args, setup=setup)
    runner.send(prompt)
    done = runner.finish()
    assert done.exit_code == 0, done.of(p.Error)
    return done


def test_images_and_documents_come_before_the_text_and_events_describe_them(make_lab: MakeLab) -> None:
    lab = make_lab(TWO)
    content = (block_of(PNG, "a.png"), block_of(PDF, "b.pdf"), block_of(SECRET.encode(), "c.txt"))
    done = one_turn(lab, p.Prompt(text="look", content=content))
    [request] = lab.model.requests
    assert sent_blocks(request.body) == [
        image(PNG),
        pdf(PDF, "b.pdf"),
        document(SECRET, "c.txt"),
        {"type": "text", "text": "look\n"},  # the CLI's line feed, as it names the image's file after it
    ]
    assert done.one(p.Start).data.takes_attachments
    about = done.one(p.TurnStart).data
    assert about.prompt_size == len("look")
    assert [(each.media_type, each.size, each.name) for each in about.attachments] == [
        ("image/png", len(PNG), "a.png"),
        ("application/pdf", len(PDF), "b.pdf"),
        ("text/plain", len(SECRET), "c.txt"),
    ]


def test_a_prompt_may_be_of_attachments_alone(make_lab: MakeLab) -> None:
    lab = make_lab(TWO)
    done = one_turn(lab, p.Prompt(text="", content=(block_of(PNG), block_of(b"text", "t"))))
    assert sent_blocks(lab.model.requests[0].body) == [image(PNG), document("text", "t")]
    assert done.one(p.TurnStart).data.prompt_size == 0
    [message] = json.loads(done.span("agent.execute").attributes["gen_ai.input.messages"])
    assert [part["type"] for part in message["parts"]] == ["image", "document"]


@pytest.mark.parametrize("content", ["none", "preview", "full"])
def test_spans_say_that_there_are_attachments_and_hold_none(make_lab: MakeLab, content: str) -> None:
    lab = make_lab(TWO)
    attached = (block_of(PNG, "secret-plan.png"), block_of(SECRET.encode(), "secret-plan.txt"))
    done = one_turn(lab, p.Prompt(text="look", content=attached), "--content", content)
    written = b"".join(line for line in done.lines if b'"type":"turn_start"' not in line) + repr(done.spans).encode()
    for secret in (SECRET.encode(), base64.b64encode(PNG)[:40], b"secret-plan"):
        assert secret not in written
    parts = [
        {"type": "image", "mime_type": "image/png", "size": str(len(PNG))},
        {"type": "document", "mime_type": "text/plain", "size": str(len(SECRET))},
    ]
    turn, chat = done.span("agent.execute").attributes, done.span(CHAT).attributes
    if content == "none":
        assert "gen_ai.input.messages" not in turn
    else:
        text = {"type": "text", "content": "look"}
        assert json.loads(turn["gen_ai.input.messages"]) == [{"role": "user", "parts": [*parts, text]}]
    if content == "full":
        [message] = json.loads(chat["gen_ai.input.messages"])
        others = [part for part in message["parts"] if part.get("content") != "[left out]"]
        assert others == [*parts, {"type": "text", "content": "look\n"}]
    else:
        assert "gen_ai.input.messages" not in chat


def test_the_cli_makes_a_large_image_smaller(make_lab: MakeLab) -> None:
    lab = make_lab(TWO)
    one_turn(lab, p.Prompt(text="look", content=(block_of(png(3000, 2500)),)))
    [sent, _] = sent_blocks(lab.model.requests[0].body)
    assert size_of(base64.b64decode(sent["source"]["data"])) == (2000, 1667)


def test_attachments_of_the_largest_size_reach_the_model(make_lab: MakeLab) -> None:
    lab = make_lab(TWO)
    largest = PDF + b"x" * (MAX_BYTES - len(PDF))
    one_turn(lab, p.Prompt(text="look", content=(block_of(largest, "a.pdf"),)))
    assert sent_blocks(lab.model.requests[0].body) == [pdf(largest, "a.pdf"), {"type": "text", "text": "look"}]


def test_an_image_that_the_model_refuses_does_not_stay_in_the_conversation(make_lab: MakeLab) -> None:
    refusal = "{status: 400, message: Could not process image}"
    lab = make_lab(f"conversations: {{main: {{replies: [{{fail: [{refusal}], text: One.}}, {{text: Two.}}]}}}}")
    runner = start(lab)
    runner.send(p.Prompt(text="look", content=(block_of(PNG[:40]),)), p.Prompt(text="again"))
    done = runner.finish()
    assert [result.data.result for result in done.of(p.Result)] == ["One.", "Two."]
    assert [json.dumps(request.body).count('"image"') for request in lab.model.requests] == [1, 0, 0]


def commands(cwd: Path) -> None:
    """Put a file and a slash command into the working directory."""
    (cwd / "note.txt").write_text("from the file")
    (cwd / ".claude" / "commands").mkdir(parents=True)
    (cwd / ".claude" / "commands" / "hello.md").write_text("Say hello to $ARGUMENTS")


def test_commands_and_files_in_the_text_are_read_beside_attachments(make_lab: MakeLab) -> None:
    lab = make_lab(TWO)
    attached = (block_of(b"attached", "a"),)
    runner = start(lab, "--setting-sources", "project", setup=commands)
    runner.send(p.Prompt(text="/hello bob", content=attached), p.Prompt(text="see @note.txt", content=attached))
    assert runner.finish().exit_code == 0
    command, file = (request.body for request in lab.model.requests)
    assert sent_blocks(command)[-2:] == [document("attached", "a"), {"type": "text", "text": "Say hello to bob"}]
    assert sent_blocks(file)[-2:] == [document("attached", "a"), {"type": "text", "text": "see @note.txt"}]
    assert "from the file" in json.dumps(file)


def test_verbatim_prompts_stay_as_they_are_beside_attachments(make_lab: MakeLab) -> None:
    lab = make_lab(TWO)
    prompt = p.Prompt(text="/hello @note.txt", content=(block_of(b"attached", "a"),))
    one_turn(lab, prompt, "--setting-sources", "project", "--verbatim-prompts", "on", setup=commands)
    body = lab.model.requests[0].body
    assert sent_blocks(body) == [document("attached", "a"), {"type": "text", "text": "/hello @note.txt"}]
    assert "from the file" not in json.dumps(body)


def test_a_refused_prompt_is_a_protocol_error_and_the_run_goes_on(make_lab: MakeLab) -> None:
    lab = make_lab(TWO)
    runner = start(lab, "--prompt", "first")
    refused: list[dict[str, Any]] = [
        {"type": "prompt", "text": "x", "content": content} for content, _ in REFUSED.values()
    ]
    runner.send_raw(b"".join(json.dumps(each).encode() + b"\n" for each in refused))
    runner.send(p.Prompt(text="second", content=(block_of(b"text", "t"),)))
    done = runner.finish()
    assert done.exit_code == 0
    assert [(error.data.error_type, error.data.message) for error in done.of(p.Error)] == [
        ("protocol", f"not a command: {why}") for _, why in REFUSED.values()
    ]
    assert [result.data.result for result in done.of(p.Result)] == ["One.", "Two."]

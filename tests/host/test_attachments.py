"""Prompts of a session have files and bytes as attachments, in each sandbox, also where its connection is lost."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent_runner.contract import protocol as p
from agent_runner.contract.attachments import MAX_BYTES
from host_client import AgentOptions, Attachment, LocalSandbox, Session, open_session, run_agent
from host_client.client.attachments import MAX_PROMPT_BYTES, read_prompt
from host_client.client.takeover import take_over
from host_client.errors import ConfigurationError
from host_client.telemetry import root_of
from tests.compat.recordings import load
from tests.compat.test_old_sandboxes import old_template
from tests.host.test_takeover import GATED, TWO_TURNS, gate_of, open_gate
from tests.support.attachments import PDF, PNG, document, image, pdf, sent_blocks
from tests.support.e2b import Answer, CutAtRandom, Reset, ResetAfter
from tests.support.hosts import e2b_lab, host_lab, numbered

pytestmark = pytest.mark.anyio

COMMAND = "POST /process.Process/SendInput"
LARGE = PDF + b"x" * (8 * 1024 * 1024 - len(PDF))


# -- local ----------------------------------------------------------------------------------------


async def test_files_and_bytes_are_sent_with_the_first_and_with_later_prompts(tmp_path: Path) -> None:
    (tmp_path / "plan.pdf").write_bytes(PDF)
    with host_lab(TWO_TURNS) as lab:
        async with open_session(
            "look", attachments=[tmp_path / "plan.pdf", PNG], environ=lab.environ, approvals="deny"
        ) as session:
            seen: list[p.AnyEvent] = []
            async for event in session:
                seen.append(event)
                if isinstance(event, p.Result) and event.data.turn == 1:
                    await session.send("again", attachments=[Attachment(data=b"words", name="notes.txt")])
                    await session.finish()
        first, second = lab.model.requests
    assert sent_blocks(first.body) == [pdf(PDF, "plan.pdf"), image(PNG), {"type": "text", "text": "look\n"}]
    assert sent_blocks(second.body) == [document("words", "notes.txt"), {"type": "text", "text": "again"}]
    names = [[each.name for each in event.data.attachments] for event in seen if isinstance(event, p.TurnStart)]
    assert names == [["plan.pdf", None], ["notes.txt"]]


async def test_attachments_need_no_text() -> None:
    with host_lab(TWO_TURNS) as lab:
        async with open_session(attachments=[PNG], environ=lab.environ, approvals="deny") as session:
            await session.finish()
            results = [event.data.result async for event in session if isinstance(event, p.Result)]
        assert sent_blocks(lab.model.requests[0].body) == [image(PNG)]
    assert results == ["First."]


async def test_the_clis_copy_of_an_image_is_removed_with_the_sandbox() -> None:
    with host_lab(TWO_TURNS) as lab:
        result = await run_agent("look", attachments=[PNG], environ=lab.environ)
        blocks = lab.model.requests[0].body["messages"][0]["content"]
    assert result.text == "First."
    [named] = [block["text"] for block in blocks if str(block.get("text")).startswith("[Image: source: ")]
    copy = Path(named.removeprefix("[Image: source: ").removesuffix("]"))
    assert copy.name == "1.png" and any(each.name.startswith("sandspan-") for each in copy.parents)
    with pytest.raises(FileNotFoundError):
        os.lstat(copy)


# -- what cannot be sent --------------------------------------------------------------------------


def bad_files(root: Path) -> dict[str, tuple[Any, str]]:
    """Make the files; return for each the argument and the message."""
    (root / "empty").touch()
    (root / "archive.zip").write_bytes(b"PK\3\4\0\0")
    os.mkfifo(root / "pipe")
    with (root / "large.pdf").open("wb") as file:
        file.write(PDF)
        file.truncate(64 * MAX_BYTES)
    takes = "attachments takes a list of paths, bytes or Attachment(data=…, name=…), such as [Path("
    return {
        "missing": ([root / "missing"], f"the attachment '{root}/missing' cannot be read: No such file or directory"),
        "a directory": ([root], f"the attachment '{root}' is a directory"),
        "a pipe": ([root / "pipe"], f"the attachment '{root}/pipe' is no regular file"),
        "unreadable": ([Path("/proc/self/mem")], "the attachment '/proc/self/mem' cannot be read: Input/output error"),
        "an impossible path": ([Path("a\0b")], "the attachment 'a\\x00b' cannot be read: embedded null byte"),
        "empty": ([root / "empty"], "the attachment 'empty' is empty"),
        "an unknown kind": ([PNG, root / "archive.zip"], "the attachment 'archive.zip' is none of PNG, JPEG, GIF,"),
        "too large": (
            [root / "large.pdf"],
            f"the attachment '{root}/large.pdf' is larger than 10,485,760 bytes, as much as all attachments",
        ),
        "too many": ([PNG] * 21, "a prompt has at most 20 attachments, not 21"),
        "a text": ("plan.pdf", takes),
        "a list of texts": (["plan.pdf"], takes),
        "bytes alone": (PNG, takes),
        "a wrong name": ([Attachment(data=PNG, name=Path("a"))], takes),  # pyright: ignore[reportArgumentType]
    }


async def test_attachments_that_cannot_be_sent_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with host_lab("conversations: {}") as lab:
        for name, (attachments, says) in bad_files(tmp_path).items():
            sandbox = LocalSandbox(keep=tmp_path / "kept")
            with pytest.raises(ConfigurationError) as refused:
                async with open_session("go", attachments=attachments, sandbox=sandbox, environ=lab.environ):
                    pass
            assert str(refused.value).startswith(says), name
    assert not (tmp_path / "kept").exists()


async def test_a_session_continues_after_attachments_that_cannot_be_sent(tmp_path: Path) -> None:
    with host_lab(TWO_TURNS) as lab:
        async with open_session(environ=lab.environ, approvals="deny") as session:
            for attachments, says in bad_files(tmp_path).values():
                with pytest.raises(ConfigurationError) as refused:
                    await session.send("go", attachments=attachments)
                assert str(refused.value).startswith(says)
            await session.send("go", attachments=[PNG])
            await session.finish()
            seen = [event async for event in session]
    assert [event.data.result for event in seen if isinstance(event, p.Result)] == ["First."]
    assert [event for event in seen if isinstance(event, p.Error)] == []


def test_a_prompt_must_fit_into_one_command() -> None:
    """Quotation marks in a text take two bytes each."""
    with pytest.raises(
        ConfigurationError, match=rf"^the prompt has 20,971,\d+ bytes as JSON, at most {MAX_PROMPT_BYTES:,} "
    ):
        read_prompt('"' * MAX_BYTES, [])


async def test_a_runner_that_is_too_old_for_attachments_ends_the_session(tmp_path: Path) -> None:
    with old_template(load("tools"), tmp_path) as lab:
        async with open_session("go", attachments=[PNG], sandbox=lab.sandbox(), environ=lab.environ) as session:
            async for _ in session:
                pass
    assert session.failure is not None and session.failure.error_type == "invalid_request"
    assert session.failure.message.startswith("the runner in this sandbox ignores attachments: it is older than this")


async def test_attachments_are_not_sent_to_a_runner_that_is_too_old(tmp_path: Path) -> None:
    with old_template(load("tools"), tmp_path) as lab:
        async with open_session("go", sandbox=lab.sandbox(), environ=lab.environ) as session:
            async for event in session:
                if isinstance(event, p.Start):
                    with pytest.raises(ConfigurationError, match="ignores attachments: it is older than this host"):
                        await session.send("look", attachments=[PNG])
                    break
    assert session.failure is None


# -- in E2B ---------------------------------------------------------------------------------------


async def until(session: Session, kind: type[p.ToolUse]) -> AsyncIterator[p.AnyEvent]:
    """Yield events up to the first of a type."""
    async for event in session:
        yield event
        if isinstance(event, kind):
            return


@pytest.mark.parametrize("fault", [Reset(), ResetAfter(), Answer(502)], ids=str)
async def test_a_large_attachment_whose_delivery_is_unsure_is_taken_once(fault: Reset | ResetAfter | Answer) -> None:
    with e2b_lab(TWO_TURNS) as lab:
        rule = lab.e2b.fail(COMMAND, fault, times=2)
        lab.e2b.fail("POST /process.Process/Start", CutAtRandom(7, 2_000))
        seen: list[p.AnyEvent] = []
        result = await run_agent(
            "look", attachments=[LARGE], sandbox=lab.sandbox(), environ=lab.environ, on_event=seen.append
        )
        [request] = lab.model.requests
    assert rule.met == 2
    assert (result.text, result.error_type) == ("First.", None)
    [attached, text] = sent_blocks(request.body)
    assert (attached["source"], text["text"]) == (pdf(LARGE, "")["source"], "look")
    assert numbered(seen) == list(range(1, len(numbered(seen)) + 1))
    assert [event for event in seen if isinstance(event, p.Error)] == []


async def test_an_attachment_that_two_hosts_send_is_taken_once() -> None:
    options, root = AgentOptions(allowed_tools=("Bash",)), root_of(None)
    again: dict[str, Any] = {"text": "look", "attachments": [LARGE], "command_id": "second"}
    with e2b_lab(GATED) as lab:
        gate = gate_of(lab)
        async with open_session("go", options, sandbox=lab.sandbox(), environ=lab.environ, root=root) as first:
            seen = [event async for event in until(first, p.ToolUse)][-1].seq
            await first.send(**again)
            where = first.whereabouts
            await first.abandon()
        assert where is not None and seen is not None
        async with take_over(
            where,
            options,
            session_id=first.id,
            root=root,
            seen_seq=seen,
            sandbox=lab.sandbox(),
            environ=lab.environ,
        ) as second:
            await second.send(**again)
            await second.finish()
            open_gate(gate)
            rest = [event async for event in second]
        bodies = [json.dumps(request.body) for request in lab.model.requests]
    assert [event.data.result for event in rest if isinstance(event, p.Result)] == ["First.", "Second."]
    assert [len(event.data.attachments) for event in rest if isinstance(event, p.TurnStart)] == [1]
    assert [body.count("application/pdf") for body in bodies] == [0, 0, 1]

"""The main scenarios of a run in E2B: the real SDK with a stand-in of E2B, which runs the real runner and CLI."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent_runner.contract import protocol as p
from host_client import AgentOptions, Session, open_session
from host_client.client.options import ApprovalPolicy
from host_client.client.session import Approver
from host_client.errors import NotWaitingError
from tests.host.test_e2b_sessions import until
from tests.runner.test_approvals import TOUCH
from tests.runner.test_input import ODD
from tests.runner.test_large_output import TEN_MB
from tests.runner.test_mcp import ADD
from tests.runner.test_subagents import HELPER
from tests.runner.test_turns import THREE
from tests.support.e2b import random_chunks
from tests.support.hosts import e2b_lab, numbered, views
from tests.support.remote import run_remotely, trace_of
from tests.support.runs import CHAT, MODEL, SUBAGENT, is_gone, read_events, tree

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
LAB_SERVER = {"lab": "tests.runner.mcp_servers:lab"}
IMPORTABLE = {"PYTHONPATH": str(ROOT)}
"""Variables by which the runner can import the tests' modules; it is started with -P in the directory /."""


def replies(*each: dict[str, Any], **others: list[dict[str, Any]]) -> str:
    """Return a script with the agent's replies, and by name those of its subagents."""
    helpers = {name: {"when": f"Do {name}", "replies": said} for name, said in others.items()}
    return json.dumps({"conversations": {"main": {"replies": each}, **helpers}})


def bash(*commands: str) -> dict[str, Any]:
    return {"tools": [{"name": "Bash", "input": {"command": command}} for command in commands]}


def agents(*names: str) -> dict[str, Any]:
    about = {"description": "d", "subagent_type": "general-purpose", "run_in_background": False}
    return {"tools": [{"name": "Agent", "input": {**about, "prompt": f"Do {name}"}} for name in names]}


def helper(name: str) -> list[dict[str, Any]]:
    return [bash(f"sleep 0.3 && echo {name}"), {"text": f"{name} is done"}]


DONE = {"text": "Done."}


async def _deny(request: p.ApprovalRequest) -> p.Approval:
    return p.Approval(approval_id=request.data.approval_id, decision="deny", message="not on a Friday")


async def _edit(request: p.ApprovalRequest) -> p.Approval:
    assert request.data.input == {"command": "touch made"}
    key = request.data.approval_id
    return p.Approval(approval_id=key, decision="allow", updated_input={"command": "touch edited"})


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A run that succeeds: the model's script, and the expected turn's spans, tool outputs and files."""

    script: str
    turn: list[Any]
    outputs: list[str]
    """Parts of the tool results, in any order."""
    at_once: str = ""
    """Name of the spans that must all overlap."""
    decisions: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    options: AgentOptions | None = None
    approvals: ApprovalPolicy | Approver = "ask"


def text_of(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def asked(tool: str, approval: str = "agent.approval") -> list[Any]:
    return ["agent.execute", [CHAT], [tool, [approval]], [CHAT]]


SCENARIOS = {
    "parallel tools": Scenario(
        script=replies(bash(*(f"sleep 0.4 && echo {word}" for word in ("one", "three", "two"))), DONE),
        turn=["agent.execute", [CHAT], *[["execute_tool Bash"]] * 3, [CHAT]],
        outputs=["one", "three", "two"],
        at_once="execute_tool Bash",
    ),
    "a failing tool": Scenario(
        script=replies(bash("echo oops >&2; exit 3"), {**DONE, "expect": "Exit code 3"}),
        turn=["agent.execute", [CHAT], ["execute_tool Bash !tool_error"], [CHAT]],
        outputs=["Exit code 3"],
        options=AgentOptions(allowed_tools=("Bash",)),
    ),
    "a denied tool": Scenario(
        script=replies(bash("touch made"), {**DONE, "expect": "not on a Friday"}),
        turn=asked("execute_tool Bash !permission_denied"),
        outputs=["not on a Friday"],
        decisions=("deny",),
        approvals=_deny,
    ),
    "an edited input": Scenario(
        script=TOUCH,
        turn=asked("execute_tool Bash"),
        outputs=[""],
        decisions=("allow_edited",),
        files=("edited",),
        approvals=_edit,
    ),
    "an approval that nobody gives": Scenario(
        script=TOUCH,
        turn=asked("execute_tool Bash !approval_timeout", "agent.approval !approval_timeout"),
        outputs=["Nobody answered in time"],
        decisions=("timeout",),
        options=AgentOptions(approval_timeout=0.2),
    ),
    "an in-process MCP tool": Scenario(
        script=ADD,
        turn=[
            "agent.execute",
            [CHAT],
            ["execute_tool mcp__lab__add"],
            ["execute_tool mcp__lab__fail !tool_error"],
            [CHAT],
        ],
        outputs=["5", "no such thing"],
        options=AgentOptions(mcp_servers=LAB_SERVER, env=IMPORTABLE, allowed_tools=("mcp__lab__add", "mcp__lab__fail")),
    ),
}


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_turn_ends_well_and_its_calls_are_told_as_they_were(name: str) -> None:
    scenario = SCENARIOS[name]
    with e2b_lab(scenario.script) as lab:
        done = await run_remotely(lab, options=scenario.options, approvals=scenario.approvals)
        files = tuple(path.name for path in lab.work.iterdir())
    assert done.tree == trace_of(scenario.turn)
    assert (done.result.error_type, done.exit_code) == (None, 0)
    outputs = [text_of(result.data.content) for result in done.of(p.ToolResult)]
    assert len(outputs) == len(scenario.outputs)
    for part in scenario.outputs:
        assert any(part in output for output in outputs), part
    assert tuple(each.data.decision for each in done.of(p.ApprovalResolved)) == scenario.decisions
    assert files == scenario.files
    together = [span for span in done.spans if span.name == scenario.at_once]
    assert max((span.start for span in together), default=0) <= min((span.end for span in together), default=0)


async def test_two_subagents_work_at_once_and_the_calls_of_each_are_below_its_own_call() -> None:
    script = replies(agents("alpha", "beta"), DONE, alpha=helper("alpha"), beta=helper("beta"))
    with e2b_lab(script) as lab:
        done = await run_remotely(lab)
    assert done.tree == trace_of(["agent.execute", [CHAT], HELPER, HELPER, [CHAT]])
    assert (done.result.error_type, done.exit_code) == (None, 0)
    outputs = sorted(text_of(result.data.content) for result in done.of(p.ToolResult))
    assert len(outputs) == 4
    for part in ("alpha", "alpha is done", "beta", "beta is done"):
        assert any(part in output for output in outputs), part
    assert done.of(p.ApprovalResolved) == []
    together = [span for span in done.spans if span.name == "execute_tool Agent"]
    assert max(span.start for span in together) <= min(span.end for span in together)
    outer = {use.data.id: use for use in done.of(p.ToolUse) if use.data.name == "Agent"}
    spans = {span.attributes.get("gen_ai.tool.call.id"): span for span in done.spans}
    inner = [use.data for use in done.of(p.ToolUse) if use.data.name == "Bash"]
    assert {use.parent_tool_use_id for use in inner} == set(outer)
    for use in inner:
        parent = outer[use.parent_tool_use_id or ""].data
        assert use.input["command"].split()[-1] == parent.input["prompt"].split()[-1]
        (subagent,) = [span for span in done.spans if span.span_id == spans[use.id].parent_span_id]
        assert (subagent.name, subagent.parent_span_id) == ("invoke_agent general-purpose", spans[parent.id].span_id)


async def test_the_wait_for_a_person_and_the_execution_are_told_apart() -> None:
    thought: list[float] = []
    resolved_at: list[float] = []

    async def think(session: Session, event: p.AnyEvent) -> None:
        if isinstance(event, p.ApprovalRequest):
            began = time.monotonic()
            await asyncio.sleep(0.5)  # a person thinks for half a second
            thought.append((time.monotonic() - began) * 1000)
            await session.approve(event.data.approval_id)
        if isinstance(event, p.ApprovalResolved):
            resolved_at.append(time.time())

    with e2b_lab(TOUCH.replace("touch made", "touch made && sleep 0.3")) as lab:
        done = await run_remotely(lab, react=think)
    assert done.tree == trace_of(asked("execute_tool Bash"))
    tool, wait = done.span("execute_tool Bash"), done.span("agent.approval")
    resolved = done.one(p.ApprovalResolved).data
    # At least the person's time, and at most the time until the host received the decision.
    most_ms = (resolved_at[0] - done.one(p.ApprovalRequest).ts) * 1000
    assert 500 <= thought[0] <= resolved.wait_ms <= most_ms + 1
    assert wait.ms == pytest.approx(resolved.wait_ms, abs=0.01)
    assert tool.attributes["tool.approval_wait_ms"] == resolved.wait_ms
    assert 300 <= tool.attributes["tool.execution_ms"] <= (tool.end - wait.end) / 1e6


async def test_two_approvals_at_once_are_answered_in_reverse_order_and_each_once() -> None:
    waiting: list[p.ApprovalRequest] = []

    async def answer(session: Session, event: p.AnyEvent) -> None:
        if isinstance(event, p.ApprovalRequest):
            waiting.append(event)
        if not (isinstance(event, p.ApprovalRequest) and len(waiting) == 2):
            return
        first, second = (request.data.approval_id for request in waiting)
        assert set(session.waiting) == {first, second}
        await session.deny(second)
        await session.approve(first)
        for unknown in (first, second, "guessed"):
            with pytest.raises(NotWaitingError):
                await session.approve(unknown)

    alpha, beta = ([bash(f"touch {name}"), {"text": f"{name} is settled"}] for name in ("alpha", "beta"))
    with e2b_lab(replies(agents("alpha", "beta"), DONE, alpha=alpha, beta=beta)) as lab:
        done = await run_remotely(lab, react=answer)
        made = [path.name for path in lab.work.iterdir()]
    first, second = (request.data for request in waiting)
    decided = [(each.data.approval_id, each.data.decision) for each in done.of(p.ApprovalResolved)]
    assert decided == [(second.approval_id, "deny"), (first.approval_id, "allow")]
    assert [f"touch {name}" for name in made] == [first.input["command"]]

    def agent(call: str) -> list[Any]:
        return ["execute_tool Agent", [SUBAGENT, [CHAT], [call, ["agent.approval"]], [CHAT]]]

    both = [agent("execute_tool Bash"), agent("execute_tool Bash !permission_denied")]
    trees = [trace_of(["agent.execute", [CHAT], *order, [CHAT]]) for order in (both, both[::-1])]
    assert done.tree in trees
    assert (done.result.error_type, done.exit_code) == (None, 0)


async def test_a_question_of_the_agent_is_answered_by_the_person() -> None:
    options = [{"label": "Red", "description": "warm"}, {"label": "Blue", "description": "cold"}]
    question = {"question": "Which colour?", "header": "Colour", "multiSelect": False, "options": options}
    ask = {"tools": [{"name": "AskUserQuestion", "input": {"questions": [question]}}]}

    async def answer(session: Session, event: p.AnyEvent) -> None:
        if isinstance(event, p.QuestionRequest):
            await session.answer(event.data.question_id, {"Which colour?": "Blue"}, decided_by="ann")
            with pytest.raises(NotWaitingError):
                await session.answer(event.data.question_id, {"Which colour?": "Red"})

    with e2b_lab(replies(ask, {"text": "Blue it is.", "expect": "Blue"})) as lab:
        done = await run_remotely(lab, react=answer)
    assert done.tree == trace_of(asked("execute_tool AskUserQuestion"))
    resolved = done.one(p.QuestionResolved).data
    assert (resolved.answers, resolved.decision, resolved.decided_by) == ({"Which colour?": "Blue"}, "answered", "ann")
    assert (done.result.text, done.result.error_type, done.exit_code) == ("Blue it is.", None, 0)


async def test_three_turns_are_one_conversation_and_one_trace() -> None:
    with e2b_lab(THREE) as lab:
        done = await run_remotely(lab, "first", "second", "thírd")
        last = lab.model.requests[-1].body["messages"]
    assert done.tree == trace_of(*[["agent.execute", [CHAT]]] * 3)
    assert done.types == ["start", *["turn_start", "text", "result"] * 3, "end"]
    assert [result.data.result for result in done.of(p.Result)] == ["One.", "Two.", "Three."]
    assert [turn.data.prompt_size for turn in done.of(p.TurnStart)] == [5, 6, 6]
    assert [message["role"] for message in last] == ["user", "assistant"] * 2 + ["user"]
    assert done.result.cost_usd == pytest.approx(done.of(p.Result)[-1].data.total_cost_usd)
    assert {span.trace_id for span in done.spans} == {done.result.trace_id}
    assert done.exit_code == 0


async def test_ten_megabytes_of_output_are_cut_and_their_size_is_told() -> None:
    command = f"head -c {TEN_MB} /dev/zero | tr '\\0' x"
    with e2b_lab(replies(bash(command), DONE)) as lab:
        done = await run_remotely(lab, options=AgentOptions(allowed_tools=("Bash",)))
        [journal] = lab.state.iterdir()
        assert journal.stat().st_size < 256 * 1024
    assert done.tree == trace_of(["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]])
    result = done.one(p.ToolResult).data
    assert (result.bytes, result.truncated, result.is_error) == (TEN_MB, True, False)
    assert done.span("execute_tool Bash").attributes["tool.output_size"] == TEN_MB
    assert done.exit_code == 0


async def test_odd_characters_pass_unchanged_through_a_stream_that_is_cut_anywhere() -> None:
    command = "printf 'x\\342\\200\\250y\\000z\\360\\237\\246\\200'"
    options = AgentOptions(
        mcp_servers=LAB_SERVER,
        env=IMPORTABLE,
        allowed_tools=("Bash", "mcp__lab__odd"),
        content="full",
        tool_content="full",
    )
    odd: dict[str, Any] = {"tools": [{"name": "mcp__lab__odd", "input": {}}]}
    with e2b_lab(replies({"text": ODD, **bash(command)}, odd, {"text": "lone \ud83e surrogate"})) as lab:
        lab.e2b.rechunk(random_chunks(11, 7))
        done = await run_remotely(lab, ODD + "\ud83e", options=options)
        prompt = json.dumps(lab.model.requests[0].body["messages"], ensure_ascii=False)
    tools = (["execute_tool Bash"], ["execute_tool mcp__lab__odd"])
    assert done.tree == trace_of(["agent.execute", [CHAT], tools[0], [CHAT], tools[1], [CHAT]])
    assert done.exit_code == 0
    assert "\u2028b\u2029c\x85d" in prompt
    assert "e\U0001f980f\ufffd" in prompt
    assert [text.data.text for text in done.of(p.Text)] == [ODD, "lone \ufffd surrogate"]
    assert done.of(p.ToolUse)[0].data.input == {"command": command}
    printed, given = (text_of(result.data.content) for result in done.of(p.ToolResult))
    assert (printed[:3], printed[-2:]) == ("x\u2028y", "z\U0001f980")
    assert given == "a\u2028b\0c\U0001f980d\ufffde"


async def test_a_reader_that_stalls_for_the_whole_run_then_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent goes on while the host's and the stream's buffers are full, and the journal has all events."""
    monkeypatch.setattr("host_client.client.mailbox.MAX_ITEMS", 4)
    monkeypatch.setattr("host_client.sandbox.e2b._process.MAX_CHUNKS", 4)
    long = "x" * 2_000_000
    calls = ({"text": long, "chunk": 100_000, **bash(f"echo {n}")} for n in range(8))
    with e2b_lab(replies(*calls, DONE)) as lab:
        async with open_session("go", AgentOptions(model=MODEL), sandbox=lab.sandbox(), environ=lab.environ) as session:
            await session.finish()
            runner = lab.e2b.sandboxes[0].processes[0]
            await until(lambda: is_gone(runner.pid))
            [journal] = lab.state.iterdir()
            kept = read_events(journal.read_bytes())
            assert isinstance(kept[-1], p.End)
            assert not session.ended.is_set()
            seen = [event async for event in session]
        commands = [process.command.args[-1] for process in lab.e2b.sandboxes[0].processes]
    assert [event for event in seen if event.seq is not None] == kept
    assert numbered(kept) == list(range(1, len(kept) + 1))
    assert any(" attach " in command for command in commands)
    turn = ["agent.execute", *[[CHAT], ["execute_tool Bash"]] * 8, [CHAT]]
    assert tree(views(session.trace.kept)) == trace_of(turn)
    assert session.exit_code == 0

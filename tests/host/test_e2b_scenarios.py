"""The core scenarios of an agent's run, in E2B: the real SDK against a stand-in, the real runner and CLI in it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent_runner import protocol as p
from host_client import AgentOptions, Session
from host_client.config import ApprovalPolicy
from host_client.errors import NotWaitingError
from host_client.session import Approver
from tests.runner.test_approvals import TOUCH
from tests.runner.test_input import ODD
from tests.runner.test_large_output import TEN_MB
from tests.runner.test_mcp import ADD
from tests.runner.test_subagents import HELPER
from tests.runner.test_turns import THREE
from tests.support.e2b import random_chunks
from tests.support.hosts import E2BLab, e2b_lab, numbered
from tests.support.remote import Reaction, Remote, run_remotely, trace_of
from tests.support.runs import CHAT

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
LAB_SERVER = {"lab": "tests.runner.mcp_servers:lab"}
IMPORTABLE = {"PYTHONPATH": str(ROOT)}
"""The runner is started with -P in /: the tests' own modules are found only where this names them."""


def replies(*each: dict[str, Any], **others: list[dict[str, Any]]) -> str:
    """Return a script: the agent's replies, and those to subagents by their prompt."""
    helpers = {name: {"when": f"Do {name}", "replies": said} for name, said in others.items()}
    return json.dumps({"conversations": {"main": {"replies": each}, **helpers}})


def bash(*commands: str) -> dict[str, Any]:
    return {"tools": [{"name": "Bash", "input": {"command": command}} for command in commands]}


def agents(*names: str) -> dict[str, Any]:
    about = {"description": "d", "subagent_type": "general-purpose", "run_in_background": False}
    return {"tools": [{"name": "Agent", "input": {**about, "prompt": f"Do {name}"}} for name in names]}


DONE = {"text": "Done."}


async def _deny(request: p.ApprovalRequest) -> p.Approval:
    return p.Approval(approval_id=request.data.approval_id, decision="deny", message="not on a Friday")


async def _edit(request: p.ApprovalRequest) -> p.Approval:
    assert request.data.input == {"command": "touch made"}
    key = request.data.approval_id
    return p.Approval(approval_id=key, decision="allow", updated_input={"command": "touch edited"})


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A run that ends well: what is asked of it, its turn's spans, what its tools said, the files it left."""

    script: str
    turn: list[Any]
    outputs: list[str]
    """A part of each tool result, sorted."""
    decisions: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    options: AgentOptions = AgentOptions()
    approvals: ApprovalPolicy | Approver = "ask"


def asked(tool: str, approval: str = "agent.approval") -> list[Any]:
    return ["agent.execute", [CHAT], [tool, [approval]], [CHAT]]


SCENARIOS = {
    "one tool": Scenario(
        script=replies(bash("echo hello"), DONE),
        turn=["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]],
        outputs=["hello"],
    ),
    "parallel tools": Scenario(
        script=replies(bash("echo one", "echo three", "echo two"), DONE),
        turn=["agent.execute", [CHAT], *[["execute_tool Bash"]] * 3, [CHAT]],
        outputs=["one", "three", "two"],
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
        options=AgentOptions(
            mcp_servers=LAB_SERVER, env=IMPORTABLE, allowed_tools=("mcp__lab__add", "mcp__lab__fail")
        ),
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
    outputs = sorted(str(result.data.content) for result in done.of(p.ToolResult))
    for output, part in zip(outputs, scenario.outputs, strict=True):
        assert part in output
    assert tuple(each.data.decision for each in done.of(p.ApprovalResolved)) == scenario.decisions
    assert files == scenario.files

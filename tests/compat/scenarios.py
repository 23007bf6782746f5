"""The scenarios of the recorded runs; together they contain every event of the contract and every end of a run."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from host_client import Session
from host_client import events as p
from tests.support.runs import MODEL, children, runner_below

React = Callable[[Session, p.AnyEvent], Awaitable[None]]

ASK = """
            - tools:
                - name: AskUserQuestion
                  input:
                    questions:
                      - question: Which colour?
                        header: Colour
                        multiSelect: false
                        options: [{label: Red, description: r}, {label: Blue, description: b}]
"""
SLEEP = """python3 -c 'import time; time.sleep(60)'"""
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
QUIET = {"PYTHONWARNINGS": "ignore"}
"""Variables that suppress warnings, which contain paths of the machine and appear in errors of a dead runner."""

ONE_RETRY = {**QUIET, "CLAUDE_CODE_MAX_RETRIES": "1"}


async def _finish(session: Session, event: p.AnyEvent) -> None:
    """Let the runner end after the first turn's result."""
    if isinstance(event, p.Result):
        await session.finish()


@dataclass(frozen=True)
class Scenario:
    """A run: the model's replies (YAML), options other than the model, and the caller's reactions to events."""

    replies: str
    react: React = _finish
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    others: str = ""
    """Further conversations of the script (YAML)."""

    @property
    def script(self) -> str:
        return f"model: {MODEL}\nconversations:\n  main:\n    replies:\n{self.replies}\n{self.others}"

    @property
    def given(self) -> dict[str, Any]:
        """Return the run's options as JSON."""
        return {"model": MODEL, "env": QUIET, **self.options}


async def _decide(session: Session, event: p.AnyEvent) -> None:
    """Allow the first call, edit the second, deny the third, remember the fourth; answer questions."""
    match event:
        case p.ApprovalRequest():
            key, command = event.data.approval_id, event.data.input.get("command", "")
            if "first" in command:
                await session.approve(key, decided_by="grace")
            elif "second" in command:
                await session.approve(key, updated_input={"command": "echo edited"}, decided_by="grace@example.com")
            elif "third" in command:
                await session.deny(key, "not on a Friday", decided_by="bob")
            else:
                await session.approve(key, remember=True)
        case p.QuestionRequest():
            await session.answer(event.data.question_id, {"Which colour?": "Blue"}, decided_by="ada")
        case p.Result():
            await session.finish()
        case _:
            pass


async def _interrupt(session: Session, event: p.AnyEvent) -> None:
    """Interrupt the tool of the first turn, and start another turn."""
    match event:
        case p.ToolUse():
            await session.interrupt()
        case p.Result() if event.data.turn == 1:
            await session.send("go on")
        case p.Result():
            await session.finish()
        case _:
            pass


async def _two_turns(session: Session, event: p.AnyEvent) -> None:
    if isinstance(event, p.Result):
        if event.data.turn == 1:
            await session.send("and now?", traceparent=CALLER, tracestate="vendor=x,other=y")
        else:
            await session.finish()


async def _stop(session: Session, event: p.AnyEvent) -> None:
    if isinstance(event, p.ToolUse):
        await session.stop()


async def _kill_runner(session: Session, event: p.AnyEvent) -> None:
    if isinstance(event, p.Telemetry):  # after the model request that called the tool
        os.kill(_started(session), signal.SIGKILL)


async def _kill_cli(session: Session, event: p.AnyEvent) -> None:
    if isinstance(event, p.Telemetry):
        for child in children(runner_below(_started(session))):
            os.kill(child, signal.SIGKILL)


def _started(session: Session) -> int:
    assert session.whereabouts is not None
    return int(session.whereabouts.process_id)


async def _after_background(session: Session, event: p.AnyEvent) -> None:
    """Finish after the turn that the CLI starts without a prompt."""
    if isinstance(event, p.Result) and event.data.turn == 2:
        await session.finish()


ADA = {"user_id": "ada", "tenant_id": "acme", "user_tier": "pro", "attributes": {"org": "acme", "region": "eu"}}

SCENARIOS: dict[str, Scenario] = {
    "tools": Scenario(
        """
            - thinking: Let me see.
              text: I will look at both.
              tools:
                - {name: Bash, input: {command: echo left > left && cat left}}
                - {name: Bash, input: {command: echo right}}
              usage: {input_tokens: 1200, output_tokens: 34, cache_read_input_tokens: 900}
            - tools: [{name: Bash, input: {command: "echo broken >&2; exit 3"}}]
            - tools: [{name: Write, input: {file_path: notes.txt, content: "ü 😀\\n"}}]
            - {text: "Done: ü 😀 <b>&amp;</b>", usage: {input_tokens: 300, output_tokens: 20}}
        """,
        options={
            **ADA,
            "allowed_tools": ["Bash", "Write"],
            "content": "full",
            "tool_content": "full",
            "system_prompt": "Be brief.",
        },
    ),
    "subagents": Scenario(
        """
            - text: I will delegate.
              tools:
                - name: Agent
                  input: {description: a, prompt: Count alpha, subagent_type: general-purpose, run_in_background: false}
                - name: Agent
                  input: {description: b, prompt: Count beta, subagent_type: general-purpose, run_in_background: false}
            - text: Both are done.
        """,
        options={**ADA, "allowed_tools": ["Bash"]},
        others="""
  alpha:
    when: Count alpha
    replies:
      - tools: [{name: Bash, input: {command: echo alpha}}]
        usage: {input_tokens: 5, cache_read_input_tokens: 7, output_tokens: 3}
      - text: alpha was counted
  beta:
    when: Count beta
    replies:
      - tools: [{name: Bash, input: {command: exit 1}}]
      - text: beta was not
""",
    ),
    "background": Scenario(
        """
            - tools:
                - name: Agent
                  input: {description: a, prompt: Count alpha, subagent_type: general-purpose}
            - text: It works on by itself.
            - text: It has ended.
        """,
        react=_after_background,
        others="""
  alpha:
    when: Count alpha
    replies:
      - {text: alpha was counted, delay: 1}
""",
    ),
    "decisions": Scenario(
        """
            - tools: [{name: Bash, input: {command: echo first > one}}]
            - tools: [{name: Bash, input: {command: echo second > two}}]
            - tools: [{name: Bash, input: {command: echo third > three}}]
            - tools: [{name: Bash, input: {command: echo fourth > four}}]
        """
        + ASK
        + "            - text: All is decided.\n",
        react=_decide,
        options=ADA,
    ),
    "expired": Scenario(
        """
            - tools: [{name: Bash, input: {command: echo never > never}}]
        """
        + ASK
        + "            - text: Nobody answered.\n",
        options={"user_id": "bob", "tenant_id": "bolt", "approval_timeout": 0.5},
    ),
    "interrupted": Scenario(
        f"""
            - tools: [{{name: Bash, input: {{command: "{SLEEP}"}}}}]
            - text: And on it goes.
        """,
        react=_interrupt,
        options={"allowed_tools": ["Bash"], "user_id": "bob"},
    ),
    "two_turns": Scenario(
        """
            - {text: First., usage: {input_tokens: 50, output_tokens: 5}}
            - {text: Second., usage: {input_tokens: 70, output_tokens: 7}}
        """,
        react=_two_turns,
        options={**ADA, "content": "none"},
    ),
    "retried": Scenario(
        """
            - {text: Now it works., fail: [{status: 529, retry_after: 0}]}
        """,
        options={"env": ONE_RETRY, "user_id": "bob"},
    ),
    "refused": Scenario(
        """
            - {text: Never., fail: [{status: 400, message: too odd, times: 9}]}
        """,
        options={"env": ONE_RETRY},
    ),
    "max_turns": Scenario(
        """
            - tools: [{name: Bash, input: {command: echo one}}]
            - tools: [{name: Bash, input: {command: echo two}}]
            - text: never
        """,
        options={"allowed_tools": ["Bash"], "max_turns": 1},
    ),
    "budget": Scenario(
        """
            - tools: [{name: Bash, input: {command: echo one}}]
              usage: {input_tokens: 100000, output_tokens: 1000}
            - text: never
        """,
        options={"allowed_tools": ["Bash"], "max_budget_usd": 0.01, **ADA},
    ),
    "unknown_conversation": Scenario(
        "            - text: never\n",
        options={"resume": "7b0f2c3e-0000-4000-8000-000000000000"},
    ),
    "misconfigured": Scenario(
        "            - text: never\n",
        options={"mcp_servers": {"lab": "no.such.module:server"}},
    ),
    "stopped": Scenario(
        f"""
            - tools: [{{name: Bash, input: {{command: "{SLEEP}"}}}}]
            - text: never
        """,
        react=_stop,
        options={"allowed_tools": ["Bash"]},
    ),
    "killed": Scenario(
        f"""
            - text: I begin.
              tools: [{{name: Bash, input: {{command: "{SLEEP}"}}}}]
              usage: {{input_tokens: 5000, output_tokens: 50}}
            - text: never
        """,
        react=_kill_runner,
        options={**ADA, "allowed_tools": ["Bash"]},
    ),
    "crashed": Scenario(
        f"""
            - tools: [{{name: Bash, input: {{command: "{SLEEP}"}}}}]
            - text: never
        """,
        react=_kill_cli,
        options={"allowed_tools": ["Bash"], "env": QUIET},
    ),
    "untraced": Scenario(
        """
            - tools: [{name: Bash, input: {command: echo one}}]
            - text: No span was made.
        """,
        options={"allowed_tools": ["Bash"], "env": {**QUIET, "OTEL_ENABLED": "false"}},
    ),
}

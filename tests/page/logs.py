"""Event logs of sessions for tests and screenshots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent_runner.contract import protocol as p
from agent_runner.contract.protocol import input_digest
from tests.support.page_server import Log

MODEL = "claude-sonnet-4-5"
RULE = {
    "type": "addRules",
    "rules": [{"toolName": "Bash", "ruleContent": "npm test:*"}],
    "behavior": "allow",
    "destination": "localSettings",
}


def begin(
    log: Log,
    prompt: str = "The checks of this program fail. Find out why and mend it.",
    sent_by: str = "ana",
    *,
    options: Sequence[str] = (),
    message: str | None = None,
) -> None:
    """Add a session's events up to its first turn."""
    log.say("prompt", turn_id="t1", text=prompt, sent_by=sent_by)
    log.say("sandbox", 1.4, sandbox_id="ik2p9x", kind="e2b", creation_ms=1380.0)
    log.add(
        p.StartData(
            session_id="c0ffee00-0000-4000-8000-000000000001",
            model=MODEL,
            tools=["Bash", "Read", "Edit", "Agent"],
            cwd="/home/user/shop",
            permission_mode="default",
            resumed=False,
            runner_version="0.1.0",
            sdk_options=list(options),
        ),
        0.6,
    )
    log.add(p.TurnStartData(turn=1, prompt_size=len(prompt), user_message_id=message))


def text(log: Log, words: str, *, message: str | None = None, parent: str | None = None, after: float = 1.6) -> int:
    return log.add(p.TextData(text=words, message_id=message, parent_tool_use_id=parent), after)


def call(
    log: Log, key: str, name: str, tool_input: dict[str, Any], *, parent: str | None = None, after: float = 0.2
) -> int:
    return log.add(p.ToolUseData(id=key, name=name, input=tool_input, parent_tool_use_id=parent), after)


def done(log: Log, key: str, content: Any = "", *, took: float = 0.4, failed: bool = False, **more: Any) -> int:
    size = len(str(content))
    data = p.ToolResultData(
        tool_use_id=key, content=content, is_error=failed, duration_ms=took * 1000, bytes=size, **more
    )
    return log.add(data, took)


def ask(
    log: Log,
    key: str,
    tool: str,
    name: str,
    tool_input: dict[str, Any],
    *,
    expires_in: float = 240,
    after: float = 0.1,
    **more: Any,
) -> int:
    """Add an approval request that expires ``expires_in`` seconds after it; return the event's number."""
    data = p.ApprovalRequestData(
        approval_id=key,
        tool_use_id=tool,
        tool_name=name,
        input=tool_input,
        input_sha256=input_digest(tool_input),
        expires_at=log.clock + after + expires_in,
        **more,
    )
    return log.add(data, after)


def resolve(log: Log, key: str, tool: str, decision: p.Decision, *, by: str | None = "ana", waited: float = 8.0) -> int:
    data = p.ApprovalResolvedData(
        approval_id=key, tool_use_id=tool, decision=decision, wait_ms=waited * 1000, decided_by=by
    )
    return log.add(data, waited)


def end_turn(log: Log, turn: int = 1, *, cost: float = 0.0312, total: float | None = None, **more: Any) -> int:
    fields: dict[str, Any] = {
        "result": "Done.",
        "is_error": False,
        "subtype": "success",
        "duration_ms": 42_300.0,
        "duration_api_ms": 21_000.0,
        "num_turns": 6,
        "usage": {},
        "model_usage": {},
        "session_id": "c0ffee00-0000-4000-8000-000000000001",
        **more,
    }
    return log.add(
        p.ResultData(turn=turn, cost_usd=cost, total_cost_usd=total if total is not None else cost, **fields), 0.4
    )


_ABOVE = 'def total(items):\n    """Return what the items cost together."""\n'
EDIT = {
    "file_path": "/home/user/shop/prices.py",
    "old_string": _ABOVE + "    return sum(price for price, quantity in items)\n",
    "new_string": _ABOVE + "    return sum(price * quantity for price, quantity in items)\n",
}
QUESTIONS: list[dict[str, Any]] = [
    {
        "question": "Which rounding should invoices use?",
        "header": "Rounding",
        "options": [
            {"label": "Half up", "description": "2.5 becomes 3. What most customers expect."},
            {"label": "Half even", "description": "2.5 becomes 2. No bias over many invoices."},
        ],
        "multiSelect": False,
    },
    {
        "question": "Which files may I change as well?",
        "header": "Files",
        "options": [
            {"label": "README.md", "description": ""},
            {"label": "check_prices.py", "description": "The checks"},
        ],
        "multiSelect": True,
    },
]


def work(log: Log) -> None:
    """Add a session with a subagent, a failure and an approved edit, up to a command that waits for approval."""
    begin(log)
    text(log, "I will read the program and its checks first.", message="m1")
    call(log, "r1", "Read", {"file_path": "prices.py"})
    call(log, "r2", "Read", {"file_path": "check_prices.py"}, after=0.05)
    done(log, "r1", "1\tdef total(items):\n2\t    return sum(price for price, quantity in items)", took=0.3)
    done(log, "r2", "1\tfrom prices import total", took=0.2)
    text(log, "Now I run the checks.", message="m2", after=1.9)
    call(log, "b1", "Bash", {"command": "python3 check_prices.py", "description": "Run the checks"})
    done(
        log,
        "b1",
        'Traceback:\n  File "check_prices.py", line 9\nAssertionError: 2 x 150 and 1 x 500 make 800, not 350',
        took=0.9,
        failed=True,
        error_type="tool_error",
    )
    log.add(p.ThinkingData(text="The sum leaves the quantity out. Who else calls total?", message_id="m3"), 2.2)
    text(
        log,
        "`total` leaves the quantity out. A helper will look for **other callers**:\n\n- in this folder\n- in checks",
        message="m3",
        after=0.8,
    )
    call(
        log,
        "a1",
        "Agent",
        {
            "description": "Find callers of total",
            "prompt": "Find every caller of total()",
            "subagent_type": "general-purpose",
        },
    )
    text(log, "I look for callers.", message="s1", parent="a1", after=1.4)
    call(log, "g1", "Bash", {"command": "grep -rn 'total(' --include=*.py ."}, parent="a1")
    done(log, "g1", "check_prices.py:7: total([(100, 1)])\ncheck_prices.py:9: total([])", took=0.3)
    text(log, "check_prices.py is the only caller: 2 calls.", message="s2", parent="a1", after=1.3)
    done(log, "a1", [{"type": "text", "text": "check_prices.py is the only caller: 2 calls."}], took=3.4)
    text(log, "Only the checks call it, so the change is safe.", message="m4", after=1.7)
    call(log, "e1", "Edit", EDIT)
    ask(log, "ap1", "e1", "Edit", EDIT, reason="Edit prices.py")
    resolve(log, "ap1", "e1", "allow", by="ben", waited=6.0)
    done(log, "e1", "The file prices.py has been updated.", took=0.1)

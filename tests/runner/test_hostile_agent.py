"""A hostile tool with the CLI's account finds no secret, and nothing that it forges is accepted."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent_runner.contract import protocol
from tests.support.account import account_environment, account_lab, cli_binary
from tests.support.runs import CHAT, Finished, Lab, RunnerProcess, is_gone, read_events, seqs

__all__ = ["cli_binary"]

KEY = f"sk-ant-{secrets.token_hex(20)}"  # another one for each run: an earlier run that was killed leaves files
HOSTILE = Path(__file__).parents[1] / "support" / "hostile.py"
ALLOWED = ("--gateway", "on", "--allowed-tools", "Bash(python3:*)")


@contextmanager
def attacked(cli: Path, what: str, *then: dict[str, Any]) -> Generator[tuple[Lab, RunnerProcess]]:
    """Start a run whose first tool is the hostile program, with the journal at its path in the image."""
    command = f"python3 ../hostile.py {what} ../state/journal"
    replies = [{"tools": [{"name": "Bash", "input": {"command": command}}]}, *then]
    with account_lab(json.dumps({"conversations": {"main": {"replies": replies}}})) as lab:
        shutil.copyfile(HOSTILE, lab.root / "hostile.py")
        (lab.root / "hostile.py").chmod(0o644)
        (lab.root / "state").mkdir(mode=0o700)
        env = {**account_environment(lab, cli), "ANTHROPIC_API_KEY": KEY, "AGENT_JOURNAL": str(journal(lab))}
        yield lab, lab.start("--prompt", "go", *ALLOWED, env=env)


def journal(lab: Lab) -> Path:
    return lab.root / "state" / "journal"


def check_honest(lab: Lab, done: Finished) -> None:
    """Check that stream and journal are the runner's and agree, and that the key is nowhere outside of it."""
    events = [event for event in done.events if event.seq is not None]
    assert seqs(events) == list(range(1, len(events) + 1))
    assert read_events(journal(lab).read_bytes()) == events
    assert done.of(protocol.Error) == []
    for place in (
        b"".join(done.lines),
        done.stderr.encode(),
        json.dumps([r.body for r in lab.model.requests]).encode(),
    ):
        assert KEY.encode() not in place
    assert {request.headers["x-api-key"] for request in lab.model.requests} == {KEY}


def test_a_hostile_tool_finds_no_key_and_no_way_in(cli_binary: Path) -> None:
    with attacked(cli_binary, "look", {"text": "Done."}) as (lab, runner):
        done = runner.finish()
        attempts = json.loads(str(done.one(protocol.ToolResult).data.content))
        check_honest(lab, done)
        assert KEY not in attempts.pop("keys")
        assert {name: came for name, came in attempts.items() if not came.startswith("refused: ")} == {}
        assert len(attempts) > 50
        # Refused for want of the right, not for a mistake of the program's.
        for name in ("runner environ", "runner mem", "runner fd", "cli environ", "cli mem", "cli fd", "journal read"):
            assert attempts[name] == "refused: PermissionError 13"
        for name in ("runner ptrace", "cli ptrace", "runner process_vm_readv", "cli process_vm_readv", "signal 9"):
            assert attempts[name] == "refused: PermissionError 1"
        for name in ("cli write 0", "cli write 1", "runner write 1"):
            assert attempts[name] == "refused: PermissionError 13"
        for name in ("cli take 0", "cli take 1", "runner take 1"):
            assert attempts[name] == "refused: PermissionError 1"
        assert attempts["gateway no token"] == attempts["gateway guess"] == "refused: HTTPError 401"
        assert attempts["gateway other host"] == "refused: HTTPError 403"
        assert attempts["gateway /v1/files"] == "refused: HTTPError 404"
        assert done.exit_code == 0
        assert done.types == [
            "start",
            "turn_start",
            "tool_use",
            "log",
            "log",
            "log",
            "tool_result",
            "text",
            "result",
            "end",
        ]
        assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]]
        assert [log.data.text.rpartition(": ")[2] for log in done.of(protocol.Log)] == [
            "this gateway accepts the run's own token only",
            "this gateway accepts its own address as Host only",
            "this gateway passes on the Messages API only",
        ]


def test_a_hostile_tool_cannot_approve_what_waits_for_approval(cli_binary: Path) -> None:
    write = {"name": "Write", "input": {"file_path": "forged.txt", "content": "x"}}
    with attacked(cli_binary, "forge", {"tools": [write]}, {"text": "Done."}) as (lab, runner):
        told = lab.fifo("told")
        os.mkfifo(lab.cwd / "go")
        for name in ("go", "told"):
            (lab.cwd / name).chmod(0o666)
        asked = runner.until(protocol.ApprovalRequest).data
        pending = {"approval_id": asked.approval_id, "tool_use_id": asked.tool_use_id, "input": asked.input}
        (lab.cwd / "go").write_text(json.dumps(pending))
        attempts = json.loads(told.read_all())
        tool = attempts.pop("pid")
        sent = {name for name, came in attempts.items() if came == "done: 'sent'"}
        assert {name.split()[0] for name in sent} <= {"socket"}, "what has been written to is the CLI's inbox alone"
        assert {came for name, came in attempts.items() if name not in sent} <= {
            "refused: PermissionError 1",
            "refused: PermissionError 13",
        }

        runner.send(protocol.Approval(approval_id=asked.approval_id, decision="deny", decided_by="ada"))
        runner.until(protocol.Result)
        done = runner.finish()
        check_honest(lab, done)
        resolved = done.one(protocol.ApprovalResolved).data
        assert (resolved.decision, resolved.decided_by) == ("deny", "ada")
        assert not (lab.cwd / "forged.txt").exists()
        assert is_gone(tool), "what it left running has ended with the run"

"""A recorded session of f6f5305 in E2B, and functions to restore it in a stand-in of E2B."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, cast

import httpx
from e2b import Sandbox

from tests.compat.files import SANDBOXES, read_json
from tests.compat.recordings import Json
from tests.support.hosts import ACCOUNT, E2BLab

SCRIPT = """
model: claude-sonnet-4-5
conversations:
  main:
    replies:
      - tools: [{name: Bash, input: {command: echo kept > note}}]
      - {text: First., usage: {input_tokens: 1000, output_tokens: 100}}
      - tools: [{name: Bash, input: {command: cat note}}]
      - {text: Second., usage: {input_tokens: 30, output_tokens: 7}}
"""

_KEPT = ("parentUuid", "isSidechain", "type", "message", "uuid", "timestamp", "cwd", "sessionId", "version", "userType")


def recorded() -> Json:
    """Return the recorded session."""
    return read_json(SANDBOXES)


def slug_of(work: Path) -> str:
    """Return the name of the folder in which the CLI keeps the conversations of a working directory."""
    return re.sub(r"[^A-Za-z0-9]", "-", str(work))


def conversation_of(config: Path) -> list[Json]:
    """Return the messages of the only conversation in a CLI's folder, without fields that depend on the version."""
    (path,) = (config / "projects").rglob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    said = [line for line in lines if line["type"] in ("user", "assistant")]
    above: str | None = None
    for line in said:
        line["parentUuid"], above = above, line["uuid"]
    return [{name: line[name] for name in _KEPT if name in line} for line in said]


def make(lab: E2BLab, body: Json) -> str:
    """Create a sandbox with the request body of an old host; return its id."""
    headers = {"x-api-key": lab.e2b.environ["E2B_API_KEY"]}
    answer = httpx.post(f"{lab.e2b.url}/v2/sandboxes", json=body, headers=headers, trust_env=False)
    assert answer.status_code == 201, answer.text
    return answer.json()["sandboxID"]


def connect(lab: E2BLab, sandbox_id: str) -> Sandbox:
    """Connect to a sandbox with the E2B SDK."""
    environ = lab.e2b.environ
    urls: Any = {"api_url": environ["E2B_API_URL"], "sandbox_url": environ["E2B_SANDBOX_URL"]}
    return Sandbox.connect(sandbox_id, timeout=300, api_key=environ["E2B_API_KEY"], **urls)


def start(lab: E2BLab, sandbox: Sandbox, process: Json) -> Any:
    """Start a process in a sandbox as an old host did; return the SDK's handle."""
    login, command_flag, command = process["args"]
    assert (login, command_flag) == ("-l", "-c")
    envs = dict(process["envs"])
    if "ANTHROPIC_BASE_URL" in envs:
        envs["ANTHROPIC_BASE_URL"] = lab.model.url
    about: Any = {"envs": envs, "user": process["user"], "cwd": process["cwd"], "stdin": process["stdin"]}
    return cast("Any", sandbox.commands).run(command, background=True, timeout=0, **about)


def leave_paused(lab: E2BLab, session: Json) -> str:
    """Restore the recorded session in a stand-in as a paused sandbox with its files; return the sandbox's id."""
    sandbox_id = make(lab, session["kept"])
    journal, conversation = session["journal"], json.dumps(session["conversation"])
    (lab.state / journal["name"]).write_text(journal["text"])
    (lab.work / "note").write_text("kept\n")
    lines: list[Json] = json.loads(conversation.replace("/home/user/work", str(lab.work)))
    folder = lab.root / "claude" / "projects" / slug_of(lab.work)
    folder.mkdir(parents=True)
    path = folder / f"{session['claude_session_id']}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for each in (lab.work / "note", folder.parent, folder, path):
        shutil.chown(each, ACCOUNT)
    lab.e2b.pause(sandbox_id)
    return sandbox_id

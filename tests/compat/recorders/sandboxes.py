"""Records what a host asks of E2B and of the template, what it notes there, and what a paused session leaves."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import msgspec

from host_client import AgentOptions, Whereabouts, open_session
from host_client import events as p
from host_client.telemetry import root_of
from tests.compat.files import SANDBOXES, write_json
from tests.compat.recordings import Json
from tests.compat.sandboxes import SCRIPT, conversation_of, slug_of
from tests.support.e2b import Process, Recorded
from tests.support.hosts import E2BLab, e2b_lab

OPTIONS = AgentOptions(user_id="ada", tenant_id="acme", allowed_tools=("Bash",), attributes={"org": "acme"})


def record() -> None:
    """Write it: a session that is paused, and the notes on one that is not to be kept."""
    with e2b_lab(SCRIPT) as lab:
        found = asyncio.run(_paused(lab))
        (journal,) = lab.state.iterdir()
        found |= {
            "processes": [_command(each) for each in lab.e2b.sandboxes[0].processes],
            "requests": [_line(each) for each in lab.e2b.requests],
            "journal": {"name": journal.name, "text": journal.read_text()},
            "conversation": conversation_of(lab.root / "claude"),
        }
        asyncio.run(_not_kept(lab))
        bodies = [request.json() for request in lab.e2b.requests if request.line == "POST /v2/sandboxes"]
        found["kept"], found["other"] = bodies
        text = _of_the_template(json.dumps(found, ensure_ascii=False), lab)
    write_json(SANDBOXES, json.loads(text))


async def _paused(lab: E2BLab) -> Json:
    """Do in one session all that a host asks of a sandbox, then let it be paused."""
    given = lab.root / "given"
    given.mkdir()
    (given / "given").write_text("from the host\n")
    sandbox = lab.sandbox(pause=True, metadata={"team": "blue"}, envs={"PLAIN": "yes"})
    whereabouts: Whereabouts | None = None
    root = root_of()
    opening = open_session("one", OPTIONS, sandbox=sandbox, environ=lab.environ, root=root, upload=given)
    async with opening as session:
        await session.finish()
        async for event in session:
            whereabouts = session.whereabouts or whereabouts
            if isinstance(event, p.ToolResult):
                assert await session.read_file("note", 100) == b"kept\n"
                lab.e2b.cut_streams()
        await session.download(lab.root / "down")
    return {
        "session_id": session.id,
        "claude_session_id": session.claude_session_id,
        "root": msgspec.to_builtins(root),
        "whereabouts": msgspec.to_builtins(whereabouts),
    }


async def _not_kept(lab: E2BLab) -> None:
    async with open_session("one", OPTIONS, sandbox=lab.sandbox(), environ=lab.environ) as session:
        await session.finish()
        async for _ in session:
            pass


def _command(process: Process) -> Json:
    command = process.command
    return {
        "args": list(command.args),
        "user": command.account.name,
        "stdin": command.stdin,
        "cwd": str(command.cwd),
        "envs": dict(command.envs),
        "received": bytes(process.received).decode(),
    }


def _line(request: Recorded) -> str:
    return re.sub(r"i[0-9a-f]{20}", "SANDBOX", f"{request.line}?{request.query}".rstrip("?"))


def _of_the_template(text: str, lab: E2BLab) -> str:
    """Say it as the host did, in the template's paths and accounts and those of no machine."""
    slug = slug_of(lab.work)
    for here, there in {
        str(lab.work): "/home/user/work",
        str(lab.state): "/var/lib/sandspan",
        sys.executable: "/opt/sandspan/bin/python",
        sys.prefix: "/opt/sandspan",
        str(Path(__file__).resolve().parents[3]): "/opt/sandspan/src",
        "u=nobody;": "u=user;",
        '"AGENT_USER": "nobody"': '"AGENT_USER": "user"',
        lab.model.url: "http://model.example",
        slug: slug_of(Path("/home/user/work")),
    }.items():
        text = text.replace(here, there)
    text = re.sub(r'/[^" ]*/home/root', "/root-home", text)
    text = re.sub(r'"CLAUDE_CONFIG_DIR": "[^"]*"(, )?', "", text)
    text = re.sub(r'"sandspan.host": "[^"]*"', '"sandspan.host": "an-old-host/0badc0de/pid:[4026531836]"', text)
    return re.sub(r'"sandspan.pid": "\d+"', '"sandspan.pid": "4242"', text)

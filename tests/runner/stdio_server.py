"""An MCP server over stdio, run as a program: ``stdio_server.py [FOLDER]``.

With a folder it writes to the pipe ``up`` there, waits for the pipe ``go`` before it answers, and writes to ``listed``
when the client has all of its tools.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(folder: Path | None) -> None:
    if folder is not None:
        (folder / "up").write_text("up")
        (folder / "go").read_text()
    for line in sys.stdin:
        request = json.loads(line)
        if "id" in request:
            sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": answer(request)}) + "\n")
            sys.stdout.flush()
        if folder is not None and request["method"] == "tools/list":
            (folder / "listed").write_text("listed")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    match request["method"]:
        case "initialize":
            version = request["params"]["protocolVersion"]
            about = {"name": "stdio", "version": "1"}
            return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}
        case "tools/list":
            return {"tools": [{"name": "noop", "inputSchema": {"type": "object"}}]}
        case _:
            return {}


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)

"""``python -m host_client.scripted_model SCRIPT COMMAND …``: run a command whose model is a script."""

from __future__ import annotations

import argparse
import os
import sys

from agent_runner.contract.credentials import CREDENTIALS

from ._command import run_command
from ._script import ScriptError, load_script
from ._server import ScriptedModel


def main() -> int:
    """Return the command's exit code, or 1 if the script had no reply for a request; 2 for a bad script."""
    parser = argparse.ArgumentParser(
        prog="python -m host_client.scripted_model",
        description="Run a command with ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY set to a model that says a script.",
    )
    parser.add_argument("script", metavar="SCRIPT", help="YAML or JSON: docs/SCRIPTED_MODEL.md")
    parser.add_argument("command", metavar="COMMAND", help="such as: host_client run 'Mend it'")
    parser.add_argument("arguments", metavar="…", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args()
    try:
        script = load_script(given.script)
    except ScriptError as error:
        parser.error(str(error))
    with ScriptedModel(script) as model:
        code = run_command([given.command, *given.arguments], _environment(model.url))
    for request in model.unexpected:
        sys.stderr.write(f"the script has no reply for a request: {request}\n")
    return code or int(bool(model.unexpected))


def _environment(url: str) -> dict[str, str]:
    """Return this process's environment with the scripted model as the only one, and without a key for another."""
    mine = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "any", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in CREDENTIALS}
    return {**kept, **mine}


if __name__ == "__main__":
    sys.exit(main())

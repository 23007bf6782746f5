"""``python -m host_client.scripted_model SCRIPT COMMAND …``: runs a command with a scripted model."""

from __future__ import annotations

import argparse
import os
import sys

from agent_runner.contract.credentials import CREDENTIALS

from ._command import run_command
from ._script import ScriptError, load_script
from ._server import ScriptedModel


def main() -> int:
    """Run the command; return its exit code, 1 if the script had no reply for a request, 2 for a bad script."""
    parser = argparse.ArgumentParser(
        prog="python -m host_client.scripted_model",
        description="Run a command with ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY set to a scripted model.",
    )
    parser.add_argument("script", metavar="SCRIPT", help="YAML or JSON: docs/SCRIPTED_MODEL.md")
    parser.add_argument("command", metavar="COMMAND", help="such as: host_client run 'Mend it'")
    parser.add_argument("arguments", metavar="…", nargs=argparse.REMAINDER, help="arguments of the command")
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
    """Return this process's environment with the scripted model's address and key, and no other model's credential."""
    scripted = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "any", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in CREDENTIALS}
    return {**kept, **scripted}


if __name__ == "__main__":
    sys.exit(main())

"""``host_client demo``: a real agent repairs a small program, with a scripted model and without a key."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from host_client.client.options import AgentOptions, ApprovalPolicy
from host_client.errors import ConfigurationError
from host_client.sandbox import LocalSandbox
from host_client.scripted_model import ScriptedModel, load_script

from ._place import LOCAL_WARNING, Place
from ._run import Job, run_job

_HERE = Path(__file__).parents[1] / "demo"
PROMPT = "The checks of this program fail. Find out why and mend it."


def run_demo(
    script: Path | None,
    prompt: str | None,
    approvals: ApprovalPolicy | None,
    *,
    json_events: bool = False,
    trace_out: Path | None = None,
) -> int:
    """Run the demo, or the caller's own script and prompt; return the exit code."""
    out = sys.stderr if json_events else sys.stdout
    if script is not None and prompt is None:
        raise ConfigurationError("--script needs --prompt, the prompt that your script replies to")
    if prompt is not None and script is None:
        raise ConfigurationError("--prompt needs --script, as the demo's own script replies to the demo's prompt only")
    if approvals is None and not sys.stdin.isatty():
        print("stdin is not a terminal, so the demo approves all tool calls itself", file=out, flush=True)
        approvals = "auto"
    with ScriptedModel(load_script(script or _HERE / "mend.yaml")) as model:
        print(f"a scripted model answers at {model.url}: no account, no key, no network", file=out, flush=True)
        code, _ = run_job(
            Job(
                prompt=prompt or PROMPT,
                options=AgentOptions(
                    user_id="demo",
                    allowed_tools=("Bash(python3 check_prices.py)",) if script is None else (),
                ),
                place=Place(LocalSandbox(), (LOCAL_WARNING,)),
                approvals=approvals or "ask",
                environ={
                    "ANTHROPIC_BASE_URL": model.url,
                    "ANTHROPIC_API_KEY": "the-demo-needs-no-key",
                    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                },
                upload=_HERE / "project" if script is None else None,
                json_events=json_events,
                trace_out=trace_out,
            )
        )
    with contextlib.suppress(OSError):  # the terminal was closed
        if script is None and not json_events:
            print(f"the same in a browser, with you to decide: {_command()} serve --demo", file=out, flush=True)
        for request in model.unexpected:
            print(f"the script has no reply for a request: {request}", file=sys.stderr)
    return code or (1 if model.unexpected else 0)


def _command() -> str:
    """Return the command that this program was started with."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "host_client" else f"{sys.executable} -m host_client"

"""A deep trace arrives at the host whole, from a local sandbox and from E2B."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from host_client import AgentOptions, run_agent
from tests.support.hosts import E2BLab, HostLab, e2b_lab, host_lab, views
from tests.support.runs import CHAT, MODEL, SUBAGENT, tree

pytestmark = pytest.mark.anyio

EXPORT = r"""
IFS=- read -r _ trace parent _ <<< "$TRACEPARENT"
now=$(date +%s%N); id=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
span='"traceId":"'$trace'","spanId":"'$id'","name":"NAME","startTimeUnixNano":"'$now'","endTimeUnixNano":"'$now'"'
body='{"resourceSpans":[{"scopeSpans":[{"spans":[{'$span',PARENT}]}]}]}'
host=${OTEL_EXPORTER_OTLP_ENDPOINT#http://}
exec 3<>/dev/tcp/127.0.0.1/${host#*:}
head='POST /v1/traces HTTP/1.1\r\nHost: '$host'\r\nContent-Type: application/json\r\nConnection: close\r\n'
printf "${head}Content-Length: ${#body}\r\n\r\n%s" "$body" >&3
cat <&3
"""
"""Commands that export a span, and need no program that the agent's account may not be able to run."""


BELOW = """"parentSpanId":"'$parent'\""""


def exporting(name: str, parent: str) -> dict[str, object]:
    """Return a reply with a command that exports a span with a name."""
    command = EXPORT.replace("NAME", name).replace("PARENT", parent)
    return {"tools": [{"name": "Bash", "input": {"command": command}}]}


def helper(number: int) -> dict[str, object]:
    about = {"description": "d", "subagent_type": "general-purpose", "run_in_background": False}
    return {"name": "Agent", "input": {**about, "prompt": f"Help {number}"}}


SCRIPT = json.dumps(
    {
        "conversations": {
            "main": {"replies": [{"tools": [helper(0), helper(1)]}, {"text": "Done."}]},
            "zero": {"when": "Help 0", "replies": [exporting("left", BELOW), {"text": "Helped."}]},
            "one": {"when": "Help 1", "replies": [exporting("right", '"kind":1'), {"text": "Helped."}]},
        }
    }
)


@pytest.mark.parametrize("lab_of", [host_lab, e2b_lab])
async def test_spans_of_processes_are_part_of_the_sessions_trace(lab_of: Callable[[str], object]) -> None:
    options = AgentOptions(model=MODEL, allowed_tools=("Bash", "Agent"), user_id="ada", deep_trace=True)
    with lab_of(SCRIPT) as lab:  # type: ignore[attr-defined]
        assert isinstance(lab, HostLab)
        sandbox = lab.sandbox() if isinstance(lab, E2BLab) else None
        result = await run_agent("go", options, sandbox=sandbox, environ=lab.environ)
    spans = views(result.spans)
    (session,) = tree(spans)
    turn = next(child for child in session[1:] if child[0] == "agent.execute")
    helpers = [
        ["execute_tool Agent", [SUBAGENT, [CHAT], ["execute_tool Bash", [name]], [CHAT]]] for name in ("left", "right")
    ]
    assert sorted(turn[2:4], key=str) == helpers
    assert {span.trace_id for span in spans} == {result.trace_id}
    assert {span.attributes["user.id"] for span in spans} == {"ada"}

"""Claude Code's own messages as events, for hosts that read them with the SDK's classes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from claude_agent_sdk import AssistantMessage, ResultMessage, SystemMessage, UserMessage
from claude_agent_sdk._internal.message_parser import parse_message

from agent_runner.contract import protocol as p
from tests.support.runs import CHAT, TOUCH, Finished, Lab

MakeLab = Callable[[str], Lab]

ALLOWED = ("--prompt", "go", "--allowed-tools", "Bash")


def types_of(done: Finished) -> list[str]:
    return [event.data.message["type"] for event in done.of(p.CliMessage)]


def test_messages_are_forwarded_before_the_events_made_from_them(make_lab: MakeLab) -> None:
    done = make_lab(TOUCH).run(*ALLOWED, "--messages", "on")
    assert done.exit_code == 0
    described, *others = (event.data.message for event in done.of(p.CliMessage))
    assert described["type"] == "control_response"
    assert described["response"]["response"]["commands"]
    parsed = [message for each in others if (message := parse_message(each)) is not None]
    kinds = [type(message) for message in parsed if not isinstance(message, SystemMessage)]
    assert kinds == [AssistantMessage, UserMessage, AssistantMessage, ResultMessage]
    assert "stream_event" not in types_of(done)
    order = [event.type for event in done.events if event.type in ("message", "tool_use", "tool_result", "result")]
    assert order.index("message") < order.index("tool_use") < order.index("tool_result") < order.index("result")
    assert done.one(p.Start).data.sdk_options == ["messages"]
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]]


@pytest.mark.parametrize("gateway", ["on", "off"])
def test_partial_messages_are_forwarded_where_asked_for_and_change_no_other_event(
    make_lab: MakeLab, gateway: str
) -> None:
    done = make_lab(TOUCH).run(*ALLOWED, "--messages", "partial", "--gateway", gateway)
    assert types_of(done).count("stream_event") > 5
    assert "".join(event.data.text for event in done.of(p.TextDelta)) == "Done."
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool Bash"], [CHAT]]]


def test_messages_are_not_forwarded_unless_asked_for(make_lab: MakeLab) -> None:
    done = make_lab(TOUCH).run(*ALLOWED)
    assert done.of(p.CliMessage) == []
    assert done.one(p.Start).data.sdk_options == []

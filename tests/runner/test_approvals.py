"""Approvals and questions on the real CLI: each wait is one span, each request accepts one reply."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from agent_runner.contract import protocol
from agent_runner.contract.protocol import Answer, Approval, input_digest
from tests.support.runs import CHAT, ERROR, OK, SUBAGENT, TOUCH, Finished, Lab, RunnerProcess

MakeLab = Callable[[str], Lab]

ASKED = ["start", "turn_start", "tool_use", "approval_request", "approval_resolved", "tool_result"]
APPROVED_TREE = [["agent.execute", [CHAT], ["execute_tool Bash", ["agent.approval"]], [CHAT]]]


def refused_tree(error: str, approval: str = "agent.approval") -> object:
    return [["agent.execute", [CHAT], [f"execute_tool Bash !{error}", [approval]], [CHAT]]]


def protocol_errors(done: Finished) -> list[str]:
    assert all(error.data.error_type == "protocol" for error in done.of(protocol.Error))
    return [error.data.message for error in done.of(protocol.Error)]


def asked(lab: Lab, *options: str) -> tuple[RunnerProcess, protocol.ApprovalRequest]:
    runner = lab.start("--prompt", "go", *options)
    return runner, runner.until(protocol.ApprovalRequest)


def test_a_denied_tool_fails_with_the_persons_words_and_never_runs(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH.replace("text: Done.", "{text: Done., expect: not on a Friday}"))
    runner, request = asked(lab)
    runner.send(
        Approval(
            approval_id=request.data.approval_id, decision="deny", message="not on a Friday", decided_by="ann@host"
        )
    )
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    assert done.types == [*ASKED, "text", "result", "end"]
    assert done.tree == refused_tree("permission_denied")
    assert not (lab.cwd / "made").exists()
    resolved = done.one(protocol.ApprovalResolved).data
    assert (resolved.decision, resolved.decided_by) == ("deny", "ann@host")
    result = done.one(protocol.ToolResult).data
    assert (result.is_error, result.error_type) == (True, "permission_denied")
    assert "not on a Friday" in result.content

    tool, wait = done.span("execute_tool Bash"), done.span("agent.approval")
    assert "tool.execution_ms" not in tool.attributes
    assert tool.attributes["tool.approval_wait_ms"] == resolved.wait_ms
    assert wait.status == OK
    assert wait.attributes["approval.decision"] == "deny"
    assert wait.attributes["approval.decided_by"] == "ann@host"
    assert wait.attributes["approval.id"] == request.data.approval_id
    assert (request.span_id, request.parent_span_id) == (wait.span_id, tool.span_id)


def test_the_wait_for_a_person_and_the_execution_are_told_apart(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH.replace("touch made", "touch made && sleep 0.3"))
    runner, request = asked(lab)
    assert not threading.Event().wait(0.5)  # a person thinks for half a second
    runner.send(Approval(approval_id=request.data.approval_id, decision="allow"))
    answered = runner.until(protocol.ApprovalResolved)
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    assert done.types == [*ASKED, "text", "result", "end"]
    assert done.tree == APPROVED_TREE
    assert (lab.cwd / "made").exists()

    tool, wait = done.span("execute_tool Bash"), done.span("agent.approval")
    assert answered.data.decision == "allow"
    # The event of the resolution is made right after the wait; timestamps have microseconds at least.
    assert 500 <= answered.data.wait_ms <= (answered.ts - request.ts) * 1000 + 0.01
    assert wait.ms == pytest.approx(answered.data.wait_ms, abs=0.01)
    assert tool.attributes["tool.approval_wait_ms"] == answered.data.wait_ms
    assert 300 <= tool.attributes["tool.execution_ms"] == done.one(protocol.ToolResult).data.duration_ms
    assert tool.attributes["tool.execution_ms"] <= (tool.end - wait.end) / 1e6


def test_an_edited_input_is_what_runs(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH)
    runner, request = asked(lab, "--tool-content", "full")
    assert request.data.input == {"command": "touch made"}
    assert request.data.input_sha256 == input_digest(request.data.input)
    runner.send(
        Approval(
            approval_id=request.data.approval_id,
            decision="allow",
            updated_input={"command": "touch edited"},
            input_sha256=request.data.input_sha256,
        )
    )
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    assert done.tree == APPROVED_TREE
    assert done.one(protocol.ApprovalResolved).data.decision == "allow_edited"
    edit = {"command": "touch edited"}
    resolved, result = done.one(protocol.ApprovalResolved).data, done.one(protocol.ToolResult).data
    assert (resolved.updated_input, resolved.input_sha256) == (edit, input_digest(edit))
    assert result.executed_input == edit
    approval = done.span("agent.approval").attributes
    assert (approval["approval.decision"], approval["approval.input_sha256"]) == ("allow_edited", input_digest(edit))
    bash = done.span("execute_tool Bash").attributes
    assert bash["tool.executed_input_sha256"] == input_digest(edit)
    assert bash["gen_ai.tool.call.arguments"] == '{"command":"touch edited"}'
    assert [path.name for path in lab.cwd.iterdir()] == ["edited"]


def test_an_approval_that_nobody_gives_in_time_is_denied(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH)
    runner, request = asked(lab, "--approval-timeout", "0.2")
    use = next(event for event in runner.events if isinstance(event, protocol.ToolUse))
    assert use.ts - 0.001 <= request.data.expires_at - 0.2 <= request.ts + 0.001  # in whole milliseconds
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    assert done.types == [*ASKED, "text", "result", "end"]
    assert done.tree == refused_tree("approval_timeout", "agent.approval !approval_timeout")
    resolved = done.one(protocol.ApprovalResolved).data
    assert (resolved.decision, resolved.decided_by) == ("timeout", None)
    assert resolved.wait_ms >= 200
    assert done.one(protocol.ToolResult).data.error_type == "approval_timeout"
    assert "Nobody answered in time" in done.one(protocol.ToolResult).data.content
    assert not (lab.cwd / "made").exists()


def test_answers_that_answer_nothing_are_protocol_errors_and_the_run_goes_on(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: touch first}}]
              - tools: [{name: Bash, input: {command: touch second}}]
              - text: Done.
    """)
    runner, request = asked(lab)
    key = request.data.approval_id
    runner.send(
        Approval(approval_id="guessed", decision="allow"),
        Answer(question_id="guessed", answers={}),
        Approval(approval_id=key, decision="allow", input_sha256="0" * 64),
        Approval(approval_id=key, decision="deny", updated_input={"command": "true"}),
        Approval(approval_id=key, decision="deny", updated_permissions=[]),
        Approval(approval_id=key, decision="allow", interrupt=True),
        Approval(approval_id=key, decision="allow", remember=True, updated_permissions=[]),
        Approval(approval_id=key, decision="allow", updated_permissions=[{"type": "setMode"}]),
        Approval(approval_id=key, decision="allow", input_sha256=request.data.input_sha256),
    )
    second = runner.until(protocol.ApprovalRequest)
    runner.send(
        Approval(approval_id=key, decision="deny"),  # the id of the first is used up
        Approval(approval_id=second.data.approval_id, decision="allow"),
    )
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    assert protocol_errors(done) == [
        "approval 'guessed' is unknown",
        "question 'guessed' is unknown",
        f"approval {key!r}: input_sha256 is not the digest of the requested input",
        "a denial cannot carry an updated_input",
        "a denial cannot carry updated_permissions",
        "only a denial can carry interrupt",
        "remember and updated_permissions exclude each other",
        "updated_permissions are not in the SDK's form",
        f"approval {key!r} was resolved already",
    ]
    tool = ["execute_tool Bash", ["agent.approval"]]
    assert done.tree == [["agent.execute", [CHAT], tool, [CHAT], tool, [CHAT]]]
    assert [each.data.decision for each in done.of(protocol.ApprovalResolved)] == ["allow", "allow"]
    assert sorted(path.name for path in lab.cwd.iterdir()) == ["first", "second"]


def test_a_remembered_approval_is_not_asked_for_again(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: touch made}}]
              - tools: [{name: Bash, input: {command: touch made}}]
              - text: Done.
    """)
    runner, request = asked(lab)
    assert request.data.suggestions
    runner.send(Approval(approval_id=request.data.approval_id, decision="allow", remember=True))
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    assert done.types == [*ASKED, "tool_use", "tool_result", "text", "result", "end"]
    once, again = ["execute_tool Bash", ["agent.approval"]], ["execute_tool Bash"]
    assert done.tree == [["agent.execute", [CHAT], once, [CHAT], again, [CHAT]]]
    # What one person allows in one run is written nowhere.
    assert [path.name for path in lab.cwd.iterdir()] == ["made"]
    assert not list(lab.home.glob("**/settings*.json"))


def test_an_approval_may_change_permissions_in_the_sdks_form(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: touch one}}]
              - tools: [{name: Bash, input: {command: touch two}}]
              - text: Done.
    """)
    runner, request = asked(lab)
    rule = {"type": "addRules", "behavior": "allow", "rules": [{"toolName": "Bash"}], "destination": "session"}
    runner.send(Approval(approval_id=request.data.approval_id, decision="allow", updated_permissions=[rule]))
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.types == [*ASKED, "tool_use", "tool_result", "text", "result", "end"]
    assert done.one(protocol.ApprovalResolved).data.remembered is True


def test_a_denial_may_end_the_turn(make_lab: MakeLab) -> None:
    lab = make_lab(TOUCH)
    runner, request = asked(lab)
    runner.send(Approval(approval_id=request.data.approval_id, decision="deny", message="stop", interrupt=True))
    runner.until(protocol.Result)
    done = runner.finish()
    assert (done.exit_code, len(lab.model.requests)) == (130, 1)
    assert done.one(protocol.ApprovalResolved).data.decision == "deny"


def test_a_request_has_what_claude_code_says_of_it(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: cat /etc/shadow, description: Look}}]
              - text: Done.
    """)
    runner, request = asked(lab)
    about = request.data
    assert (about.blocked_path, about.display_name, about.description) == ("/etc/shadow", "Bash", "Look")
    assert (about.agent_id, about.title, about.decision_reason) == (None, None, None)
    runner.send(Approval(approval_id=request.data.approval_id, decision="deny"))
    runner.until(protocol.Result)
    assert runner.finish().exit_code == 0


def test_a_remembered_edit_outside_the_directory_allows_the_next_one_too(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Write, input: {file_path: ../outside/one, content: x}}]
              - tools: [{name: Write, input: {file_path: ../outside/two, content: x}}]
              - text: Done.
    """)
    runner, request = asked(lab)
    assert sorted(each["type"] for each in request.data.suggestions) == ["addDirectories", "setMode"]
    runner.send(Approval(approval_id=request.data.approval_id, decision="allow", remember=True))
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.one(protocol.ApprovalResolved).data.remembered is True
    assert sorted(path.name for path in (lab.root / "outside").iterdir()) == ["one", "two"]


def test_an_approval_that_cannot_be_remembered_says_so_and_counts_once(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools: [{name: Bash, input: {command: echo $(touch made)}}]
              - text: Done.
    """)
    runner, request = asked(lab)
    assert request.data.suggestions == []
    runner.send(Approval(approval_id=request.data.approval_id, decision="allow", remember=True))
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.one(protocol.ApprovalResolved).data.remembered is False
    assert [log.data.text for log in done.of(protocol.Log)] == [
        "Bash is allowed once and not remembered: Claude Code suggests no rule for this call"
    ]
    assert (lab.cwd / "made").exists()


def test_a_question_of_the_agent_is_answered_by_the_person(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools:
                  - name: AskUserQuestion
                    input:
                      questions:
                        - question: Which colour?
                          header: Colour
                          multiSelect: false
                          options:
                            - {label: Red, description: warm}
                            - {label: Blue, description: cold}
              - text: Blue it is.
                expect: Blue
    """)
    runner = lab.start("--prompt", "go")
    request = runner.until(protocol.QuestionRequest)
    assert [question["question"] for question in request.data.questions] == ["Which colour?"]
    runner.send(
        Answer(question_id=request.data.question_id, answers={"colour": "Red"}),
        Answer(question_id=request.data.question_id, answers={"Which colour?": "Blue"}, decided_by="ann"),
        Answer(question_id=request.data.question_id, answers={"Which colour?": "Red"}),
    )
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    key = request.data.question_id
    assert protocol_errors(done) == [
        f"question {key!r}: there is no question 'colour': each key of answers must be the whole text of a question:"
        " 'Which colour?'",
        f"question {key!r} was resolved already",
    ]
    assert [kind for kind in done.types if kind != "error"] == [
        *("start", "turn_start", "tool_use", "question_request", "question_resolved"),
        *("tool_result", "text", "result", "end"),
    ]
    assert done.tree == [["agent.execute", [CHAT], ["execute_tool AskUserQuestion", ["agent.approval"]], [CHAT]]]
    resolved = done.one(protocol.QuestionResolved).data
    assert (resolved.answers, resolved.decision, resolved.decided_by) == ({"Which colour?": "Blue"}, "answered", "ann")
    wait = done.span("agent.approval")
    assert (wait.attributes["approval.decision"], wait.status) == ("answered", OK)
    assert wait.attributes["approval.wait_ms"] == resolved.wait_ms


def test_two_approvals_at_once_can_be_answered_in_any_order(make_lab: MakeLab) -> None:
    lab = make_lab("""
        conversations:
          main:
            replies:
              - tools:
                  - name: Agent
                    input: {description: a, prompt: Make alpha,
                            subagent_type: general-purpose, run_in_background: false}
                  - name: Agent
                    input: {description: b, prompt: Make beta,
                            subagent_type: general-purpose, run_in_background: false}
              - text: Done.
          a:
            when: Make alpha
            replies:
              - tools: [{name: Bash, input: {command: touch alpha}}]
              - text: alpha is made
          b:
            when: Make beta
            replies:
              - tools: [{name: Bash, input: {command: touch beta}}]
              - text: beta is not made
    """)
    runner, first = asked(lab)
    second = runner.until(protocol.ApprovalRequest)
    runner.send(Approval(approval_id=second.data.approval_id, decision="deny"))
    runner.until(protocol.ApprovalResolved)
    runner.send(Approval(approval_id=first.data.approval_id, decision="allow"))
    runner.until(protocol.Result)
    done = runner.finish()
    assert done.exit_code == 0
    decided = [(each.data.approval_id, each.data.decision) for each in done.of(protocol.ApprovalResolved)]
    assert decided == [(second.data.approval_id, "deny"), (first.data.approval_id, "allow")]
    denied, allowed = (each.data.input["command"].removeprefix("touch ") for each in (second, first))
    assert [path.name for path in lab.cwd.iterdir()] == [allowed]
    spans = {span.attributes.get("gen_ai.tool.call.id"): span for span in done.spans if "execute_tool" in span.name}
    assert spans[first.data.tool_use_id].status == OK
    assert spans[second.data.tool_use_id].status == ERROR
    assert spans[second.data.tool_use_id].attributes["error.type"] == "permission_denied"
    assert {denied, allowed} == {"alpha", "beta"}

    def agent(bash: str) -> object:
        return ["execute_tool Agent", [SUBAGENT, [CHAT], [bash, ["agent.approval"]], [CHAT]]]

    turn, *children = done.tree[0]
    agents = [child for child in children if child != [CHAT]]
    assert (turn, len(children)) == ("agent.execute", 4)
    expected = [agent("execute_tool Bash"), agent("execute_tool Bash !permission_denied")]
    assert sorted(agents, key=str) == sorted(expected, key=str)

"""Cards of approvals and questions: their content, the requests that they send, and races, expiries and roles."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from agent_runner.contract import protocol as p
from agent_runner.contract.protocol import input_digest
from tests.page.logs import EDIT, QUESTIONS, RULE, ask, begin, call, done, resolve
from tests.support.browser import PHONE, Windows, ready
from tests.support.page_server import Log, PageServer

COMMAND: dict[str, Any] = {"command": "npm test && npm publish", "description": "Publish it", "timeout": 60000}


@pytest.fixture
def log(server: PageServer) -> Log:
    """Return the log of a session in which a command waits for approval."""
    log = server.log("session-1", title="Publish the package")
    begin(log)
    call(log, "b1", "Bash", COMMAND)
    ask(log, "x1", "b1", "Bash", COMMAND, reason="npm needs approval", suggestions=[RULE])
    return log


def card(page: Page, key: str = "x1"):
    return page.locator(f"[data-request='{key}']")


def test_a_card_shows_all_of_the_input_the_reason_the_rule_and_the_time_left(
    server: PageServer, windows: Windows, log: Log
) -> None:
    page = windows.open(server.session_url(log))
    expect(card(page).locator("pre.exact")).to_have_text(COMMAND["command"])
    expect(card(page)).to_contain_text("npm needs approval")
    expect(card(page).locator(".fields")).to_contain_text("timeout")
    expect(card(page).locator(".fields")).to_contain_text("60000")
    expect(card(page).get_by_role("button", name="Allow and remember")).to_contain_text("Bash(npm test:*)")
    expect(card(page).get_by_role("timer")).to_have_text(re.compile(r"^\d:\d\d left$"))
    expect(page).to_have_title("(1) Needs you · Publish the package · Sandspan")
    expect(page.locator("link[rel=icon]")).to_have_attribute("href", "icon-waiting.svg")
    expect(page.locator(".session-head .pill")).to_have_text("Needs you")


def test_allow_once_sends_the_hash_of_what_was_shown_and_tells_who_decided(
    server: PageServer, windows: Windows, log: Log
) -> None:
    page = windows.open(server.session_url(log), name="ana")
    page.get_by_role("button", name="Allow once").click()
    expect(card(page)).to_have_count(0)
    digest = input_digest(COMMAND)
    assert server.decisions == [{"id": "x1", "decision": "allow", "input_sha256": digest, "decided_by": "ana"}]
    expect(page.locator(".verdict")).to_have_text("Allowed by you · waited 1.2 s")
    expect(page.locator(".session-head .pill")).to_have_text("Running")
    expect(page).to_have_title("Publish the package · Sandspan")
    expect(page.locator("link[rel=icon]")).to_have_attribute("href", "icon.svg")


def test_allow_and_remember_asks_for_the_rule(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log))
    card(page).get_by_role("button", name="Allow and remember").click()
    expect(card(page)).to_have_count(0)
    assert server.decisions[0]["remember"] is True


def test_an_edited_command_keeps_the_other_fields(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log))
    card(page).get_by_role("button", name="Edit").click()
    page.get_by_label("Command to run instead").fill("npm test")
    page.get_by_role("button", name="Allow as edited").click()
    expect(card(page)).to_have_count(0)
    assert server.decisions[0]["updated_input"] == {**COMMAND, "command": "npm test"}
    expect(page.locator(".verdict")).to_contain_text("Allowed with changes by")


def test_an_edit_is_shown_as_a_diff_and_edited_as_json(server: PageServer, windows: Windows, log: Log) -> None:
    resolve(log, "x1", "b1", "allow")
    done(log, "b1", "ok")
    call(log, "e1", "Edit", EDIT)
    ask(log, "x2", "e1", "Edit", EDIT)
    page = windows.open(server.session_url(log))
    expect(card(page, "x2").locator(".row.added .line")).to_have_text(
        "    return sum(price * quantity for price, quantity in items)"
    )
    expect(card(page, "x2").locator(".row.removed .line")).to_have_text(
        "    return sum(price for price, quantity in items)"
    )
    card(page, "x2").get_by_role("button", name="Edit").click()
    field = page.get_by_label("Input to use instead (JSON)")
    field.fill("{not json")
    page.get_by_role("button", name="Allow as edited").click()
    expect(card(page, "x2").get_by_role("alert")).to_contain_text("This is not JSON")
    field.fill(json.dumps({**EDIT, "new_string": "pass"}))
    page.get_by_role("button", name="Allow as edited").click()
    expect(card(page, "x2")).to_have_count(0)
    assert [each["updated_input"] for each in server.decisions] == [{**EDIT, "new_string": "pass"}]


def test_a_denial_carries_its_reason(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log))
    page.get_by_role("button", name="Deny…").click()
    page.get_by_label("Reason for the denial").fill("Not before Monday")
    page.keyboard.press("Enter")
    expect(card(page)).to_have_count(0)
    sent = server.decisions[0]
    assert (sent["decision"], sent["message"]) == ("deny", "Not before Monday")
    expect(page.locator(".tool .verb")).to_have_text("Did not run")


def test_keys_alone_decide(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log))
    expect(card(page)).to_be_visible()
    page.keyboard.press("a")
    expect(card(page)).to_be_focused()
    page.keyboard.press("n")
    expect(page.get_by_label("Reason for the denial")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    page.keyboard.press("e")
    expect(page.get_by_label("Command to run instead")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("npm test")
    page.keyboard.press("Control+Enter")
    expect(card(page)).to_have_count(0)
    assert server.decisions[0]["updated_input"]["command"] == "npm test"
    expect(page.get_by_label("Message to the agent")).to_be_focused()


def test_a_letter_typed_into_the_message_decides_nothing(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log))
    expect(card(page)).to_be_visible()
    page.get_by_label("Message to the agent").press_sequentially("yes, any of it")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".prompt-text").last).to_have_text("yes, any of it")
    expect(card(page)).to_be_visible()
    assert server.decisions == []


def test_of_two_who_decide_one_is_told_who_was_first(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log), name="ana")
    expect(card(page)).to_be_visible()
    # The service has the other person's decision, but its event has not arrived yet.
    decided = {"decision": "deny", "decided_by": "ben", "decided_at": log.clock}
    server.play(lambda: log.decided.update(x1=decided))
    page.get_by_role("button", name="Allow once").click()
    expect(page.locator(".toast.problem")).to_contain_text("Too late: somebody was first. Denied by ben at")
    expect(card(page)).to_have_count(0)


def test_a_decision_taken_elsewhere_takes_the_card_away(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log), name="ana")
    expect(card(page)).to_be_visible()
    server.play(lambda: resolve(log, "x1", "b1", "deny", by="ben", waited=3.0))
    expect(card(page)).to_have_count(0)
    expect(page.locator(".verdict")).to_have_text("Denied by ben · waited 3.0 s")


def test_an_expired_card_says_so_and_decides_nothing(server: PageServer, windows: Windows, log: Log) -> None:
    call(log, "b2", "Bash", COMMAND)
    ask(log, "x2", "b2", "Bash", COMMAND, expires_in=-1)
    page = windows.open(server.session_url(log))
    expect(card(page, "x2").get_by_role("alert")).to_have_text("Nobody answered in time: the call is denied.")
    expect(card(page, "x2").get_by_role("timer")).to_have_text("Expired")
    expect(card(page, "x2").get_by_role("button", name="Allow once")).to_be_disabled()
    expect(card(page).get_by_role("button", name="Allow once")).to_be_enabled()


def test_what_waits_is_stacked_and_counted(server: PageServer, windows: Windows, log: Log) -> None:
    call(log, "e1", "Edit", EDIT)
    ask(log, "x2", "e1", "Edit", EDIT)
    page = windows.open(server.session_url(log))
    expect(page.locator(".card-count")).to_have_text("2 decisions wait for you")
    expect(page).to_have_title(re.compile(r"^\(2\)"))
    page.keyboard.press("a")
    page.keyboard.press("y")
    expect(card(page)).to_have_count(0)
    expect(card(page, "x2")).to_be_focused()
    expect(page.locator(".card-count")).to_be_hidden()


def test_questions_take_options_and_words(server: PageServer, windows: Windows) -> None:
    log = server.log("asks")
    begin(log)
    call(log, "q", "AskUserQuestion", {"questions": QUESTIONS})
    log.add(p.QuestionRequestData(question_id="q1", tool_use_id="q", questions=QUESTIONS, expires_at=log.clock + 200))
    page = windows.open(server.session_url(log), size=PHONE)
    asked = card(page, "q1")
    asked.get_by_role("button", name="Answer").click()
    expect(asked.get_by_role("alert")).to_have_text("Question 1 has no answer yet.")
    asked.get_by_label("Half even").check()
    asked.get_by_label("README.md").check()
    asked.get_by_label("Your own answer").last.fill("and the docs")
    asked.get_by_role("button", name="Answer").click()
    expect(asked).to_have_count(0)
    answers = {QUESTIONS[0]["question"]: "Half even", QUESTIONS[1]["question"]: "README.md, and the docs"}
    assert server.decisions == [{"id": "q1", "answers": answers}]
    expect(page.locator(".verdict")).to_contain_text("Answered by you: Half even; README.md, and the docs")
    page.locator(".fold-line").click()
    expect(page.locator(".answers")).to_contain_text("README.md, and the docs")


LONG_EDIT = {
    "file_path": "/tmp/sandspan-fhkxxv0z/shop/prices.py",
    "old_string": "".join(f"    old line number {n} of a change that is long\n" for n in range(40)),
    "new_string": "".join(f"    new line number {n} of a change that is long\n" for n in range(40)),
}


def test_a_phone_shows_the_whole_of_a_small_edit_above_its_buttons(server: PageServer, windows: Windows) -> None:
    log = server.log("edit")
    begin(log)
    call(log, "e1", "Edit", EDIT)
    rule = {"type": "setMode", "mode": "acceptEdits", "destination": "session"}
    ask(log, "x1", "e1", "Edit", EDIT, reason="prices.py", suggestions=[rule])
    page = windows.open(server.session_url(log), size=PHONE)
    expect(card(page).locator(".row.added")).to_be_in_viewport(ratio=1)
    expect(card(page).locator(".more-below")).to_be_hidden()
    edges = card(page).evaluate(
        """(card) => [
          card.querySelector('.row.added').getBoundingClientRect().bottom,
          card.querySelector('.actions').getBoundingClientRect().top,
          card.getBoundingClientRect().bottom,
          document.querySelector('.composer').getBoundingClientRect().top,
        ]"""
    )
    assert edges == sorted(edges)


def test_a_phone_tells_that_a_long_edit_goes_on_and_leads_to_its_end(server: PageServer, windows: Windows) -> None:
    log = server.log("long-edit")
    begin(log)
    call(log, "e1", "Edit", LONG_EDIT)
    ask(log, "x1", "e1", "Edit", LONG_EDIT, expires_in=3000)
    page = windows.open(server.session_url(log), size=PHONE)
    ready(page, len(log.events))
    cue = card(page).get_by_text("More below")
    expect(cue).to_be_in_viewport(ratio=1)
    expect(card(page).get_by_role("button", name="Allow once")).to_be_in_viewport(ratio=1)
    card(page).locator(".cued .link").click()
    expect(card(page).locator(".row.added")).to_have_count(40)
    card(page).locator(".card-body").evaluate("(body) => body.scrollTo(0, body.scrollHeight)")
    expect(card(page).locator(".row.added").last).to_be_in_viewport(ratio=1)
    expect(cue).to_be_hidden()


def test_one_notice_at_a_time_and_none_beside_what_waits(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log))
    page.get_by_role("button", name="Allow once").click()
    expect(page.locator(".toast")).to_have_text(re.compile("^Allowed: run a command"))
    expect(page.locator(".dock .toast")).to_have_count(0)
    server.play(lambda: (call(log, "e1", "Edit", EDIT), ask(log, "x2", "e1", "Edit", EDIT)))
    expect(card(page, "x2")).to_be_visible()
    expect(page.locator(".toast")).to_have_count(0)


def test_a_folded_call_tells_what_a_person_said_and_changed(server: PageServer, windows: Windows, log: Log) -> None:
    resolve(log, "x1", "b1", "deny")
    done(log, "b1", "Not before Monday", failed=True)
    call(log, "b2", "Bash", COMMAND)
    ask(log, "x2", "b2", "Bash", COMMAND)
    resolve(log, "x2", "b2", "allow_edited")
    done(log, "b2", "ok")
    call(log, "b3", "Bash", COMMAND)
    ask(log, "x3", "b3", "Bash", COMMAND)
    resolve(log, "x3", "b3", "deny", by="runner:no-one-to-ask")
    done(log, "b3", "Nobody is there to ask, so this was not allowed.", failed=True)
    page = windows.open(server.session_url(log))
    expect(page.locator(".verdict")).to_have_text(
        [
            "Denied by ana: Not before Monday · waited 8.0 s",
            "Allowed with changes by ana · waited 8.0 s",
            "Denied: nobody was there to ask · waited 8.0 s",
        ]
    )
    page.locator(".fold-line").nth(1).click()
    expect(page.locator(".fold-body h4").first).to_have_text("Input as Claude wrote it; it was changed before it ran")


def test_a_call_shows_the_input_that_it_ran_with_before_the_one_that_claude_wrote(
    server: PageServer, windows: Windows, log: Log
) -> None:
    edit = {"command": "make edited"}
    log.add(
        p.ApprovalResolvedData(
            approval_id="x1", tool_use_id="b1", decision="allow_edited", wait_ms=8000, updated_input=edit
        )
    )
    done(log, "b1", "ok", executed_input=edit)
    call(log, "b2", "Bash", COMMAND)
    done(log, "b2", "ok", executed_input={"command": "make hooked"})
    page = windows.open(server.session_url(log))
    for at, (title, command) in enumerate(
        [("Input as it ran, changed by a person", "make edited"), ("Input as it ran", "make hooked")]
    ):
        page.locator(".fold-line").nth(at).click()
        body = page.locator(".fold-body").nth(at)
        expect(body.locator("h4")).to_have_text([title, "Input as Claude wrote it", "Output"])
        expect(body).to_contain_text(command)
        expect(body).to_contain_text(COMMAND["command"])


@pytest.mark.parametrize(("role", "decides", "writes"), [("viewer", 0, 0), ("approver", 1, 0), ("operator", 1, 1)])
def test_a_role_sees_only_what_it_may_do(
    server: PageServer, windows: Windows, log: Log, role: str, decides: int, writes: int
) -> None:
    server.me = {"name": "ana", "tenant_id": "default", "role": role, "auth": True}
    page = windows.open(server.session_url(log))
    expect(card(page)).to_be_visible()
    expect(page.get_by_role("button", name="Allow once")).to_have_count(decides)
    expect(page.get_by_label("Message to the agent")).to_have_count(writes)
    page.keyboard.press("l")
    expect(page.get_by_role("heading", name="Sessions")).to_be_visible()
    expect(page.get_by_role("button", name="New session")).to_have_count(writes)

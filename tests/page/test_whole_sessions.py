"""Whole sessions in a browser with the real service, runner and CLI and a scripted model."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.server.conftest import new_e2b_service, new_service
from tests.server.scripts import TALK, TWO_APPROVALS
from tests.support.browser import PHONE, Windows, ready
from tests.support.hosts import E2BLab, HostLab
from tests.support.pictures import png
from tests.support.runs import MODEL
from tests.support.service import ServiceLab

pytestmark = pytest.mark.timeout(240)

SESSION = r"""
conversations:
  main:
    replies:
      - text: I make a file.
        tools: [{name: Bash, input: {command: touch made, description: Make it}}]
      - text: And another.
        tools: [{name: Bash, input: {command: rm -rf other}}]
      - expect: Not that one
        text: Then I ask.
        tools:
          - name: AskUserQuestion
            input:
              questions:
                - question: Which colour?
                  header: Colour
                  multiSelect: false
                  options: [{label: Red, description: r}, {label: Blue, description: b}]
      - expect: Blue
        text: I look at something hostile.
        tools:
          - name: Bash
            input:
              command: >-
                printf '<img src=x onerror=alert(1)>\033[31mred\342\200\256txt' && head -c 5000000 /dev/zero | tr '\0' A
      - {text: That was all of it.}
      - {text: "I think for long.", delay: 0.1, pace: 0.001, first_token_after: 600}
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def local(stack: ExitStack) -> tuple[ServiceLab, HostLab]:
    return new_service(stack, SESSION)


def start(page: Page, prompt: str) -> None:
    """Fill in and send the form for a new session."""
    page.get_by_role("button", name="New session").click()
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Model").fill(MODEL)
    page.get_by_role("button", name="Start session").click()


def card(page: Page) -> Locator:
    return page.locator(".card")


def call_of(page: Page, text: str) -> Locator:
    return page.locator(".tool").filter(has_text=text)


def test_a_picture_goes_from_the_form_to_the_model_and_is_shown(
    stack: ExitStack, windows: Windows, tmp_path: Path
) -> None:
    lab, host = new_service(stack, TALK)
    picture = tmp_path / "red ü.png"
    picture.write_bytes(png())
    page = windows.open(lab.start("--sandbox", "local").url, name="ana")
    page.get_by_role("button", name="New session").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("dialog").get_by_role("button", name="Attach").click()
    chooser.value.set_files(picture)
    expect(page.locator(".attachment img")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("Which colour?")
    page.get_by_label("Model").fill(MODEL)
    page.get_by_role("button", name="Start session").click()
    shown = page.locator(".prompt img")
    page.wait_for_function("(each) => each.complete && each.naturalWidth === 8", arg=shown.element_handle())
    with page.expect_download() as download:
        page.locator(".prompt").get_by_role("link", name="red ü.png").click()
    assert download.value.path().read_bytes() == png()
    expect(page.locator(".prose").first).to_have_text("Hello there.")
    asked = [block.get("source", {}).get("data") for block in host.model.requests[-1].body["messages"][0]["content"]]
    assert base64.b64encode(png()).decode() in asked


def test_a_session_from_its_form_to_its_end(local: tuple[ServiceLab, HostLab], windows: Windows) -> None:
    served = local[0].start("--sandbox", "local")
    page = windows.open(served.url, name="ana")
    start(page, "Make <b>files</b>")
    expect(page.locator(".prompt-text")).to_have_text("Make <b>files</b>")

    # Edit the first approval.
    expect(card(page).locator("pre.exact")).to_have_text("touch made")
    expect(page).to_have_title(re.compile(r"^\(1\) Needs you"))
    card(page).get_by_role("button", name="Edit").click()
    page.get_by_label("Command to run instead").fill("touch mended")
    page.get_by_role("button", name="Allow as edited").click()
    expect(call_of(page, "touch").locator(".verdict").first).to_contain_text("Allowed with changes by you · waited")

    # Deny the second one after a reload.
    expect(card(page).locator("pre.exact")).to_have_text("rm -rf other")
    page.reload()
    expect(card(page).locator("pre.exact")).to_have_text("rm -rf other")
    page.keyboard.press("a")
    page.keyboard.press("n")
    page.keyboard.type("Not that one")
    page.keyboard.press("Enter")
    expect(call_of(page, "rm -rf other").locator(".verdict")).to_contain_text("Denied by you: Not that one")

    # Answer a question, then allow a command with hostile output.
    card(page).get_by_label("Blue").check()
    card(page).get_by_role("button", name="Answer").click()
    expect(card(page).locator("pre.exact")).to_contain_text("printf '<img src=x")
    page.get_by_role("button", name="Allow once").click()
    expect(page.locator(".prose").last).to_have_text("That was all of it.")
    expect(page.locator(".session-head .pill")).to_have_text("Idle")
    call_of(page, "printf").locator(".fold-line").click()
    shown = call_of(page, "printf").locator("pre.output")
    expect(shown).to_contain_text("<img src=x onerror=alert(1)>⟨ESC⟩[31mred⟨U+202E⟩txtAAA")

    # Interrupt a further turn, then close the session.
    page.get_by_label("Message to the agent").fill("And now think")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Interrupt").click()
    expect(page.locator(".turn-end").last).to_contain_text("Turn 2 interrupted")
    expect(page.locator(".session-head .pill")).to_have_text("Idle")
    page.get_by_role("button", name="Close session").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Close session").click()
    expect(page.locator(".session-head .pill")).to_have_text("Closed")
    expect(page.locator(".session")).to_have_attribute("data-connection", "over")
    replayed = windows.open(page.url, size=PHONE, dark=True, name="ana")
    expect(replayed.locator(".session")).to_have_attribute("data-connection", "over")
    ready(replayed)
    assert replayed.locator(".transcript").inner_text() == _narrow(windows, page)


def _narrow(windows: Windows, page: Page) -> str:
    """Return the text of the transcript at a phone's width with all details folded."""
    for each in page.locator(".transcript .fold-line[aria-expanded=true]").all():
        each.click()
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    return page.locator(".transcript").inner_text()


def test_of_two_browsers_one_decides_and_the_other_is_told(stack: ExitStack, windows: Windows) -> None:
    lab, _ = new_service(stack, TWO_APPROVALS)
    served = lab.start("--sandbox", "local")
    ana = windows.open(served.url, name="ana")
    start(ana, "go")
    expect(card(ana)).to_be_visible()
    ben = windows.open(ana.url, name="ben")
    held: list[Route] = []
    ben.route("**/approvals/*", lambda route: held.append(route))
    with ben.expect_request("**/approvals/*"):
        ben.get_by_role("button", name="Allow once").click()
    ana.get_by_role("button", name="Deny…").click()
    ana.keyboard.press("Enter")
    expect(ana.locator(".verdict").first).to_contain_text("Denied by you")
    held[0].continue_()
    expect(ben.locator(".toast.problem")).to_contain_text("Too late: somebody was first. Denied by ana at")
    expect(ben.locator(".verdict").first).to_contain_text("Denied by ana · waited")


def test_the_page_outlives_a_service_that_is_killed(stack: ExitStack, windows: Windows) -> None:
    lab: tuple[ServiceLab, E2BLab] = new_e2b_service(stack, TWO_APPROVALS)
    first = lab[0].start("--sandbox", "e2b")
    page = windows.open(first.url, name="ana")
    start(page, "go")
    expect(card(page)).to_be_visible()
    first.kill()
    expect(page.locator(".connection")).to_have_text("Connection lost, trying again")
    lab[0].start("--sandbox", "e2b", "--port", first.url.rsplit(":", 1)[1])
    expect(page.locator(".connection")).to_be_hidden()
    expect(page.locator(".note").filter(has_text="The service was restarted")).to_be_visible()
    page.get_by_role("button", name="Allow once").click()
    expect(page.locator(".verdict").first).to_contain_text("Allowed by you")
    expect(card(page).locator("pre.exact")).to_have_text("touch other")
    page.get_by_role("button", name="Allow once").click()
    expect(page.locator(".prose").last).to_have_text("Done.")


def _token(lab: ServiceLab, *options: str) -> str:
    command = [sys.executable, "-m", "host_client", "tokens", "create", "--store", lab.store, *options]
    made = subprocess.run(command, env=dict(lab.environ), capture_output=True, text=True, timeout=60, check=True)
    return made.stdout.strip()


def test_signing_in_takes_a_token_of_the_services_own(stack: ExitStack, windows: Windows) -> None:
    lab, _ = new_service(stack, TWO_APPROVALS)
    token = _token(lab, "--name", "vera", "--role", "viewer", "--tenant", "acme")
    served = lab.start("--sandbox", "local", "--auth", "on")
    page = windows.open(served.url)
    page.get_by_label("Access token").fill(token)
    page.keyboard.press("Enter")
    expect(page.locator(".role")).to_have_text("viewer")
    expect(page.get_by_role("button", name="New session")).to_have_count(0)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Access token")).to_be_visible()

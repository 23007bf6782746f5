"""The page shows hostile output of an agent or its tools as text and stays responsive."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import expect

from tests.page.logs import ask, begin, call, done, text
from tests.support.browser import DESKTOP, PHONE, Windows, ready
from tests.support.page_server import Log, PageServer

MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
DECEIT = "echo safe \u202e; rm -rf ~ #\u202c \x1b[8mhidden\x1b[0m\u200b"
SHOWN = "echo safe ⟨U+202E⟩; rm -rf ~ #⟨U+202C⟩ ⟨ESC⟩[8mhidden⟨ESC⟩[0m⟨U+200B⟩"


@pytest.fixture
def log(server: PageServer) -> Log:
    log = server.log("session-1", title=f"{MARKUP}\u202e")
    begin(log, prompt=MARKUP, sent_by=MARKUP)
    text(log, f"{MARKUP} [link](javascript:alert(1)) ![picture](http://example.invalid/x.png)")
    return log


def test_markup_is_text_wherever_it_comes_from(server: PageServer, windows: Windows, log: Log) -> None:
    call(log, "b", MARKUP, {MARKUP: MARKUP})
    done(log, "b", [{"type": "text", "text": MARKUP}], failed=True)
    call(log, "c", "Bash", {"command": MARKUP, MARKUP: 1})
    rule = {"type": "addRules", "rules": [{"toolName": MARKUP, "ruleContent": MARKUP}]}
    ask(log, "x", "c", "Bash", {"command": MARKUP, MARKUP: 1}, reason=MARKUP, suggestions=[rule])
    page = windows.open(server.session_url(log))
    ready(page, len(log.events))
    for each in page.locator(".transcript .fold-line").all():
        each.click()
    page.locator(".event-row").last.click()
    expect(page.locator(".prompt-text")).to_have_text(MARKUP)
    expect(page.locator("[data-request=x] pre.exact")).to_have_text(MARKUP)
    assert page.locator("#app :is(script, iframe, object, embed, style)").count() == 0
    assert page.locator("#app .session :is(img, a[href^='javascript'])").count() == 0
    expect(page).to_have_title(re.compile("^\\(1\\) Needs you"))
    page.get_by_role("link", name="Sandspan, all sessions").click()
    expect(page.locator(".row-title")).to_contain_text("<img src=x")
    assert page.locator(".list-page img").count() == 0


def test_an_approval_shows_what_a_terminal_would_hide(server: PageServer, windows: Windows, log: Log) -> None:
    call(log, "b", "Bash", {"command": DECEIT})
    ask(log, "x", "b", "Bash", {"command": DECEIT})
    page = windows.open(server.session_url(log))
    card = page.locator("[data-request=x]")
    expect(card.locator("pre.exact")).to_have_text(SHOWN)
    expect(page.locator(".tool .object")).to_have_text(SHOWN)
    card.get_by_role("button", name="Edit").click()
    expect(card.locator(".hidden-note")).to_contain_text("⟨U+202E⟩; rm -rf ~")


def test_letters_that_run_from_right_to_left_do_not_turn_a_command_round(
    server: PageServer, windows: Windows, log: Log
) -> None:
    command = "rm א/ב -rf"
    call(log, "b", "Bash", {"command": command})
    ask(log, "x", "b", "Bash", {"command": command})
    page = windows.open(server.session_url(log))
    exact = page.locator("[data-request=x] pre.exact")
    expect(exact).to_have_text(command)
    lefts = exact.evaluate(
        """(pre) => [...pre.firstChild.data].map((_, at) => {
          const range = document.createRange();
          range.setStart(pre.firstChild, at);
          range.setEnd(pre.firstChild, at + 1);
          return range.getBoundingClientRect().left;
        })"""
    )
    assert lefts == sorted(lefts)


def test_5_mb_of_output_are_shown_in_parts(server: PageServer, windows: Windows, log: Log) -> None:
    output = "\x1b[31m" + MARKUP + "\u202e" + "A" * 5_000_000
    call(log, "b", "Bash", {"command": "cat big"})
    done(log, "b", output)
    page = windows.open(server.session_url(log))
    ready(page, len(log.events))
    page.locator(".tool .fold-line").click()
    shown = page.locator(".tool pre.output")
    expect(shown).to_contain_text("⟨ESC⟩[31m<img src=x")
    assert len(shown.inner_text()) < 5000
    page.get_by_role("button", name=re.compile("Show more .5.0 MB left.")).click()
    expect(page.get_by_role("button", name=re.compile("Show more .4.9 MB left."))).to_be_visible()
    assert len(shown.inner_text()) < 100_000


def test_10_000_events_leave_the_page_light(server: PageServer, windows: Windows, log: Log) -> None:
    while len(log.events) < 10_000:
        key = f"t{len(log.events)}"
        text(log, f"Step {key}", message=key)
        call(log, key, "Bash", {"command": f"make {key}"})
        done(log, key, "ok\n" * 200)
    page = windows.open(server.session_url(log))
    ready(page, len(log.events))
    assert page.locator(".event-row").count() < 80
    assert page.locator(".chart *").count() < 8000
    assert page.locator(".transcript pre").count() == 0
    expect(page.locator(".transcript .item").last).to_be_in_viewport()
    # A further event must add only its own nodes.
    page.evaluate(
        """() => {
          window.touched = 0;
          const watch = new MutationObserver((records) => {
            for (const each of records) window.touched += each.addedNodes.length;
          });
          watch.observe(document.querySelector('.transcript'), { childList: true, subtree: true });
        }"""
    )
    server.play(lambda: text(log, "The last."))
    expect(page.locator(".transcript .item").last).to_contain_text("The last.")
    assert page.evaluate("window.touched") == 1


@pytest.mark.parametrize("width", ["desktop", "phone"])
def test_a_line_without_a_break_widens_nothing(server: PageServer, windows: Windows, log: Log, width: str) -> None:
    long = "x" * 3000
    text(log, long)
    call(log, "b", "Bash", {"command": long, "description": long})
    ask(log, "x", "b", "Bash", {"command": long, "description": long}, reason=long)
    page = windows.open(server.session_url(log), size=PHONE if width == "phone" else DESKTOP)
    expect(page.locator("[data-request=x]")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    widest = page.locator("[data-request=x]").bounding_box()
    assert widest is not None
    assert widest["x"] + widest["width"] <= page.evaluate("innerWidth")


def test_a_service_whose_clock_is_ahead_does_not_expire_a_card(server: PageServer, windows: Windows, log: Log) -> None:
    call(log, "b", "Bash", {"command": "ls"})
    log.clock = time.time() + 1
    ask(log, "x", "b", "Bash", {"command": "ls"}, expires_in=100)
    page = windows.open(server.session_url(log))
    expect(page.locator("[data-request=x]").get_by_role("timer")).to_have_text(re.compile(r"^1:\d\d left$"))

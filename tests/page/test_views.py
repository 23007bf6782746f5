"""The page's views: session list, login, new session, timeline, details, links and keys, on desktop and phone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from agent_runner.contract import protocol as p
from tests.page.logs import begin, call, done, end_turn, text, work
from tests.support.browser import PHONE, Windows, ready
from tests.support.page_server import Log, PageServer


@pytest.fixture
def log(server: PageServer) -> Log:
    log = server.log("session-1", title="Mend the program", max_budget_usd=0.5)
    work(log)
    return log


def opened(windows: Windows, server: PageServer, log: Log, event: int | None = None, **how: bool) -> Page:
    page = windows.open(server.session_url(log, event), size=PHONE if how.get("phone") else (1440, 900))
    ready(page, len(log.events))
    return page


def test_the_list_shows_how_sessions_stand_and_renews_itself(server: PageServer, windows: Windows) -> None:
    server.log("one", title="First", status="idle", cost_usd=0.25, max_budget_usd=1.0)
    page = windows.open(server.url)
    expect(page.locator(".session-row")).to_contain_text("$0.25 of $1.00")
    server.play(
        lambda: server.log(
            "two",
            title="Second",
            status="needs_you",
            waiting=[{"id": "x", "kind": "approval", "tool_name": "Bash", "expires_at": 0}],
        )
    )
    expect(page.locator(".row-title")).to_have_text(["Second", "First"])
    expect(page.locator(".waiting").first).to_have_text("Bash")
    expect(page).to_have_title(re.compile(r"^\(1\) Needs you"))
    page.get_by_role("button", name="Idle").click()
    expect(page.locator(".row-title")).to_have_text(["First"])
    page.get_by_role("button", name="Failed").click()
    expect(page.get_by_text("No session is failed.")).to_be_visible()


def test_a_token_signs_in_and_a_wrong_one_says_so(server: PageServer, windows: Windows, log: Log) -> None:
    server.me = None
    page = windows.open(server.session_url(log))
    expect(page.get_by_label("Access token")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").filter(has_text="token")).to_have_text(
        "This token is not known, or no longer valid."
    )
    expect(page.get_by_text("host_client tokens create")).to_be_visible()
    page.get_by_label("Access token").fill(server.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Mend the program")).to_be_visible()
    expect(page.locator(".me")).to_have_text("ana")


def test_a_session_is_started_from_the_form(server: PageServer, windows: Windows) -> None:
    page = windows.open(server.url, size=PHONE)
    page.get_by_role("button", name="New session").click()
    page.get_by_label("Prompt", exact=True).fill("Mend it")
    page.get_by_label("Tools allowed without asking").fill("Read, Bash(npm test, npm ci)")
    page.get_by_label("Budget, US dollars").fill("0.5")
    page.get_by_role("button", name="Start session").click()
    expect(page.locator(".prompt-text")).to_have_text("Mend it")
    made = server.created[0]
    assert made.pop("key")
    assert made == {"prompt": "Mend it", "allowed_tools": ["Read", "Bash(npm test, npm ci)"], "max_budget_usd": 0.5}


def test_the_head_tells_cost_against_budget_and_links_the_trace(server: PageServer, windows: Windows, log: Log) -> None:
    end_turn(log, cost=0.42)
    log.record["trace_url"] = "https://traces.example/t/1"
    page = opened(windows, server, log)
    expect(page.locator(".figures")).to_contain_text("$0.42 of $0.50")
    expect(page.locator(".budget")).to_have_class(re.compile("near"))
    expect(page.get_by_role("link", name="4bf92f35… ↗")).to_have_attribute("href", "https://traces.example/t/1")
    expect(page.locator(".session-head .pill")).to_have_text("Idle")


def test_the_strip_has_a_lane_for_each_agent_and_jumps(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    expect(page.locator(".lane-label")).to_have_text(["Agent", "Find callers of…"])
    expect(page.locator("rect.hatch")).to_have_count(1)
    page.locator(".seg.tool[data-outcome=error]").click()
    expect(page.locator(".item.target")).to_contain_text("python3 check_prices.py")
    expect(page).to_have_url(re.compile(r"#/s/session-1/e/\d+$"))
    before = page.locator(".chart").text_content() or ""
    page.keyboard.press("t")
    page.keyboard.press("+")
    expect(page.locator(".chart")).not_to_have_text(before)
    page.keyboard.press("0")
    page.keyboard.press("n")
    expect(page.locator(".strip-note")).to_contain_text("Model")


def test_a_link_to_an_event_opens_what_it_is_in(server: PageServer, windows: Windows, log: Log) -> None:
    inner = next(n for n, event in enumerate(log.events, 1) if event["data"].get("id") == "g1")
    page = opened(windows, server, log, event=inner)
    target = page.locator(".item.target")
    expect(target).to_be_in_viewport()
    expect(target.locator("pre.exact")).to_contain_text("grep -rn")


def test_a_link_works_in_a_session_longer_than_one_frame_renders(server: PageServer, windows: Windows) -> None:
    log = server.log("long")
    begin(log)
    marks = [text(log, f"Step {number}", message=str(number)) for number in range(900)]
    page = opened(windows, server, log, event=marks[420])
    expect(page.locator(".item.target")).to_have_text(re.compile("Step 420$"))
    expect(page.locator(".item.target")).to_be_in_viewport()


def test_the_panel_counts_tools_and_shows_raw_events(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    page.get_by_role("tab", name="Tools").click()
    row = page.locator(".tool-table tbody tr").filter(has_text="Bash")
    expect(row.locator("td")).to_have_text(["2", "1", "0", "600 ms"])
    page.keyboard.press("ArrowLeft")
    page.get_by_label("Type of events").select_option("tool_use")
    page.get_by_role("listbox").focus()
    page.keyboard.press("ArrowUp")
    expect(page.locator(".event-detail pre")).to_contain_text('"type": "tool_use"')
    page.get_by_role("button", name="Show in transcript").click()
    expect(page.locator(".item.target")).to_be_in_viewport()


def test_keys_walk_the_transcript_and_are_explained(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard")).to_contain_text("Allow and remember")
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    expect(page.locator(".fold-line").last).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".fold-line").last).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("c")
    expect(page.get_by_label("Message to the agent")).to_be_focused()


def test_a_session_is_interrupted_and_closed_after_a_question(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    page.get_by_role("button", name="Interrupt").click()
    page.get_by_role("button", name="Close session").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert not log.is_closed
    page.get_by_role("button", name="Close session").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Close session").click()
    expect(page.locator(".session-head .pill")).to_have_text("Closed")
    assert server.decisions == [{"interrupt": "session-1"}]


def test_work_in_the_background_is_shown_and_can_be_stopped_when_the_turn_has_ended(
    server: PageServer, windows: Windows, log: Log
) -> None:
    page = opened(windows, server, log)
    call(log, "b", "Bash", {"command": "make"})
    task: dict[str, Any] = {"task_id": "b1", "kind": "local_bash", "description": "make", "tool_use_id": "b"}
    log.add(p.BackgroundTaskData(**task, state="running"))
    done(log, "b", "Command running in background")
    server.play(lambda: end_turn(log))
    chip = page.locator(".tool .chip:visible").last
    expect(chip).to_have_text("In the background")
    with page.expect_response("**/interrupt"):
        page.get_by_role("button", name="Stop background work").click()
    assert server.decisions == [{"interrupt": "session-1"}]
    server.play(lambda: log.add(p.BackgroundTaskData(**task, state="stopped")))
    expect(chip).to_have_text("Stopped in the background")
    expect(page.get_by_role("button", name="Stop background work")).to_have_count(0)


def test_a_phone_shows_it_all_without_scrolling_sideways(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log, phone=True)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    expect(page.locator(".panel")).to_be_hidden()
    page.get_by_role("button", name="Details", exact=True).click()
    expect(page.locator(".panel")).to_be_visible()
    page.get_by_role("button", name="Close details").click()
    expect(page.locator(".panel")).to_be_hidden()


@pytest.mark.parametrize("width", [1001, 1100, 1280, 1440])
def test_no_time_beside_the_transcript_is_cut_off(server: PageServer, windows: Windows, log: Log, width: int) -> None:
    page = windows.open(server.session_url(log), size=(width, 900))
    ready(page, len(log.events))
    lefts = page.evaluate("[...document.querySelectorAll('.place')].map(e => e.getBoundingClientRect().left)")
    assert lefts and min(lefts) >= 0


def test_a_message_is_queued_until_its_turn_begins(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    expect(page.locator(".hint")).to_have_text("Ctrl+Enter sends. Read after this turn.")
    page.get_by_label("Message to the agent").fill("And then the docs")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".delivery:visible")).to_have_text(["Queued: read after this turn"])
    server.play(lambda: (end_turn(log), log.add(p.TurnStartData(turn=2, prompt_size=17))))
    expect(page.locator(".prompt-text").last).to_have_text("And then the docs")
    expect(page.locator(".delivery:visible")).to_have_count(0)


def test_a_running_turn_has_no_cost_yet_and_an_ended_one_keeps_it(
    server: PageServer, windows: Windows, log: Log
) -> None:
    page = opened(windows, server, log)
    figure = page.locator(".figure").first
    expect(figure).to_have_text("Cost so far\u2013 of $0.50")
    server.play(lambda: end_turn(log, cost=0.0312))
    expect(figure).to_have_text("Cost$0.03 of $0.50")
    expect(page.locator(".turn-end")).to_have_text("Turn 1  ·  42.3 s  ·  $0.03")
    server.play(lambda: log.add(p.TurnStartData(turn=2, prompt_size=4)))
    expect(figure).to_have_text("Cost so far$0.03 of $0.50")


def test_a_session_lost_with_its_service_says_so_once(server: PageServer, windows: Windows) -> None:
    log = server.log("lost")
    begin(log)
    why = "the agent ran locally, in a service that has ended, and the agent ended with it"
    log.say("adopted", reason="the service was restarted")
    log.add(p.ErrorData(error_type="sandbox", message=why))
    log.say("closed", reason="lost", error_type="sandbox", message=why, cost_usd=0.0)
    page = windows.open(server.session_url(log))
    expect(page.locator(".notice:visible")).to_have_text(
        [f"Lost when the service was restarted: {why}. Nothing of it goes on; a new session can be started."]
    )
    expect(page.locator(".scroller")).not_to_contain_text("the session goes on", use_inner_text=True)


def test_a_phone_closes_a_session_from_its_details(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log, phone=True)
    page.get_by_role("button", name="Details", exact=True).click()
    page.locator(".panel").get_by_role("button", name="Close session").click()
    page.get_by_role("dialog").get_by_role("button", name="Close session").click()
    expect(page.locator(".session-head .pill")).to_have_text("Closed")


def test_details_beside_the_transcript_do_not_come_to_lie_on_it(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    expect(page.locator(".panel")).to_be_visible()
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    expect(page.locator(".panel")).to_be_hidden()


def test_the_row_of_a_result_names_its_tool(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    page.get_by_label("Type of events").select_option("tool_result")
    expect(page.locator(".event-brief").first).to_have_text("Read · r1")


def test_a_phone_shows_that_the_filters_go_on(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.url, size=PHONE)
    filters = page.locator(".filters")
    expect(filters).to_have_class(re.compile("goes-on"))
    filters.evaluate("(row) => row.scrollTo(row.scrollWidth, 0)")
    expect(filters).not_to_have_class(re.compile("goes-on"))


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(server: PageServer, windows: Windows, log: Log, dark: bool) -> None:
    page = windows.open(server.session_url(log), dark=dark)
    expect(page.locator(".event-id").first).to_be_visible()
    ready(page, len(log.events))
    ratios = page.evaluate(
        """() => {
          const value = (colour) => {
            const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
              const c = part / 255;
              return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
          };
          const ground = (node) => {
            for (let at = node; at; at = at.parentElement) {
              const colour = getComputedStyle(at).backgroundColor;
              if (!/, 0\\)$/.test(colour)) return colour;
            }
            return 'rgb(255, 255, 255)';
          };
          const names = ['.prose p', '.verb', '.object', '.time', '.failure', '.verdict', '.pill',
            '.event-id', '.figure-label', 'button.primary', '.legend li'];
          return names.map((name) => {
            const node = document.querySelector(name);
            const [a, b] = [value(getComputedStyle(node).color), value(ground(node))];
            return [name, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
          });
        }"""
    )
    assert [(name, ratio) for name, ratio in ratios if ratio < 4.5] == []

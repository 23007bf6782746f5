"""The page follows a session's stream: live, replayed, reconnected, with gaps, and up to its end."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.page.logs import ask, begin, call, done, end_turn, text, work
from tests.support.browser import Windows, last_id, ready
from tests.support.page_server import Log, PageServer


@pytest.fixture
def log(server: PageServer) -> Log:
    log = server.log("session-1")
    begin(log)
    return log


def caught_up(page: Page, log: Log) -> None:
    ready(page, len(log.events))


def transcript(page: Page) -> str:
    return page.locator(".transcript").inner_text()


def test_live_and_replayed_sessions_look_the_same(server: PageServer, windows: Windows) -> None:
    log = server.log("session-1")
    live = windows.open(server.session_url(log))
    expect(live.locator(".session")).to_have_attribute("data-connection", "open")
    server.play(lambda: work(log))
    caught_up(live, log)
    replayed = windows.open(server.session_url(log))
    caught_up(replayed, log)
    assert transcript(live) == transcript(replayed)


def test_a_reload_in_the_middle_loses_nothing(server: PageServer, windows: Windows, log: Log) -> None:
    call(log, "b", "Bash", {"command": "ls"})
    ask(log, "x", "b", "Bash", {"command": "ls"})
    page = windows.open(server.session_url(log))
    expect(page.locator("[data-request=x]")).to_be_visible()
    page.reload()
    expect(page.locator("[data-request=x]")).to_be_visible()
    page.get_by_role("button", name="Allow once").click()
    server.play(lambda: done(log, "b", "a file"))
    caught_up(page, log)
    expect(page.locator(".tool .verb")).to_have_text("Ran")


def test_a_lost_connection_is_shown_and_taken_up_where_it_broke(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log))
    caught_up(page, log)
    before = last_id(page)
    server.close()
    expect(page.locator(".connection")).to_have_text("Connection lost, trying again")
    text(log, "Said while nobody listened.")
    server.open()
    caught_up(page, log)
    expect(page.locator(".connection")).to_be_hidden()
    expect(page.locator(".prose")).to_have_text("Said while nobody listened.")
    assert server.streams_opened[-1] == before


def test_text_is_shown_as_it_is_written(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log))
    caught_up(page, log)
    server.play(lambda: log.live("text_delta", text="I look <b>at", message_id="m1"))
    server.play(lambda: log.live("text_delta", text="</b> it\x1b[0m", message_id="m1"))
    expect(page.locator(".live-text")).to_have_text("I look <b>at</b> it⟨ESC⟩[0m")
    server.play(lambda: text(log, "I look at it.", message="m1"))
    expect(page.locator(".live-text")).to_be_hidden()
    expect(page.locator(".prose")).to_have_text("I look at it.")


def test_a_gap_is_told(server: PageServer, windows: Windows, log: Log) -> None:
    text(log, "Kept.")
    log.first_kept = len(log.events)
    page = windows.open(server.session_url(log))
    expect(page.locator(".notice.warn")).to_have_text(
        f"Events 1 to {len(log.events) - 1} are missing: they are no longer kept."
    )
    expect(page.locator(".prose")).to_have_text("Kept.")


def test_a_dropped_reader_comes_back_for_what_it_missed(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log))
    caught_up(page, log)

    def drop() -> None:
        log.live("dropped", reason="slow", after=len(log.events))
        for reader in log.readers:
            reader.put_nowait(None)

    server.play(drop)
    server.play(lambda: text(log, "After it."))
    caught_up(page, log)
    expect(page.locator(".prose")).to_have_text("After it.")


def test_a_session_that_is_over_is_not_asked_for_again(server: PageServer, windows: Windows, log: Log) -> None:
    page = windows.open(server.session_url(log))
    caught_up(page, log)

    def finish() -> None:
        end_turn(log)
        log.say("closed", reason="closed", cost_usd=0.0312, closed_by="ana")

    server.play(finish)
    expect(page.locator(".session")).to_have_attribute("data-connection", "over")
    expect(page.locator(".session-head .pill")).to_have_text("Closed")
    expect(page.locator(".over")).to_have_text("This session is over. Nothing more can be sent.")
    assert len(server.streams_opened) == 1


def test_a_session_that_is_not_there_says_so(server: PageServer, windows: Windows) -> None:
    page = windows.open(f"{server.url}/#/s/of-another-tenant")
    expect(page.get_by_role("heading", name="Not found")).to_be_visible()

"""The page's pure JavaScript modules in a browser: the reducer, hidden characters, diffs and texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from agent_runner.contract import protocol as p
from tests.page.logs import EDIT, RULE, ask, begin, call, done, end_turn, resolve, text, work
from tests.support.browser import Windows
from tests.support.page_server import Log, page_server


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    windows = Windows(browser)
    with page_server() as server:
        yield windows.open(f"{server.url}/icon.svg")
        windows.close()
    assert windows.complaints == []


def entries(log: Log) -> list[dict[str, Any]]:
    return [{"id": number, "event": event} for number, event in enumerate(log.events, 1)]


def reduced(page: Page, some: list[dict[str, Any]], view: str) -> Any:
    """Return the result of a JavaScript function for the reducer's state after these entries."""
    work = "const { initial, reduce } = await import('/model/reducer.js'); return (%s)(reduce(initial, entries));"
    return page.evaluate("async (entries) => { " + work % view + " }", some)


@pytest.mark.parametrize(
    ("when", "line"),
    [
        ("running", {"verb": "Giving its answer", "object": '{"number":4}'}),
        ("done", {"verb": "Gave its answer", "object": '{"number":4}'}),
    ],
)
def test_the_call_that_gives_the_answer_is_called_so(page: Page, when: str, line: dict[str, str]) -> None:
    script = "async (when) => (await import('/model/words.js')).toolLine('StructuredOutput', { number: 4 }, when)"
    assert page.evaluate(script, when) == line


def test_a_call_that_a_rule_denied_is_shown_as_denied_by_it(page: Page) -> None:
    log = Log("denied")
    begin(log)
    call(log, "b1", "Bash", {"command": "touch x"})
    done(log, "b1", "no", failed=True, error_type="permission_denied", denied_by="rule")
    view = "(s) => [s.segments.find((g) => g.kind === 'tool').outcome, s.items.at(-1).result.deniedBy]"
    assert reduced(page, entries(log), view) == ["denied", "rule"]


@pytest.fixture
def worked() -> Log:
    log = Log("worked")
    work(log)
    return log


def test_events_one_by_one_and_all_at_once_give_the_same_state(page: Page, worked: Log) -> None:
    same = page.evaluate(
        """async (entries) => {
          const { initial, reduce, reduceOne } = await import('/model/reducer.js');
          const plain = (state) => JSON.stringify(state, (key, value) => value instanceof Map ? [...value] : value);
          const single = entries.reduce((state, { event, id }) => reduceOne(state, event, id), initial);
          return plain(single) === plain(reduce(initial, entries));
        }""",
        entries(worked),
    )
    assert same is True


def test_the_reducer_changes_nothing_it_was_given(page: Page, worked: Log) -> None:
    states = page.evaluate(
        """async (entries) => {
          const { initial, reduceOne } = await import('/model/reducer.js');
          const plain = (state) => JSON.stringify(state, (key, value) => value instanceof Map ? [...value] : value);
          let state = initial;
          let changed = 0;
          for (const { event, id } of entries) {
            const before = plain(state);
            const next = reduceOne(state, event, id);
            if (plain(state) !== before) changed += 1;
            state = next;
          }
          return { changed, last: state.lastId };
        }""",
        entries(worked),
    )
    assert states == {"changed": 0, "last": len(worked.events)}


def test_an_event_that_comes_again_changes_nothing(page: Page, worked: Log) -> None:
    again = page.evaluate(
        """async (entries) => {
          const { initial, reduce } = await import('/model/reducer.js');
          const state = reduce(initial, entries);
          return reduce(state, entries) === state;
        }""",
        entries(worked),
    )
    assert again is True


def test_a_hole_in_the_numbers_is_told_not_skipped(page: Page, worked: Log) -> None:
    some = [entry for entry in entries(worked) if entry["id"] not in (7, 8)]
    view = "(s) => s.items.filter((i) => i.kind === 'gap').map((i) => [i.first, i.last])"
    assert reduced(page, some, view) == [[7, 8]]


def test_a_prompt_that_is_told_to_be_lost_later_is_one_prompt_and_does_not_begin(page: Page) -> None:
    log = Log("lost")
    log.say("prompt", turn_id="t1", text="Go", sent_by="ana")
    log.say("prompt", turn_id="t2", text="Look", attachments=[{"id": "a", "media_type": "image/png", "size": 1}])
    log.say("prompt", turn_id="t1", text="Go", sent_by="ana", error="not sent")
    log.add(p.TurnStartData(turn=1, prompt_size=4))
    view = "(s) => s.items.map((each) => [each.text, each.delivery, each.error, each.attachments.length])"
    assert reduced(page, entries(log), view) == [["Go", "unsent", "not sent", 0], ["Look", None, None, 1]]
    assert reduced(page, entries(log), "(s) => s.promptPlaces") == []


def test_the_status_follows_the_events(page: Page) -> None:
    log = Log("statuses")
    seen = ["starting"]

    def now() -> None:
        seen.append(reduced(page, entries(log), "(s) => s.status"))

    log.say("prompt", turn_id="t1", text="Go", sent_by="ana")
    now()
    begin(log)
    now()
    call(log, "b", "Bash", {"command": "ls"})
    ask(log, "x", "b", "Bash", {"command": "ls"})
    now()
    resolve(log, "x", "b", "allow")
    now()
    done(log, "b", "file")
    end_turn(log)
    now()
    log.say("closed", reason="failed", error_type="sandbox", message="gone", cost_usd=0.1)
    now()
    assert seen == ["starting", "starting", "running", "needs_you", "running", "running", "failed"]


def test_a_turn_that_ended_leaves_an_idle_session(page: Page, worked: Log) -> None:
    end_turn(worked, cost=0.02, total=0.05)
    worked.say("closed", reason="inactive", cost_usd=0.06)
    before = entries(worked)[:-1]
    assert reduced(page, before, "(s) => [s.status, s.costUsd]") == ["idle", 0.05]
    assert reduced(page, entries(worked), "(s) => [s.status, s.costUsd]") == ["closed", 0.06]


def test_each_subagent_has_a_lane_and_each_wait_a_segment(page: Page, worked: Log) -> None:
    view = (
        "(s) => ({ lanes: s.lanes.map((l) => l.label), segments: s.segments.map((g) => [g.lane, g.kind, g.outcome]) })"
    )
    state = reduced(page, entries(worked), view)
    assert state["lanes"] == ["Agent", "Find callers of total"]
    assert [segment for segment in state["segments"] if segment[0] == "a1"] == [
        ["a1", "model", None],
        ["a1", "tool", "ok"],
        ["a1", "model", None],
    ]
    assert ["", "wait", "allow"] in state["segments"]
    assert ["", "tool", "error"] in state["segments"]


def test_what_the_end_of_a_session_cuts_off_is_open_no_more(page: Page, worked: Log) -> None:
    call(worked, "last", "Bash", {"command": "sleep 600"})
    ask(worked, "w", "last", "Bash", {"command": "sleep 600"})
    worked.say("closed", reason="lost", cost_usd=0.0)
    view = "(s) => [s.segments.filter((g) => g.end === null).length, s.waiting.length, s.items.at(-2).isCut]"
    assert reduced(page, entries(worked), view) == [0, 0, True]


def test_a_new_message_answers_no_approval(page: Page, worked: Log) -> None:
    call(worked, "b", "Bash", {"command": "ls"})
    ask(worked, "x", "b", "Bash", {"command": "ls"})
    worked.say("prompt", turn_id="t2", text="yes, go on", sent_by="ana")
    assert reduced(page, entries(worked), "(s) => [s.status, s.waiting.map((w) => w.id)]") == ["needs_you", ["x"]]


def test_text_that_is_written_gives_way_to_the_whole_block(page: Page, worked: Log) -> None:
    delta = {"type": "text_delta", "ts": 1.0, "data": {"text": "Hel", "message_id": "m9"}}
    live = [
        *entries(worked),
        {"id": None, "event": delta},
        {"id": None, "event": {**delta, "data": {"text": "lo", "message_id": "m9"}}},
    ]
    assert reduced(page, live, "(s) => s.live.text") == "Hello"
    text(worked, "Hello.", message="m9")
    assert reduced(page, [*live, entries(worked)[-1]], "(s) => [s.live, s.items.at(-1).text]") == [None, "Hello."]


def test_an_unknown_event_is_kept_among_the_raw_ones(page: Page, worked: Log) -> None:
    worked.say("hologram", shape="cube")
    assert reduced(page, entries(worked), "(s) => [s.events.at(-1).event.type, s.lastId]") == [
        "hologram",
        len(worked.events),
    ]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain text\n\twith é, 漢字 and 👩‍👧 ❤️", "plain text\n\twith é, 漢字 and 👩‍👧 ❤️"),
        ("\x1b[31mred\x1b[0m", "⟨ESC⟩[31mred⟨ESC⟩[0m"),
        ("a\u202eb\u2066c", "a⟨U+202E⟩b⟨U+2066⟩c"),
        ("zero\u200bwidth\u200d\ufeff", "zero⟨U+200B⟩width⟨U+200D⟩⟨U+FEFF⟩"),
        ("\x00\x07\r\n\x7f\x9b", "⟨NUL⟩⟨BEL⟩⟨CR⟩\n⟨DEL⟩⟨U+009B⟩"),
        ("no\u00a0break \U000e0041tag \u2028line", "no⟨U+00A0⟩break ⟨U+E0041⟩tag ⟨U+2028⟩line"),
        ("\u3164filler\u00ad\ufe00", "⟨U+3164⟩filler⟨U+00AD⟩⟨U+FE00⟩"),
    ],
)
def test_what_would_not_be_seen_is_shown(page: Page, given: str, shown: str) -> None:
    found = page.evaluate("async (t) => (await import('/model/safe.js')).revealed(t)", given)
    assert found == shown


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        (None, "\u2013"),
        (0, "$0.00"),
        (0.00001, "$0.0001"),
        (0.0042, "$0.0042"),
        (0.00996, "$0.01"),
        (0.0604, "$0.06"),
        (123.456, "$123.46"),
    ],
)
def test_money_is_in_cents_but_where_it_is_less_than_one(page: Page, usd: float | None, shown: str) -> None:
    assert page.evaluate("async (usd) => (await import('/model/format.js')).money(usd)", usd) == shown


def test_a_message_that_no_turn_began_with_is_told_at_the_end(page: Page, worked: Log) -> None:
    worked.say("prompt", turn_id="t2", text="and then", sent_by="ana")
    view = "(s) => s.items.filter((i) => i.kind === 'prompt').map((i) => i.delivery)"
    assert reduced(page, entries(worked), view) == [None, "queued"]
    worked.say("closed", reason="closed", cost_usd=0.0)
    assert reduced(page, entries(worked), view) == [None, "unread"]


def test_a_diff_leads_from_the_old_text_to_the_new(page: Page) -> None:
    rows = page.evaluate("async (i) => (await import('/model/diff.js')).editOf('Edit', i).hunks[0].rows", EDIT)
    assert [row["text"] for row in rows if row["kind"] != "+"] == EDIT["old_string"].split("\n")[:-1]
    assert [row["text"] for row in rows if row["kind"] != "-"] == EDIT["new_string"].split("\n")[:-1]
    assert [row["kind"] for row in rows] == [" ", " ", "-", "+"]


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [("", "a\n", "+"), ("a\n", "", "-"), ("a\n", "a\nb\n", " +"), ("a", "a\n", " +"), ("", "", ""), ("\n", "", "-")],
)
def test_an_empty_line_after_the_last_is_none(page: Page, before: str, after: str, kinds: str) -> None:
    rows = page.evaluate("async ([a, b]) => (await import('/model/diff.js')).diffLines(a, b)", [before, after])
    assert "".join(row["kind"] for row in rows) == kinds


@pytest.mark.parametrize(
    ("suggestions", "rules"),
    [
        ([RULE], ["Bash(npm test:*)"]),
        ([{"type": "setMode", "mode": "acceptEdits", "destination": "session"}], ["all edits (mode acceptEdits)"]),
        ([RULE, {"type": "setMode", "mode": "acceptEdits"}], ["Bash(npm test:*)"]),
        ([{"type": "addDirectories", "directories": ["/srv"]}], ["directory /srv"]),
        (
            [{"type": "setMode", "mode": "acceptEdits"}, {"type": "addDirectories", "directories": ["/srv"]}],
            ["all edits (mode acceptEdits)", "directory /srv"],
        ),
        ([], []),
    ],
)
def test_the_rule_that_would_be_remembered_is_the_runners(page: Page, suggestions: list[Any], rules: list[str]) -> None:
    found = page.evaluate("async (s) => (await import('/model/words.js')).rememberedRules(s)", suggestions)
    assert found == rules


def test_the_parser_takes_a_stream_byte_by_byte(page: Page) -> None:
    begun = 'retry: 1000\n\n: heartbeat\n\nid: 7\ndata: {"a":"\u2028"}\r\n\r\n'
    stream = begun + "data: live\n\nid: 8\ndata: two\ndata: lines\n\n"
    found = page.evaluate(
        """async (stream) => {
          const { SseParser } = await import('/stream.js');
          const run = (chunks) => {
            const seen = [];
            const parser = new SseParser((message) => seen.push(message), () => seen.push('beat'));
            chunks.forEach((chunk) => parser.feed(chunk));
            return seen;
          };
          return [run([stream]), run([...stream])];
        }""",
        stream,
    )
    whole = ["beat", {"id": 7, "data": '{"a":"\u2028"}'}, {"id": None, "data": "live"}, {"id": 8, "data": "two\nlines"}]
    assert found == [whole, whole]


def test_every_event_of_the_protocol_is_taken(page: Page, worked: Log) -> None:
    worked.add(p.ErrorData(error_type="overloaded", message="busy", retryable=True))
    worked.add(p.LogData(stream="stderr", text="a line"))
    worked.add(p.QuestionRequestData(question_id="q", tool_use_id="none", questions=[], expires_at=worked.clock))
    worked.add(p.QuestionResolvedData(question_id="q", answers=None, decision="timeout", wait_ms=1.0))
    worked.add(p.EndData(reason="completed", exit_code=0))
    assert reduced(page, entries(worked), "(s) => s.lastId") == len(worked.events)

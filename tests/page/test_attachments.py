"""Files that go with a message: chosen, pasted and dropped on the page, uploaded, sent and shown."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.page.logs import begin, end_turn
from tests.support.browser import PHONE, Windows, ready
from tests.support.page_server import Log, PageServer
from tests.support.pictures import PDF, png

MEBIBYTE = 1024 * 1024

# A script cannot fill the clipboard or drag a file from outside the browser, so the page gets the browser's event.
GIVE = """
(form, [kind, files, text]) => {
  const data = new DataTransfer();
  for (const [name, content] of files) {
    data.items.add(new File([Uint8Array.from(atob(content), (each) => each.charCodeAt(0))], name));
  }
  if (text) data.setData("text/plain", text);
  const options = { bubbles: true, cancelable: true };
  const event = kind === "paste"
    ? new ClipboardEvent(kind, { ...options, clipboardData: data })
    : new DragEvent(kind, { ...options, dataTransfer: data });
  return form.dispatchEvent(event);
}
"""


@pytest.fixture
def log(server: PageServer) -> Log:
    log = server.log("session-1")
    begin(log)
    end_turn(log)
    return log


def opened(windows: Windows, server: PageServer, log: Log, **options: Any) -> Page:
    page = windows.open(server.session_url(log), **options)
    ready(page, len(log.events))
    return page


def give(form: Locator, kind: str, *files: tuple[str, bytes], text: str = "") -> bool:
    """Paste or drop files; return whether the browser would do what it does without the page."""
    return form.evaluate(GIVE, [kind, [(name, base64.b64encode(data).decode()) for name, data in files], text])


def choose(page: Page, *files: Path | dict[str, Any]) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Attach").click()
    chooser.value.set_files(list(files))  # pyright: ignore[reportArgumentType]


def chips(page: Page) -> Locator:
    return page.locator(".composer .attachment")


def names(sent: list[dict[str, Any]]) -> list[str]:
    return [each["name"] for each in sent]


def test_chosen_pasted_and_dropped_files_are_sent_with_a_message(
    server: PageServer, windows: Windows, log: Log, tmp_path: Path
) -> None:
    page = opened(windows, server, log)
    form = page.locator(".composer")
    notes = tmp_path / "notes ü.txt"
    notes.write_text("1, 2, 3")
    choose(page, notes)
    assert not give(form, "paste", ("shot.png", png()))
    assert not give(form, "dragover", ("plan.pdf", PDF))
    expect(form).to_have_class("composer dropping")
    assert not give(form, "drop", ("plan.pdf", PDF))
    expect(form).to_have_class("composer")
    expect(chips(page)).to_have_count(3)
    expect(chips(page).nth(0)).to_contain_text("notes ü.txt7 B")
    expect(chips(page).nth(1).locator("img")).to_be_visible()
    expect(chips(page).nth(2)).to_contain_text("PDF")
    page.get_by_label("Message to the agent").fill("Look at these")
    page.get_by_role("button", name="Send").click()
    prompt = page.locator(".prompt").last
    expect(prompt.locator(".attachment")).to_have_count(3)
    expect(chips(page)).to_have_count(0)
    sent = log.events[-1]["data"]["attachments"]
    assert names(sent) == ["notes ü.txt", "shot.png", "plan.pdf"]
    assert [data for _, data in server.files.values()] == [b"1, 2, 3", png(), PDF]
    picture = prompt.locator("img")
    expect(picture).to_have_count(1)
    page.wait_for_function("(each) => each.complete && each.naturalWidth === 8", arg=picture.element_handle())
    with page.expect_download() as download:
        prompt.get_by_role("link", name="notes ü.txt").click()
    assert download.value.suggested_filename == "notes ü.txt"
    assert download.value.path().read_text() == "1, 2, 3"


def test_a_message_is_written_to_its_files(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    give(page.locator(".composer"), "paste", ("shot.png", png()))
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_label("Message to the agent")).to_be_focused()
    assert log.turn_texts == []
    page.get_by_role("button", name="Remove shot.png").press("Enter")
    expect(page.get_by_role("button", name="Attach")).to_be_focused()
    expect(chips(page)).to_have_count(0)


def test_text_that_is_pasted_with_a_picture_of_it_stays_text(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    assert give(page.locator(".composer"), "paste", ("cells.png", png()), text="1\t2")
    expect(chips(page)).to_have_count(0)


def test_what_cannot_be_sent_is_told_before_it_is_sent(
    server: PageServer, windows: Windows, log: Log, tmp_path: Path
) -> None:
    page = opened(windows, server, log)
    contents = {"a.zip": b"PK\x03\x04\xff", "empty.txt": b"", "six.pdf": b"%PDF-" + b"x" * 6 * MEBIBYTE}
    for name, content in {**contents, "more.pdf": b"%PDF-" + b"x" * 5 * MEBIBYTE, "long.txt": b"x" * MEBIBYTE}.items():
        (tmp_path / name).write_bytes(content)
    choose(page, *(tmp_path / name for name in (*contents, "more.pdf", "long.txt")))
    problems = page.locator(".composer .attachment.problem")
    expect(problems).to_have_count(4)
    expect(problems.nth(0)).to_contain_text("It is no PNG, JPEG, GIF, WebP, PDF or UTF-8 text.")
    expect(problems.nth(1)).to_contain_text("It is empty.")
    expect(problems.nth(2)).to_contain_text("The files of a message may have 10.5 MB together.")
    expect(problems.nth(3)).to_contain_text("The texts of a message may have 524 kB together.")
    page.get_by_label("Message to the agent").fill("Look")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".notices")).to_contain_text("A file cannot be sent: remove it, or try again.")
    assert log.turn_texts == []
    for name in ("a.zip", "empty.txt", "more.pdf", "long.txt"):
        page.get_by_role("button", name=f"Remove {name}").click()
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".prompt").last).to_contain_text("six.pdf")
    assert [name for name, _ in server.files.values()] == ["six.pdf"]


def test_an_upload_is_waited_for_and_can_be_tried_again(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log)
    server.may_upload.clear()
    server.refuses_uploads = True
    give(page.locator(".composer"), "drop", ("shot.png", png()))
    expect(page.get_by_role("progressbar", name="Uploading shot.png")).to_be_visible()
    server.may_upload.set()
    expect(chips(page)).to_contain_text("The store cannot be reached.")
    expect(page.locator("#polite")).to_have_text("shot.png: The store cannot be reached.")
    server.refuses_uploads = False
    server.may_upload.clear()
    page.get_by_role("button", name="Try again").click()
    page.get_by_label("Message to the agent").fill("Look")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    assert log.turn_texts == []
    server.may_upload.set()
    expect(page.locator(".prompt").last.locator("img")).to_be_visible()
    assert log.turn_texts == ["Look"]


def test_a_new_session_takes_files(server: PageServer, windows: Windows) -> None:
    page = windows.open(server.url)
    page.get_by_role("button", name="New session").click()
    page.get_by_label("Prompt", exact=True).fill("Compare")
    give(page.locator("form.create"), "paste", ("shot.png", png()))
    choose(page, {"name": "plan.pdf", "mimeType": "application/pdf", "buffer": PDF})
    expect(page.locator("form.create .attachment")).to_have_count(2)
    page.get_by_role("button", name="Start session").click()
    expect(page.locator(".prompt .attachment")).to_have_count(2)
    assert server.created[0]["attachments"] == [{"file_id": "f1"}, {"file_id": "f2"}]


def test_an_attachment_that_is_gone_or_hostile_is_a_name(server: PageServer, windows: Windows) -> None:
    log = server.log("session-1")
    server.files["broken"] = "broken.png", b"\x89PNG\r\n\x1a\nnothing"
    gone = {"id": "gone", "name": "<b>\u202egnp.exe", "size": 10, "media_type": "image/png"}
    page_of = {"id": "../../me", "size": 10, "media_type": "text/html"}
    log.say("prompt", turn_id="t1", text="Look", attachments=[server.attachment("broken"), gone, page_of])
    page = opened(windows, server, log)
    links = page.locator(".prompt .attachment")
    expect(links).to_have_count(3)
    expect(page.locator(".prompt img")).to_have_count(0)
    expect(links.nth(1)).to_contain_text("<b>⟨U+202E⟩gnp.exe")
    assert links.nth(2).get_attribute("href") == "api/sessions/session-1/attachments/..%2F..%2Fme"


def test_a_prompt_that_was_not_sent_says_why_and_holds_nobody_up(server: PageServer, windows: Windows) -> None:
    log = server.log("session-1")
    begin(log)
    end_turn(log)
    why = "the prompt was not sent: its attachment 'a.png' is no longer stored; send it again"
    log.say("prompt", turn_id="t2", text="Look", error=why)
    page = opened(windows, server, log)
    prompt = page.locator(".prompt").last
    expect(prompt.locator(".delivery")).to_have_text("Not sent")
    expect(prompt).to_contain_text(why)
    expect(page.locator(".session-head .pill")).to_have_text("Idle")


def test_a_long_name_fits_a_phone(server: PageServer, windows: Windows, log: Log) -> None:
    page = opened(windows, server, log, size=PHONE)
    give(page.locator(".composer"), "drop", ("a-very-long-name-" * 8 + ".png", png()), ("plan.pdf", PDF))
    expect(chips(page)).to_have_count(2)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for chip in chips(page).all():
        box = chip.bounding_box()
        assert box is not None and box["x"] + box["width"] <= PHONE[0]

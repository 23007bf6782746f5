"""A real Chromium, whose windows fail a test on errors in their consoles."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

DESKTOP = (1440, 900)
PHONE = (390, 844)
WAIT_MS = 15_000
_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Generator[Browser]:
    """Run this machine's Chromium without a window until the end of the block."""
    program = shutil.which("chromium")
    assert program is not None, "chromium is not installed (Debian: apt-get install chromium fonts-dejavu-core)"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_ARGS)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Windows:
    """Opens windows, each with a browser context of its own, and collects the errors of their consoles."""

    browser: Browser
    complaints: list[str] = field(default_factory=list[str])
    _contexts: list[BrowserContext] = field(default_factory=list[BrowserContext])

    def open(self, url: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False, name: str | None = None) -> Page:
        """Open a window at an address; its decisions are recorded under ``name``."""
        scheme: Literal["dark", "light"] = "dark" if dark else "light"
        is_phone = size[0] < 600
        context = self.browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            has_touch=is_phone,
            device_scale_factor=2 if is_phone else 1,
            reduced_motion="reduce",
        )
        context.set_default_timeout(WAIT_MS)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.violatedDirective));"
            + (f"localStorage.setItem('sandspan.name', {name!r});" if name else "")
        )
        page.goto(url)
        return page

    def _heard(self, message: ConsoleMessage) -> None:
        # The browser's own remark on an answer such as 409, and on a server that is away, is no fault of the page.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.complaints.append(message.text)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


def ready(page: Page, last: int | None = None) -> None:
    """Wait until a session's page shows everything up to an event."""
    # Not by an expectation: while it fails, it describes all that is inside the element.
    if last is not None:
        page.wait_for_selector(f".session[data-last-id='{last}']")
    page.wait_for_selector(".transcript-box[data-ready=true]")


def last_id(page: Page) -> int:
    """Return the number of the last event that a session's page has processed."""
    value: Any = page.locator(".session").get_attribute("data-last-id")
    return int(value or 0)

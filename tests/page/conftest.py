"""A Chromium shared by a module's tests of the page; each test has its own server and windows without errors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import WAIT_MS, Windows, chromium
from tests.support.page_server import PageServer, page_server


# Not per session: its thread has a running event loop, in which other modules' async tests could not run.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with chromium() as started:
        yield started


@pytest.fixture
def windows(browser: Browser) -> Iterator[Windows]:
    opened = Windows(browser)
    yield opened
    opened.close()
    assert opened.complaints == []


@pytest.fixture
def server() -> Iterator[PageServer]:
    with page_server() as served:
        yield served

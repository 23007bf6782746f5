"""One Chromium for all tests of the page; each has its own server and windows, and none may complain."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browser import WAIT_MS, Windows, chromium
from tests.support.page_server import PageServer, page_server


# Not for the session: its thread has a running event loop meanwhile, and other tests could run none of theirs.
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

"""The page's speed, with limits that only another kind of page would exceed: first paint, 500 runs, 1,000 conversations.

`bench/page.py` measures the same.
"""

import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.chat import crowded
from tests.chat.pages import PHONE, SHORT, accessible, narrow, opened, say
from tests.chat.serve_process import Serve

pytestmark = pytest.mark.browser
PAINT = 2000  # milliseconds
SECONDS = 15.0  # of each thing that a person does


@pytest.fixture(scope="module")
def many(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of 501 runs."""
    base = tmp_path_factory.mktemp("many") / "base"
    shutil.copytree(trained, base)
    crowded.many_runs(base, "tiny")
    server = Serve(base)
    yield server.url
    server.end()


def test_the_first_paint_is_early(browser: Browser, many: str, tmp_path: Path) -> None:
    """With an empty data directory as with many runs, nothing of the page in the browser yet."""
    empty = Serve(tmp_path, "--allow-training")
    try:
        for url in (empty.url, many):
            assert statistics.median(crowded.first_paint(browser, url) for _ in range(5)) < PAINT
    finally:
        empty.end()


def test_five_hundred_runs(browser: Browser, many: str) -> None:
    with opened(browser, many, SHORT) as page:
        times = crowded.times_of_runs(page, many)
        assert max(times.values()) < SECONDS, times
    with opened(browser, many, SHORT, **PHONE) as page:
        page.goto(f"{many}#/runs")
        expect(page.locator("#runs tbody tr")).to_have_count(crowded.RUNS + 1)
        narrow(page)


def test_a_thousand_conversations(browser: Browser, many: str) -> None:
    with opened(browser, many, SHORT) as page:
        page.evaluate(crowded.STORE, [crowded.CONVERSATIONS, "tiny"])
        times = crowded.times_of_conversations(page, many)
        assert max(times.values()) < SECONDS, times
        assert page.locator("#conversations .day").first.inner_text() == "Today"
        said = crowded.timed(lambda: say(page, "still quick"))
        assert said < SECONDS
        accessible(page)

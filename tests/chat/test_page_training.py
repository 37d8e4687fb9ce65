"""A training run as the page shows it, from nothing to its model."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests import tiny
from tests.chat.pages import accessible, narrow, opened, say

pytestmark = pytest.mark.browser


def test_a_real_training_live(browser: Browser, tmp_path: Path) -> None:
    """Nothing, then a training from its first step to its last, then its model, without a reload. Both are processes of their own."""
    base, text, talks = tmp_path / "base", tiny.sentences(tmp_path / "text.txt"), tiny.chats(tmp_path / "talks.jsonl")
    server = tiny.start(base, "entrypoint.py", "serve", "--port", "0")
    training = None
    try:
        url = tiny.wait_for(server, "open http").split()[1].rstrip("/")
        with opened(browser, url, {"temperature": 0}) as page:
            expect(page.get_by_role("heading", name="There is no model yet")).to_be_visible()
            more = {"num_iterations": 2400, "sft_iterations": 20, "chat_data": talks, "sample_every": 60, "save_every": 800}
            training = tiny.start(base, "entrypoint.py", *tiny.flags(text, "live", **more))
            view = page.get_by_role("region", name="Training")
            expect(view.get_by_role("heading", name="live")).to_be_visible(timeout=90_000)
            expect(view.get_by_text("Your model is being trained.")).to_be_visible()
            expect(view.locator("polyline")).to_be_visible()
            before, curve = standing(page)
            expect(view.locator("dl.stats")).not_to_contain_text(f"{before} of 2,400")
            after, longer_curve = standing(page)
            assert after > before and longer_curve != curve  # it moves (a long curve is thinned: its number of points may not grow)
            expect(view.locator(".sample").first).to_contain_text("step", ignore_case=True)
            narrow(page)
            accessible(page)
            page.get_by_role("button", name="Talk to it").click(timeout=90_000)  # of the first checkpoint
            expect(page.get_by_role("heading", name="This model continues text")).to_be_visible()
            page.get_by_role("button", name=re.compile("Training [0-9]+%")).click()
            scale = "(svg) => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width"
            assert 0.9 < page.locator("#training svg.plot").evaluate(scale) < 1.2  # letters as large as meant, though it was drawn unseen
            page.get_by_role("button", name="New chat").click()
            expect(page.locator("#model")).to_have_text(re.compile("live", re.S))
            expect(page.get_by_role("heading", name="What shall we talk about?")).to_be_visible(timeout=300_000)  # and the fine-tuned one
            assert training.wait(60) == 0
            say(page, "cat")
            shown = page.locator(".assistant .body").inner_text()
            told = tiny.call(base, "entrypoint.py", "chat", "--prompt", "cat", "--temperature", "0").stdout
            assert shown.split() == told.split() != []  # a page shows two spaces as one
            page.get_by_role("button", name="Training", exact=True).click()
            expect(view.get_by_text("Finished in")).to_be_visible()
            expect(view.get_by_role("button", name="Report")).to_be_visible()
            page.get_by_role("button", name="Training", exact=True).click()
            page.reload()
            expect(page.locator(".message")).to_have_count(2)
    finally:
        for process in filter(None, (training, server)):
            process.terminate()
            process.wait(60)


def standing(page: Page) -> tuple[int, str]:
    """The step that the training view shows, and its curve's points."""
    step = page.locator("#training dl dd").first.inner_text().split()[0]
    return int(step), page.locator("#training polyline").first.evaluate("(line) => line.getAttribute('points')")

"""Screenshots for docs/ of a running server's page: `python -m scripts.screenshots URL chat|training|train|report`. Needs Chromium.

For `chat` the server needs the quickstart's model, for `training` a run in training beside it, for `train` --allow-training and an empty
data directory; for `report` URL is a run's report.html (file://...).
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

DOCS = Path(__file__).resolve().parent.parent / "docs"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1200, "height": 760}, "locale": "en-US", "color_scheme": "light"}
PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 720},
    "locale": "zh-TW",
    "color_scheme": "dark",
    "device_scale_factor": 1.5,
    "is_mobile": True,
    "has_touch": True,
}
PLANNED = 300_000  # milliseconds, for a plan that measures some steps
ASKED = {
    "desktop": ("What is 12 + 34?", "Sort these words: lively, observe, singer.", "Who are you?"),
    "phone": ("你是誰？", "What is 535 + 8897?", "你好，我是 Peter。"),
}


def take(browser: Browser, url: str, what: str, name: str, options: dict[str, Any]) -> None:
    """Take a screenshot of a conversation or a run in training."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.add_init_script("localStorage['nanochat.settings'] ??= JSON.stringify({temperature: 0})")
    page.goto(url)
    if what == "chat":
        for text in ASKED[name]:
            say(page, text)
    elif what == "train":
        page.locator(".launch .primary").filter(has_text=re.compile(r"\d")).wait_for(timeout=PLANNED)
        page.locator(".train-more summary").click()
        page.locator(".plan dl").wait_for(timeout=PLANNED)
    else:
        page.locator("#training-pill").click()
        page.locator("#training polyline").first.wait_for()
        page.mouse.move(0, 0)
    page.screenshot(path=DOCS / f"{what}-{name}.png")
    context.close()


def say(page: Page, text: str) -> None:
    """Send a message and wait for its answer."""
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")
    page.locator(".message.assistant").last.locator(".again").wait_for(state="attached")


def main(url: str, what: str) -> None:
    """Take screenshots of `what` on a desktop (light, English) and on a phone (dark, Chinese), of a report only on a desktop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        if what == "report":
            page = browser.new_page(viewport={"width": 960, "height": 1100})
            page.goto(url)
            page.screenshot(path=DOCS / "report.png")
            return
        take(browser, url, what, "desktop", DESKTOP)
        take(browser, url, what, "phone", PHONE)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Screenshots for docs/images/ of a running server's page: `python -m scripts.screenshots URL VIEW`. Needs Chromium.

VIEW is chat (with the quickstart's model), tokens (with one of fewer steps, which is unsure), training (beside a run in training), train
(with --allow-training and an empty data directory), compare/RUN/OTHER, or report (URL is a run's report.html, file://...). Each is taken on
a desktop in English and in Chinese, and on a phone in Chinese; a report once.
"""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1200, "height": 760}, "locale": "en-US", "color_scheme": "light"}
PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 720},
    "locale": "zh-TW",
    "color_scheme": "dark",
    "device_scale_factor": 1.5,
    "is_mobile": True,
    "has_touch": True,
}
VARIANTS = {"desktop": DESKTOP, "desktop.zh-TW": DESKTOP | {"locale": "zh-TW"}, "phone": PHONE}
PLANNED = 300_000  # milliseconds, for a plan that measures some steps
ENGLISH = ("What is 12 + 34?", "Sort these words: lively, observe, singer.", "Who are you?")
CHINESE = ("你是誰？", "What is 535 + 8897?", "你好，我是 Peter。")


def take(browser: Browser, url: str, view: str, variant: str, options: dict[str, Any]) -> None:
    """Take a screenshot of a view."""
    context = browser.new_context(**options)
    page = context.new_page()
    what, *runs = view.split("/")
    settings = "{temperature: 0, probabilities: true}" if what == "tokens" else "{temperature: 0}"
    page.add_init_script(f"localStorage['nanochat.settings'] ??= JSON.stringify({settings})")
    page.goto(f"{url}/#/compare/{'/'.join(runs)}" if runs else url)
    if what == "chat":
        for text in CHINESE if options["locale"] == "zh-TW" else ENGLISH:
            say(page, text)
    elif what == "tokens":
        say(page, "Who are you?")
        page.locator(".show-tokens").click()
        page.locator(".token.open, .token.unlikely").first.click()
        page.locator(".token-card table").scroll_into_view_if_needed()
    elif what == "train":
        page.locator(".launch .primary").filter(has_text=re.compile(r"\d")).wait_for(timeout=PLANNED)
        page.locator(".train-more summary").click()
        page.locator(".plan dl").wait_for(timeout=PLANNED)
        if variant != "phone":  # there the plan would hide all else
            page.locator(".train button").last.scroll_into_view_if_needed()
    elif what == "compare":
        page.locator("#runs figure polyline").nth(1).wait_for()
    else:
        page.locator("#training-pill").click()
        page.locator("#training polyline").first.wait_for()
    page.mouse.move(0, 0)
    page.screenshot(path=IMAGES / f"{what}-{variant}.png")
    context.close()


def say(page: Page, text: str) -> None:
    """Send a message and wait for its answer."""
    page.locator("#message").fill(text)
    page.keyboard.press("Enter")
    page.locator(".message.assistant").last.locator(".again").wait_for(state="attached")


def main(url: str, view: str) -> None:
    """Take the screenshots of a view."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        if view == "report":
            page = browser.new_page(viewport={"width": 960, "height": 1100})
            page.goto(url)
            page.screenshot(path=IMAGES / "report.png")
            return
        for variant, options in VARIANTS.items():
            take(browser, url, view, variant, options)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])

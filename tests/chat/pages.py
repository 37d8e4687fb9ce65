"""The page in headless Chromium, watched: every test ends with no request beyond its server and no error in the console."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from nanochat.chat.loading import LoadedModel
from nanochat.model.build import build_model
from nanochat.model.scaling import GPTConfig
from nanochat.tokenizer.tokenizer import Tokenizer

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), "")
DESKTOP = {"width": 1280, "height": 800}
LONG = {"temperature": 0, "max_tokens": 4000}
SHORT = {"temperature": 0, "max_tokens": 12}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}

expect.set_options(timeout=20_000)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, or the test is skipped with the reason."""
    if not CHROMIUM:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, settings: dict[str, Any] | None = None, errors: str | None = None, **context: Any) -> Iterator[Page]:
    """The page of the server at `url`, with these sampling settings. `errors` is a pattern of console messages that are expected."""
    one = browser.new_context(**{"viewport": DESKTOP, "locale": "en-US"} | context)
    page = one.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    if settings is not None:
        page.add_init_script(f"localStorage['nanochat.settings'] ??= {json.dumps(json.dumps(settings))}")
    page.goto(url)
    yield page
    one.close()
    assert {request for request in asked if not request.startswith((url, "data:"))} == set()
    assert [text for text in said if not (errors and re.search(errors, text))] == [], said


def message(page: Page) -> Locator:
    """The field that a message is typed into."""
    return page.get_by_label("Message", exact=True)


def say(page: Page, text: str) -> None:
    """Send a message and wait for the whole answer."""
    count = page.locator(".message.assistant").count()
    message(page).fill(text)
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant")).to_have_count(count + 1)
    done(page)


def done(page: Page) -> None:
    """Wait for the end of the answer."""
    expect(page.locator(".message.assistant").last.get_by_role("button", name="Answer again")).to_be_attached()


def accessible(page: Page) -> None:
    """axe finds nothing serious: contrast, names, roles, focus, landmarks."""
    page.evaluate("Promise.all(document.getAnimations().filter((one) => one.transitionProperty).map((one) => one.finished))")
    found = Axe().run(page).response["violations"]
    serious = [(rule["id"], rule["impact"], [node["html"][:200] for node in rule["nodes"]]) for rule in found]
    assert [rule for rule in serious if rule[1] in ("serious", "critical")] == [], serious


def narrow(page: Page) -> None:
    """Nothing is wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("window.innerWidth")
    wide = "[...document.querySelectorAll('body *')].filter((one) => one.scrollWidth > one.clientWidth + 1 && one.checkVisibility()"
    wide += " && !['visible', 'hidden', 'clip'].includes(getComputedStyle(one).overflowX) && !one.closest('pre, .wide-table, input'))"
    assert page.evaluate(f"{wide}.map((one) => one.outerHTML.slice(0, 100))") == []


def parrot(*phrases: str, context: int = 512) -> LoadedModel:
    """A model that says nothing but `phrases`, over and over."""
    tokens = [bytes([b]) for b in range(256)] + [phrase.encode() + b" %d " % copy for copy in range(12) for phrase in phrases]
    tokenizer = Tokenizer(tokens)
    shape: dict[str, Any] = {"depth": 1, "dim": 64, "n_head": 2, "n_kv_head": 1, "head_dim": 32}
    model = build_model(GPTConfig(vocab_size=tokenizer.vocab_size, max_seq_len=context, **shape))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[256 : len(tokens)].normal_(generator=torch.Generator().manual_seed(1))
    return LoadedModel("parrot", "sft", 1, model, tokenizer, True, False, 1000, 2)

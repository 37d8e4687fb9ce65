"""The page's controls: keyboard, settings, copying, phones, languages, the API key."""

import re
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from nanochat.chat.middleware import Limits
from tests.chat.pages import LONG, PHONE, SHORT, accessible, message, narrow, opened, parrot, say
from tests.chat.serving import KEY, Running, loaded_model, running

pytestmark = pytest.mark.browser


def test_by_keyboard_alone(browser: Browser, server: Running) -> None:
    with opened(browser, server.url, LONG) as page:
        keys = page.keyboard
        expect(message(page)).to_be_focused()
        keys.type("one")
        keys.press("Shift+Enter")
        keys.type("two")
        keys.press("Enter")
        expect(page.locator(".assistant .body")).to_have_text(re.compile(".{5}", re.S))
        keys.press("Escape")
        expect(page.locator(".assistant .note")).to_have_text("Stopped")
        assert page.locator(".user .text").inner_text() == "one\ntwo"
        expect(message(page)).to_be_focused()
        keys.press("ArrowUp")
        expect(page.get_by_label("Edit your message")).to_be_focused()
        keys.press("Escape")
        expect(page.get_by_label("Edit your message")).to_have_count(0)
        keys.press("/")
        expect(message(page)).to_be_focused()
        keys.press("Control+Shift+O")
        expect(page.locator(".message")).to_have_count(0)
        expect(message(page)).to_be_focused()
        # A word that is still being composed (as Chinese is typed) is not sent by the Enter that ends it.
        compose = "(one) => one.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true}))"
        keys.type("nǐ")
        message(page).evaluate(compose)
        assert message(page).input_value() == "nǐ"
        # Everything can be reached, and shows that it is.
        page.evaluate("document.activeElement.blur(); document.querySelector('#skip').focus()")
        names = []
        for _ in range(14):
            focused = "(document.activeElement.ariaLabel || document.activeElement.textContent || document.activeElement.id).trim()"
            names.append(page.evaluate(focused))
            outline = "document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== 'none'"
            assert page.evaluate(outline), names[-1]
            keys.press("Tab")
        assert {"Skip to the message", "New chat", "one two", "Training", "Settings", "繁體中文", "Keyboard shortcuts"} <= set(names), names
        page.locator("#open-help").focus()
        keys.press("Enter")
        expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
        accessible(page)
        keys.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)


def test_settings(browser: Browser, server: Running) -> None:
    with opened(browser, server.url) as page:
        bodies: list[Any] = []
        page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
        page.get_by_role("button", name="Settings").click()
        accessible(page)
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Longest answer").fill("5")
        page.get_by_label("Seed").fill("7")
        page.get_by_label("Top-k").fill("-3")  # cannot be: the old value stays
        expect(page.get_by_text("A number from 0 to 1000")).to_be_visible()
        page.get_by_label("System message").fill("Be kind.")
        page.get_by_role("button", name="Done").click()
        page.reload()
        say(page, "hello")
        sampling = {"temperature": 0, "top_p": 1, "top_k": 50, "max_tokens": 5, "seed": 7, "stream": True}
        sampling |= {"stream_options": {"include_usage": True}}
        assert bodies == [{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}], **sampling}]
        expect(page.locator(".note")).to_have_text("The answer reached its longest length.")
        page.get_by_role("button", name="Settings").click()
        page.get_by_role("button", name="Reset").click()
        expect(page.get_by_label("Seed")).to_have_value("")
        page.get_by_role("button", name="Done").click()
        for colours in ("light", "dark"):
            page.get_by_role("button", name="Colours").click()
            assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == colours
            accessible(page)


def test_copying(browser: Browser, server: Running) -> None:
    with opened(browser, server.url, SHORT, permissions=["clipboard-read", "clipboard-write"]) as page:
        say(page, "copy <me>")
        page.locator(".user").hover()
        page.locator(".user").get_by_role("button", name="Copy the message").click()
        expect(page.locator("#announcer")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == "copy <me>"
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")  # as on plain http from another machine
        page.locator(".assistant").get_by_role("button", name="Copy the message").click()
        expect(page.locator(".assistant .glyph path").first).to_have_attribute("d", re.compile("^M5 13"))
        assert page.evaluate("navigator.clipboard.readText()") != "copy <me>"


def test_on_a_phone(browser: Browser) -> None:
    phrases = ("word " * 30, "W" * 200, "| a | b | c | d | e | f |\n|-|-|-|-|-|-|\n", "```\n" + "code " * 60 + "\n```\n")
    with running(parrot(*phrases)) as server, opened(browser, server.url, {"max_tokens": 40, "seed": 1}, **PHONE) as page:
        narrow(page)
        accessible(page)
        say(page, "L" * 400)
        narrow(page)
        page.get_by_role("button", name="Open the menu").tap()
        expect(page.get_by_role("button", name="New chat")).to_be_in_viewport()
        page.wait_for_timeout(300)
        accessible(page)
        narrow(page)
        page.get_by_role("button", name="Settings").tap()
        narrow(page)
        accessible(page)
        page.get_by_role("button", name="Done").tap()
        page.get_by_role("button", name="Training").tap()
        expect(page.locator("#training").get_by_role("heading")).not_to_have_count(0)
        narrow(page)
        accessible(page)


def test_traditional_chinese(browser: Browser, server: Running) -> None:
    with opened(browser, server.url, SHORT, locale="zh-TW") as page:
        assert page.evaluate("document.documentElement.lang") == "zh-Hant-TW"
        expect(page.get_by_role("heading", name="今天想聊什麼？")).to_be_visible()
        page.get_by_role("button", name="你是誰？").click()
        expect(page.get_by_role("button", name="重新回答")).to_be_visible()
        accessible(page)
        page.get_by_role("button", name="設定").click()
        expect(page.get_by_text("回答長度上限")).to_be_visible()
        page.get_by_role("button", name="完成").click()
        page.get_by_role("button", name="English").click()
        expect(page.get_by_role("button", name="Answer again")).to_be_visible()
        page.reload()
        assert page.evaluate("document.documentElement.lang") == "en"


def test_a_key(browser: Browser) -> None:
    with running(loaded_model(), Limits(api_key=KEY)) as server, opened(browser, server.url, SHORT, errors="401") as page:
        dialog = page.get_by_role("dialog", name="This server asks for a key")
        expect(dialog).to_be_visible()
        accessible(page)
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Enter it").click()
        page.get_by_label("API key").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("The server did not accept that key.")).to_be_visible()
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_have_count(0)
        say(page, "hello")
        page.reload()
        say(page, "the key is still known")
        assert page.evaluate("Object.values(localStorage).join()").count(KEY) == 0

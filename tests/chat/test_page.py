"""The page in a real browser, against a real server: conversations and what disturbs them. The fixtures are conftest.py's."""

import json
import re

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.chat.pages import LONG, SHORT, accessible, done, message, opened, say
from tests.chat.serving import Running, loaded_model, running

pytestmark = pytest.mark.browser


def test_a_conversation(page: Page) -> None:
    expect(page.get_by_role("heading", name="What shall we talk about?")).to_be_visible()
    page.get_by_role("button", name="Who are you?").click()
    done(page)
    first = page.locator(".message.assistant .body").inner_text()
    assert first.strip()
    say(page, "and you?\nsecond line")
    expect(page.locator(".message")).to_have_count(4)
    assert page.locator(".user .text").last.inner_text() == "and you?\nsecond line"
    expect(page.locator("#announcer")).to_contain_text("Answer: ")

    page.reload()  # the history is the browser's
    expect(page.locator(".message")).to_have_count(4)
    assert page.locator(".message.assistant .body").first.inner_text() == first
    expect(page.get_by_role("navigation").get_by_role("button", name="Who are you?", exact=True)).to_have_attribute("aria-current", "page")

    page.get_by_role("button", name="New chat").click()
    say(page, "another")
    expect(page.locator("#conversations .row")).to_have_count(2)
    page.get_by_role("navigation").get_by_role("button", name="Who are you?", exact=True).click()
    expect(page.locator(".message")).to_have_count(4)


def test_rename_delete_undo(page: Page) -> None:
    say(page, "name me")
    page.get_by_role("button", name="Rename: name me").click()
    page.get_by_label("Title of the conversation").fill("my own title")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="my own title")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="my own title")).to_be_visible()
    page.get_by_role("button", name="Delete: my own title").click()
    expect(page.locator("#conversations .row")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".message")).to_have_count(2)
    page.get_by_role("button", name="Delete: my own title").click()
    page.reload()
    expect(page.locator("#conversations .row")).to_have_count(0)


def test_stop_edit_and_answer_again(browser: Browser, server: Running) -> None:
    with opened(browser, server.url, LONG) as page:
        message(page).fill("tell me everything")
        page.keyboard.press("Enter")
        expect(page.locator(".assistant .body")).to_have_text(re.compile(".{30}", re.S))
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator(".assistant .note")).to_have_text("Stopped")
        assert server.idle()  # the server has stopped, too
        stopped = page.locator(".assistant .body").inner_text()
        page.wait_for_timeout(300)
        assert page.locator(".assistant .body").inner_text() == stopped

        page.evaluate(f"localStorage.setItem('nanochat.settings', '{json.dumps(SHORT)}')")
        page.reload()
        expect(page.locator(".assistant .note")).to_have_text("Stopped")
        page.get_by_role("button", name="Answer again").click()
        done(page)
        again = page.locator(".assistant .body").inner_text()
        assert again != stopped and stopped.startswith(again[:5])

        say(page, "second")
        page.locator(".user").first.hover()
        page.locator(".user").first.get_by_role("button", name="Edit").click()
        editor = page.get_by_label("Edit your message")
        assert editor.input_value() == "tell me everything"
        editor.fill("tell me less")
        page.get_by_role("button", name="Send again").click()
        expect(page.locator(".message")).to_have_count(2)
        done(page)
        assert page.locator(".user .text").inner_text() == "tell me less"
        page.get_by_role("button", name="Undo").click()  # what the edit removed
        expect(page.locator(".message")).to_have_count(4)
        assert page.locator(".user .text").first.inner_text() == "tell me everything"


def test_editing_an_answer_under_way(browser: Browser, server: Running) -> None:
    with opened(browser, server.url, LONG) as page:
        for text in ("first", "second"):
            message(page).fill(text)
            page.keyboard.press("Enter")
            expect(page.locator(".assistant .body").last).to_have_text(re.compile(".{5}", re.S))
            if text == "first":
                page.keyboard.press("Escape")
        page.locator(".user").first.hover()
        page.locator(".user").first.get_by_role("button", name="Edit").click()
        page.get_by_label("Edit your message").fill("changed")
        page.keyboard.press("Enter")
        expect(page.locator(".message")).to_have_count(2)
        expect(page.locator(".assistant .body")).to_have_text(re.compile(".{30}", re.S))
        expect(
            page.get_by_role("button", name="Stop", exact=True)
        ).to_be_visible()  # of the new answer, though the old one's end came later
        page.get_by_role("button", name="Undo").click()
        expect(page.locator(".message")).to_have_count(4)
        assert server.idle()
        page.reload()
        assert page.locator(".user .text").all_inner_texts() == ["first", "second"]


def test_a_history_beyond_the_context(browser: Browser) -> None:
    with running(loaded_model(context=128)) as server, opened(browser, server.url, {"temperature": 0, "max_tokens": 20}, "400") as page:
        for turn in range(4):
            say(page, f"{turn} this is a message of some length")
        expect(page.locator(".divider")).to_contain_text("no longer fit the model's 128 tokens")
        forgotten = page.locator(".forgotten").count()
        assert 2 <= forgotten <= 6 and forgotten % 2 == 0
        sent = page.evaluate("document.querySelector('.divider').previousElementSibling.classList.contains('forgotten')")
        assert sent and page.locator(".divider + .user:not(.forgotten)").count() == 1
        accessible(page)
        message(page).fill("x" * 300)
        page.keyboard.press("Enter")
        expect(page.locator(".error")).to_contain_text("too long for the model, which reads 128 tokens")
        page.locator(".user").last.get_by_role("button", name="Edit").click()
        page.get_by_label("Edit your message").fill("short")
        page.keyboard.press("Enter")
        done(page)
        expect(page.locator(".error")).to_have_count(0)


def test_busy_broken_and_gone(browser: Browser) -> None:
    with running(loaded_model()) as server, opened(browser, server.url, SHORT, errors="429|ERR_|503") as page:
        answers = [
            {"status": 429, "headers": {"Retry-After": "2"}, "json": {"error": {"message": "full", "code": "queue_full"}}},
            {"status": 200, "content_type": "text/event-stream", "body": 'data: {"choices": [{"delta": {"content": "half an"}}]}\n\n'},
        ]
        page.route("**/v1/chat/completions", lambda route: route.fulfill(**answers.pop(0)) if answers else route.continue_())
        message(page).fill("hello")
        page.keyboard.press("Enter")
        expect(page.locator(".assistant .note")).to_contain_text("The server is busy. Trying again in")
        expect(page.locator(".assistant .error")).to_contain_text("The connection broke off")
        assert page.locator(".assistant .body").inner_text() == "half an"
        page.get_by_role("button", name="Try again").click()  # the real server answers
        done(page)
        expect(page.locator(".assistant .error")).to_have_count(0)
        page.context.set_offline(True)
        message(page).fill("are you there?")
        page.keyboard.press("Enter")
        expect(page.locator(".assistant .error")).to_contain_text("The server does not answer. Is it still running?")
        accessible(page)
        page.context.set_offline(False)
        page.get_by_role("button", name="Try again").click()
        done(page)
        expect(page.locator(".message")).to_have_count(4)


def test_models_of_other_kinds(browser: Browser) -> None:
    with running(None) as server, opened(browser, server.url) as page:
        expect(page.get_by_role("heading", name="There is no model yet")).to_be_visible()
        expect(page.locator("#training pre")).to_contain_text("quickstart")
        accessible(page)
        server.scheduler.serve(loaded_model(chats=False, trial=True, name="half"))
        expect(page.get_by_role("heading", name="This model continues text")).to_be_visible()
        expect(page.locator("#model")).to_contain_text("half")
        expect(page.locator("#model .badge").first).to_have_text("trial")
        page.evaluate(f"localStorage.setItem('nanochat.settings', '{json.dumps(SHORT)}')")
        page.reload()
        page.get_by_role("button", name="Once upon a time").click()
        done(page)
        assert page.locator(".assistant .text").inner_text().strip()
        accessible(page)


def test_two_tabs_and_a_full_storage(page: Page) -> None:
    say(page, "in both")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".message")).to_have_count(2)
    say(page, "more")
    expect(other.locator(".message")).to_have_count(4)
    other.get_by_role("button", name="Delete: in both").click()
    expect(page.locator("#conversations .row")).to_have_count(0)
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }")
    page.get_by_role("button", name="New chat").click()
    say(page, "kept in memory")
    expect(page.get_by_role("alert")).to_contain_text("storage is full")
    say(page, "and it goes on")

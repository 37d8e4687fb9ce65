"""The page in a real browser, against a real server: conversations, what is hostile in them, keys, phones, languages, errors."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, Route, expect

from nanochat.chat.middleware import Limits
from nanochat.chat.scheduler import Served
from nanochat.chat.server import WEB
from nanochat.model.build import build_model
from nanochat.model.scaling import GPTConfig
from nanochat.tokenizer.tokenizer import Tokenizer
from tests import tiny
from tests.chat.pages import PHONE, accessible, chromium, done, narrow, opened, say
from tests.chat.serving import KEY, Running, running, served

pytestmark = pytest.mark.browser

LONG = {"temperature": 0, "max_tokens": 4000}
SHORT = {"temperature": 0, "max_tokens": 12}
HOSTILE = (
    '<img src=x onerror="window.hurt=1">',
    "<script>window.hurt=1</script>",
    "[x](javascript:window.hurt=1)",
    "![x](https://example.org/x.png)",
    "<style>*{display:none}</style>",
    "\n```html\n</code></pre><svg onload=window.hurt=1>\n```\n",
    '| <a href="javascript:window.hurt=1">x</a> |\n|-|\n',
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A model whose answers never end by themselves."""
    with running(served(context=4096)) as one:
        yield one


@pytest.fixture
def page(browser: Browser, server: Running) -> Iterator[Page]:
    with opened(browser, server.url, SHORT) as one:
        yield one


def parrot(*phrases: str, context: int = 512) -> Served:
    """A model that says nothing but `phrases`, over and over."""
    tokens = [bytes([b]) for b in range(256)] + [phrase.encode() + b" %d " % copy for copy in range(12) for phrase in phrases]
    tokenizer = Tokenizer(tokens)
    shape: dict[str, Any] = {"depth": 1, "dim": 64, "n_head": 2, "n_kv_head": 1, "head_dim": 32}
    model = build_model(GPTConfig(vocab_size=tokenizer.vocab_size, max_seq_len=context, **shape))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[256 : len(tokens)].normal_(generator=torch.Generator().manual_seed(1))
    return Served("parrot", "sft", 1, model, tokenizer, True, False, 1000, 2)


def message(page: Page):
    return page.get_by_label("Message", exact=True)


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
    expect(page.locator("#conversations li")).to_have_count(2)
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
    with running(served(context=128)) as server, opened(browser, server.url, {"temperature": 0, "max_tokens": 20}, "400") as page:
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


def test_hostile_text_stays_text(browser: Browser) -> None:
    with running(parrot(*HOSTILE)) as server, opened(browser, server.url, {"temperature": 2, "max_tokens": 300, "seed": 3}) as page:
        for prompt in HOSTILE:
            say(page, prompt)
        page.get_by_role("button", name="Rename: " + HOSTILE[0]).click()
        page.get_by_label("Title of the conversation").fill(HOSTILE[1])
        page.keyboard.press("Enter")
        page.reload()
        expect(page.locator(".message")).to_have_count(2 * len(HOSTILE))
        answers = "".join(page.locator(".message.assistant").all_inner_texts())
        assert all(part in answers for part in ('<img src=x onerror="window.hurt=1">', "<script>", "javascript:", "</code></pre><svg"))
        assert HOSTILE[0] in page.locator(".message.user").first.inner_text()
        assert page.title() == HOSTILE[1] + " · NanoChat"
        assert page.evaluate("window.hurt") is None
        inside = page.locator("#messages").locator("img, script, style, iframe, form, [onerror], [onload], [style], a[href^=javascript]")
        assert inside.count() == 0
        page.get_by_role("button", name="New chat").click()


def test_the_calculator_is_shown(browser: Browser) -> None:
    """Calls reach the page as such, and go back to the server with the history."""
    bodies: list[Any] = []

    def reply(route: Route) -> None:
        bodies.append(route.request.post_data_json)
        deltas = [{"content": "It is "}, {"calculator": {"expression": "12+34", "result": "46"}}, {"content": "46, <b>not</b> "}]
        deltas += [{"calculator": {"expression": "1/0", "result": None}}, {"content": "more."}]
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ['data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n']
        route.fulfill(content_type="text/event-stream", body=": hello\n\n" + "".join(lines) + "data: [DONE]\n\n")

    with running(served()) as server, opened(browser, server.url) as page:
        page.route("**/v1/chat/completions", reply)
        say(page, "12 + 34?")
        expect(page.locator(".chip")).to_have_count(2)
        assert page.locator(".chip").all_inner_texts() == ["12+34\n=\n46", "1/0\n=\nno result"]
        shown = " ".join(page.locator(".assistant .body").inner_text().split())
        assert shown == "It is 12+34 = 46 46, <b>not</b> 1/0 = no result more."
        say(page, "again")
        assert bodies[1]["messages"][1]["content"] == [
            {"type": "text", "text": "It is "},
            {"type": "python", "text": "12+34"},
            {"type": "python_output", "text": "46"},
            {"type": "text", "text": "46, <b>not</b> "},
            {"type": "python", "text": "1/0"},
            {"type": "text", "text": "more."},
        ]
        page.unroute("**/v1/chat/completions")
        say(page, "and the real server takes that history")


MARKDOWN = {
    "a **b** *c* ~~d~~ `e*f*`": "<p>a <strong>b</strong> <em>c</em> <del>d</del> <code>e*f*</code></p>",
    "snake_case_name 2*3*4 a * b": "<p>snake_case_name 2<em>3</em>4 a * b</p>",
    "# T\ntext\nmore": "<h4>T</h4><p>text<br>more</p>",
    "- a\n- b\n  - c\n\n1. d": "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul></li><li><p>d</p></li></ul>",
    "3. a\n4. b": '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>',
    "> q\n> r\n\n---": "<blockquote><p>q<br>r</p></blockquote><hr>",
    "|a|b|\n|-|-|\n|1|2|": "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>",
    "```py\nx = '<b>'\n": "<span>py</span><pre><code>x = '&lt;b&gt;'\n</code></pre>",
    "[t](https://e.org/a) [u](data:x)": "<p><a>t</a> [u](data:x)</p>",
    r"\*a\* **open": "<p>*a* **open</p>",
}


def test_markdown(page: Page) -> None:
    draw = """async (source) => {
        const { Markdown } = await import("/web/markdown.js");
        const whole = document.createElement("div"), grown = document.createElement("div");
        const make = (node) => new Markdown(node, () => "", () => "");
        make(whole).update(source);
        const one = make(grown);
        for (let end = 0; end <= source.length; end++) one.update(source.slice(0, end));  // as it streams
        return [whole.innerHTML, grown.innerHTML];
    }"""
    for source, expected in MARKDOWN.items():
        whole, grown = page.evaluate(draw, source)
        assert whole == grown
        plain = re.sub(r'<div[^>]*>|</div>|<header>|</header>| tabindex="0"| (?:href|target|rel)="[^"]*"', "", whole)
        assert plain.replace("\n</code>", "</code>") == expected.replace("\n</code>", "</code>"), source
    # Nothing makes it slow: each of these is quadratic or worse in a careless parser.
    for bomb in ("*a " * 9000, "[" * 30000, "`" * 20000, "> " * 15000, "- " * 15000, "|" * 9000 + "\n" + "-" * 20000, "**a*b_c~~" * 3000):
        took = page.evaluate(
            """async (source) => {
                const { Markdown } = await import("/web/markdown.js");
                const began = performance.now();
                new Markdown(document.createElement("div"), () => "", () => "").update(source);
                return performance.now() - began;
            }""",
            bomb,
        )
        assert took < 5000, bomb[:10]


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
        expect(page.get_by_role("heading", name="No training is running")).to_be_visible()
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
    with running(served(), Limits(api_key=KEY)) as server, opened(browser, server.url, SHORT, errors="401") as page:
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


def test_busy_broken_and_gone(browser: Browser) -> None:
    with running(served()) as server, opened(browser, server.url, SHORT, errors="429|ERR_|503") as page:
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
        expect(page.locator("#notice")).to_contain_text("Trying again")
        accessible(page)
        page.context.set_offline(False)
        expect(page.locator("#notice")).to_be_hidden()
        page.get_by_role("button", name="Try again").click()
        done(page)
        expect(page.locator(".message")).to_have_count(4)


def test_models_of_other_kinds(browser: Browser) -> None:
    with running(None) as server, opened(browser, server.url) as page:
        expect(page.get_by_role("heading", name="There is no model yet")).to_be_visible()
        expect(page.locator("#training pre")).to_contain_text("quickstart")
        accessible(page)
        server.scheduler.serve(served(chats=False, trial=True, name="half"))
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


def test_the_texts_are_whole_and_no_module_parses_html() -> None:
    texts = (WEB / "i18n.js").read_text(encoding="utf-8")
    english, chinese = (
        re.findall(r"^  (\w+): (\(?)", part, re.M) for part in re.findall(r"^const (?:EN|ZH) = \{(.*?)^\};", texts, re.M | re.S)
    )
    assert english == chinese and len(english) > 80
    sources = {path.name: path.read_text(encoding="utf-8") for path in WEB.iterdir()}
    used = re.findall(r'\bt\("(\w+)"|data-(?:text|label|placeholder)="(\w+)"', "".join(sources.values()))
    assert {first or second for first, second in used} <= {key for key, _ in english}
    for name, source in sources.items():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|\beval\b|style=|\son\w+=\"|https?://(?!www\.w3\.org/2000/svg)\w",
            source,
        ), name


def test_a_real_training_live(browser: Browser, tmp_path: Path) -> None:
    """Nothing, then a training from its first step to its last, then its model, without a reload. Both are processes of their own."""
    base, text, talks = tmp_path / "base", tiny.sentences(tmp_path / "text.txt"), tiny.chats(tmp_path / "talks.jsonl")
    server = tiny.start(base, "entrypoint.py", "serve", "--port", "0")
    training = None
    try:
        url = tiny.wait_for(server, "open http").split()[1].rstrip("/")
        with opened(browser, url, {"temperature": 0}) as page:
            expect(page.get_by_role("heading", name="There is no model yet")).to_be_visible()
            more = {"num_iterations": 900, "sft_iterations": 20, "chat_data": talks, "sample_every": 20, "save_every": 60}
            training = tiny.start(base, "entrypoint.py", *tiny.flags(text, "live", **more))
            view = page.get_by_role("region", name="Training")
            expect(view.get_by_role("heading", name="live")).to_be_visible(timeout=90_000)
            expect(view.get_by_text("Your model is being trained.")).to_be_visible()
            expect(view.locator("polyline")).to_be_visible()
            before, curve = standing(page)
            expect(view.locator("dl")).not_to_contain_text(f"{before} of 900")
            after, longer_curve = standing(page)
            assert after > before and longer_curve != curve  # it moves (a long curve is thinned: its number of points may not grow)
            expect(view.locator(".sample").first).to_contain_text("step", ignore_case=True)
            narrow(page)
            accessible(page)
            page.get_by_role("button", name="Talk to it").click(timeout=90_000)  # the first checkpoint
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
            expect(page.get_by_role("heading", name="No training is running")).to_be_visible()
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

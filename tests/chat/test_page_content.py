"""What messages may hold, on the page: hostile text, calculator calls, Markdown; and the texts of the page itself."""

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from nanochat.chat.server import WEB
from tests.chat.pages import opened, parrot, say
from tests.chat.serving import loaded_model, running

pytestmark = pytest.mark.browser

HOSTILE = (
    '<img src=x onerror="window.hurt=1">',
    "<script>window.hurt=1</script>",
    "[x](javascript:window.hurt=1)",
    "![x](https://example.org/x.png)",
    "<style>*{display:none}</style>",
    "\n```html\n</code></pre><svg onload=window.hurt=1>\n```\n",
    '| <a href="javascript:window.hurt=1">x</a> |\n|-|\n',
)


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

    with running(loaded_model()) as server, opened(browser, server.url) as page:
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
    "- a\n- b\n  - c\n\n1. d": '<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p></li></ul></li></ul><ol start="1"><li><p>d</p></li></ol>',
    "1. a\n2. b\n- c\n- d": '<ol start="1"><li><p>a</p></li><li><p>b</p></li></ol><ul><li><p>c</p></li><li><p>d</p></li></ul>',
    "- [x] a\n- [ ] b": '<ul><li><input type="checkbox" disabled="" checked="" aria-label="Done"><p>a</p></li>'
    '<li><input type="checkbox" disabled="" aria-label="Not done"><p>b</p></li></ul>',
    "|a|b|c|\n|:-|:-:|-:|\n|1|2|3|": "<table><thead><tr><th>a</th><th>b</th><th>c</th></tr></thead>"
    "<tbody><tr><td>1</td><td>2</td><td>3</td></tr></tbody></table>",
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
        plain = re.sub(r'<div[^>]*>|</div>|<header>|</header>| tabindex="0"| (?:href|target|rel|dir|class)="[^"]*"', "", whole)
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


def test_the_page_is_light() -> None:
    """Everything that it loads, uncompressed."""
    assert sum(path.stat().st_size for path in WEB.iterdir()) < 200_000


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

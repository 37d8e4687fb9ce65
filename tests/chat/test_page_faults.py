"""What once went wrong on the page: each of these tests failed before its fault was mended."""

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from nanochat.chat.suggestions import suggestions
from nanochat.evaluation.results import SUMMARY, write_part
from tests.chat.pages import LONG, PHONE, SHORT, accessible, done, message, narrow, opened, parrot, say
from tests.chat.serving import Running, loaded_model, running

pytestmark = pytest.mark.browser

FEW = 2
MANY = 40


def stored(page: Page, messages: list[Any], name: str = "c0ffee", title: str = "kept") -> None:
    """Open a conversation that this browser has kept."""
    value = {"id": name, "title": title, "updated": 1.7e12, "messages": messages}
    page.evaluate("([key, value]) => localStorage.setItem(key, value)", [f"nanochat.conversation.{name}", json.dumps(value)])
    page.goto(f"{page.url.partition('#')[0]}#{name}")
    page.reload()
    expect(page.locator("#title")).to_have_text(title)


def asked(text: str) -> dict[str, Any]:
    return {"role": "user", "text": text}


def told(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "parts": [{"type": "text", "text": text}] if text else [], "finish": "stop"} | more


def turns(count: int) -> list[Any]:
    return [one for number in range(count) for one in (asked(f"question {number}"), told(f"answer {number} " * 20))]


def inside(inner: Locator, outer: Locator) -> bool:
    """Whether the two cover a common part of the window."""
    a, b = inner.bounding_box(), outer.bounding_box()
    assert a and b
    apart = a["x"] + a["width"] <= b["x"] or b["x"] + b["width"] <= a["x"]
    return not (apart or a["y"] + a["height"] <= b["y"] or b["y"] + b["height"] <= a["y"])


def test_only_the_last_message_can_be_tried_again(page: Page) -> None:
    failed = {"role": "assistant", "parts": [], "error": {"kind": "network", "message": ""}}
    stored(page, [asked("first"), failed, asked("second"), told("the newest answer")])
    expect(page.locator(".message.assistant .error")).to_have_count(1)
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)  # it would delete the newest answer
    stored(page, [asked("first"), failed], "beef")
    page.get_by_role("button", name="Try again").click()
    done(page)
    expect(page.locator(".message")).to_have_count(2)


@pytest.mark.parametrize("way", ["list", "reload", "training"])
def test_a_conversation_opens_at_its_end(page: Page, way: str) -> None:
    stored(page, turns(MANY))
    if way == "list":
        page.get_by_role("button", name="New chat").click()
        page.get_by_role("navigation").get_by_role("button", name="kept", exact=True).click()
    elif way == "training":
        page.get_by_role("button", name="Training", exact=True).click()
        page.get_by_role("button", name="Training", exact=True).click()
    expect(page.locator(".message.assistant").last).to_be_in_viewport()
    expect(page.get_by_role("button", name="To the newest message")).to_be_hidden()
    page.locator("#scroll").evaluate("(one) => one.scrollTo(0, 0)")
    jump = page.get_by_role("button", name="To the newest message")
    expect(jump).to_be_visible()
    accessible(page)
    jump.click()
    expect(page.locator(".message.assistant").last).to_be_in_viewport()
    expect(jump).to_be_hidden()


def test_training_pressed_again_returns_to_the_conversation(page: Page) -> None:
    say(page, "keep me")
    training = page.get_by_role("button", name="Training", exact=True)
    training.click()
    expect(page.locator("#training")).to_be_visible()
    training.click()
    expect(page.locator("#title")).to_have_text("keep me")
    expect(page.locator(".message")).to_have_count(2)
    expect(message(page)).to_be_focused()


def test_a_reader_who_scrolls_up_is_left_alone(browser: Browser, server: Running) -> None:
    with opened(browser, server.url, LONG) as page:
        stored(page, turns(MANY))
        message(page).fill("more")
        page.keyboard.press("Enter")
        expect(page.locator(".message.assistant").last.locator(".body")).not_to_be_empty()
        place = "document.querySelector('#scroll').scrollTop"
        page.locator("#scroll").hover()
        # While it follows, the position only grows: one that is smaller is the reader's.
        page.evaluate(
            """() => {
                const scroll = document.querySelector("#scroll");
                let last = scroll.scrollTop;
                scroll.addEventListener("scroll", () => {
                    window.wentUp ||= scroll.scrollTop < last;
                    last = scroll.scrollTop;
                });
            }"""
        )
        before = page.evaluate(place)
        page.mouse.wheel(0, -30)  # a little: less than what once counted as the end
        page.wait_for_function("window.wentUp")
        up = page.evaluate(place)
        page.wait_for_timeout(500)
        assert page.evaluate(place) <= up
        page.get_by_role("button", name="To the newest message").click()
        page.wait_for_function(f"{place} > {before}")  # and follows again
        page.keyboard.press("Escape")


@pytest.mark.parametrize("parts", [[], [{"type": "text", "text": " \n"}]])
def test_an_empty_answer_says_so(page: Page, parts: list[Any]) -> None:
    stored(page, [asked("hm"), told("", parts=parts)])
    expect(page.locator(".message.assistant")).to_contain_text("The model ended its answer at once")
    accessible(page)
    page.get_by_role("button", name="Try again").click()
    done(page)
    expect(page.locator(".message.assistant .body")).not_to_be_empty()


def test_another_checkpoint_is_announced_in_the_transcript(browser: Browser) -> None:
    with running(loaded_model()) as server, opened(browser, server.url, SHORT) as page:
        say(page, "one")
        say(page, "two")
        expect(page.locator(".swap")).to_have_count(0)
        newer = loaded_model(seed=1)
        newer.step = 8
        server.scheduler.serve(newer)
        expect(page.locator(".swap")).to_have_text("From here on, another checkpoint answers: tiny, fine-tuning step 8")
        expect(page.locator("#announcer")).to_contain_text("another checkpoint answers")
        say(page, "three")
        expect(page.locator(".swap")).to_have_count(1)
        order = page.locator("#messages > li").evaluate_all("(all) => all.map((one) => one.classList[1])")
        assert order == ["user", "assistant", "user", "assistant", "user", "swap", "assistant"]
        page.reload()
        expect(page.locator(".swap")).to_have_count(1)
        accessible(page)


def test_a_message_does_not_cover_the_composer(page: Page) -> None:
    for size in ({"width": 1280, "height": 800}, {"width": 360, "height": 640}):
        page.set_viewport_size(size)
        stored(page, turns(FEW))
        if size["width"] < 800:
            page.get_by_role("button", name="Open the menu").click()
            page.wait_for_timeout(300)  # it slides in
        page.get_by_role("button", name="Delete: kept").click(force=True)
        toast = page.locator("#toast")
        expect(toast).to_be_visible()
        assert not inside(toast, page.locator("#composer")) and not inside(toast, page.locator("#send"))


@pytest.mark.parametrize("size", [(1366, 768), (1280, 600), (360, 640)])
def test_the_settings_fit_the_window(page: Page, size: tuple[int, int]) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.evaluate("document.querySelector('#open-settings').click()")
    expect(page.get_by_role("button", name="Done")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("heading", name="Settings")).to_be_in_viewport(ratio=1)
    accessible(page)
    page.get_by_label("System message").scroll_into_view_if_needed()
    expect(page.get_by_label("System message")).to_be_in_viewport(ratio=1)


def test_a_table_on_a_phone_keeps_its_words_whole(browser: Browser, server: Running) -> None:
    table = "| language | meaning of the word | example sentence |\n|:-|:-:|-:|\n| Chinese | understanding | extraordinary circumstances |"
    with opened(browser, server.url, SHORT, **PHONE) as page:
        stored(page, [asked("a table"), told(table)])
        heights = page.locator("th").evaluate_all("(all) => all.map((one) => one.getClientRects().length && one.clientHeight)")
        assert max(heights) < 90, heights  # a few lines, not one for each letter
        assert page.locator("td").evaluate_all("(all) => all.map((one) => getComputedStyle(one).textAlign)") == ["start", "center", "end"]
        narrow(page)


def test_right_to_left_text(page: Page) -> None:
    stored(page, [asked("שלום"), told("مرحبا\n\n- مرحبا\n\n# hello")], title="שלום")
    for place in (".user .text", ".assistant .body p", ".assistant li", "#title", "#conversations .row span"):
        assert page.locator(place).first.evaluate("(one) => getComputedStyle(one).direction") == "rtl", place
    assert page.locator(".assistant h4").evaluate("(one) => getComputedStyle(one).direction") == "ltr"
    message(page).fill("שלום")
    assert message(page).evaluate("(one) => getComputedStyle(one).direction") == "rtl"


def test_the_focus_stays_in_the_list_after_a_deletion(page: Page) -> None:
    for name in ("a", "b", "c"):
        stored(page, turns(1), name, f"title {name}")
    focused = "document.activeElement.title || document.activeElement.id"
    for left in (2, 1):
        page.locator("#conversations .delete").first.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#conversations .row")).to_have_count(left)
        assert page.evaluate(focused).startswith("title")
    page.locator("#conversations .delete").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "new-chat"


def test_what_a_finger_touches_is_large_enough(browser: Browser, server: Running) -> None:
    small = """[...document.querySelectorAll('button, input:not([type=range]):not([type=checkbox]), textarea, select, summary')]
        .filter((one) => one.checkVisibility({visibilityProperty: true}))
        .map((one) => [one.getBoundingClientRect(), one.id || one.title || one.textContent])
        .filter(([box]) => box.width < 44 || box.height < 44).map(([box, name]) => [name, box.width, box.height])"""
    with opened(browser, server.url, SHORT, **PHONE) as page:
        assert page.evaluate(small) == []
        stored(page, [*turns(1), asked("x"), told("```\ncode\n```"), asked("y"), told("")])
        assert page.evaluate(small) == []
        page.get_by_role("button", name="Open the menu").tap()
        page.wait_for_timeout(300)
        assert page.evaluate(small) == []
        page.get_by_role("button", name="Settings").tap()
        assert page.evaluate(small) == []
        page.get_by_role("button", name="Done").tap()
        page.get_by_role("button", name="Training").tap()
        assert page.evaluate(small) == []


def test_one_banner_for_one_offline(browser: Browser) -> None:
    with running(loaded_model()) as server, opened(browser, server.url, SHORT, errors="ERR_") as page:
        page.context.set_offline(True)
        message(page).fill("hello")
        page.keyboard.press("Enter")
        expect(page.locator(".assistant .error")).to_be_visible()
        page.wait_for_timeout(2500)  # the next look at the server has failed too
        assert page.locator(".error:visible, #notice:visible").count() == 1
        page.get_by_role("button", name="Training", exact=True).click()
        expect(page.locator("#notice")).to_contain_text("Trying again")
        page.context.set_offline(False)
        expect(page.locator("#notice")).to_be_hidden()


def test_suggestions_are_the_runs_own_questions(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    assert suggestions(run) == []
    items = [("weak", "Never asked?"), *[("strong", f"Which one is {n}?") for n in range(3)], ("long", "x" * 200), ("fair", "你好嗎？")]
    items += [(f"skill {n}", f"Question {n}") for n in range(4)]
    lines = [json.dumps({"skill": skill, "prompt": prompt, "answer": "a"}) for skill, prompt in items]
    (run / "heldout.jsonl").write_text("\n".join(lines) + "\n")
    by_skill = {"weak": 0.0, "strong": 0.9, "long": 1.0, "fair": 0.5} | {f"skill {n}": 0.1 for n in range(4)}
    write_part(run, SUMMARY, {"scores": {"by_skill": {name: {"trained": value} for name, value in by_skill.items()}}})
    with running(loaded_model()) as server, opened(browser, server.url, SHORT) as page:
        buttons = page.locator(".suggestions button")
        expect(buttons).to_have_text(["Which one is 0?", "你好嗎？", "Question 0", "Question 1"])
        buttons.nth(1).click()
        done(page)
        expect(page.locator(".user .text")).to_have_text("你好嗎？")
    (run / "heldout.jsonl").write_text("{\n" + "[" * 100_000)
    assert suggestions(run) == []


def test_nothing_to_talk_to_before_the_first_checkpoint(browser: Browser) -> None:
    state = {"run": "new", "stage": "base", "step": 3, "steps": 9, "measure": "loss", "value": 3.0, "bpb": None, "tokens_per_second": 10.0}
    state |= {"seconds_left": 60, "alive": True, "trial": False, "checkpoint": None, "curve": [], "samples": []}
    with running(parrot("hello")) as server, opened(browser, server.url, SHORT) as page:

        def reply(route: Any) -> None:
            response = route.fetch()
            route.fulfill(response=response, json=response.json() | {"training": state})

        page.route("**/api/training", reply)
        page.reload()
        page.get_by_role("button", name="Training 33%").click()
        expect(page.get_by_role("heading", name="new")).to_be_visible()
        expect(page.get_by_role("button", name="Talk to it")).to_have_count(0)
        state["checkpoint"] = {"stage": "base", "step": 2}
        expect(page.get_by_role("button", name="Talk to it")).to_be_visible()

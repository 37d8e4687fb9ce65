"""The end of a training, the runs, the checkpoints and the live view, in a real browser against a real server."""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, Route, expect

from nanochat.report.collect import write_report
from tests.chat.pages import SHORT, accessible, done, message, narrow, opened, say
from tests.chat.serve_process import Serve
from tests.chat.serving import loaded_model, running

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def two(trained: Path) -> Iterator[str]:
    """The address of a server with two runs, of which one has held-out scores."""
    runs = trained / "runs"
    shutil.copytree(runs / "tiny", runs / "second <b>")
    config = runs / "second <b>" / "config.toml"
    config.write_text(config.read_text().replace('run = "tiny"', 'run = "second <b>"'))
    config.write_text(re.sub(r"^seed = \d+", "seed = 5", config.read_text(), flags=re.M))
    results = json.loads((runs / "second <b>" / "evaluation.json").read_text())
    row = {"untrained": 0.0, "trained": 0.75, "items": 8}
    results["summary"] |= {"scores": row | {"by_skill": {"addition": row}}, "samples": [{"prompt": "Who?", "answer": "I am <i>two</i>."}]}
    (runs / "second <b>" / "evaluation.json").write_text(json.dumps(results))
    other = json.loads((runs / "tiny" / "evaluation.json").read_text())
    other["summary"]["samples"] = [{"prompt": "Who?", "answer": "I am one."}]
    (runs / "tiny" / "evaluation.json").write_text(json.dumps(other))
    (runs / "second <b>" / "metrics.jsonl").touch()  # it is the newest one
    write_report(runs / "second <b>")
    server = Serve(trained)
    yield server.url
    server.end()
    shutil.rmtree(runs / "second <b>")


def test_the_end_of_a_training(browser: Browser, two: str) -> None:
    with opened(browser, two, SHORT) as page:
        page.get_by_role("button", name="Training", exact=True).click()
        view = page.get_by_role("region", name="Training")
        expect(view.get_by_role("heading", name="second <b>")).to_be_visible()
        expect(view.get_by_label("Held-out score: 0.0% before training, 75.0% after it")).to_be_visible()
        expect(view.locator("polyline")).to_have_count(2)
        expect(view.get_by_role("row", name="addition")).to_contain_text("75.0%")
        expect(view.get_by_text("I am <i>two</i>.")).to_be_visible()
        accessible(page)
        view.get_by_role("button", name="Report").click()
        expect(page.locator("#runs").get_by_text("nanochat train --profile cpu")).to_be_visible()
        assert page.url.endswith("#/runs/second%20%3Cb%3E")
        with page.expect_download() as download:
            page.get_by_role("button", name="Save the report as a file").click()
        assert "<main>" in download.value.path().read_text(encoding="utf-8")
        accessible(page)
        page.get_by_role("button", name="Compare").click()
        expect(page.get_by_role("checkbox", name="Compare second <b>")).to_be_checked()
        page.get_by_role("button", name="Training", exact=True).click()
        view.get_by_role("button", name="Talk to it").click()
        expect(page.locator("#model")).to_contain_text("second <b>")
        say(page, "cat")


def test_runs_over_each_other(browser: Browser, two: str) -> None:
    with opened(browser, two, SHORT) as page:
        page.get_by_role("button", name="Runs", exact=True).click()
        region = page.get_by_role("region", name="Runs")
        expect(region.get_by_role("heading", name="2 runs")).to_be_visible()
        expect(region.locator("tbody tr")).to_have_count(2)
        expect(region.get_by_role("row", name="second <b>")).to_contain_text("75.0%")
        button = region.get_by_role("button", name="Tick two or more")
        expect(button).to_be_disabled()
        for name in ("tiny", "second <b>"):
            region.get_by_role("checkbox", name=f"Compare {name}").focus()
            page.keyboard.press("Space")  # by keyboard alone
        page.keyboard.press("Shift+Tab")
        accessible(page)
        region.get_by_role("button", name="Compare 2 runs").press("Enter")
        expect(region.locator("figure").first.locator("polyline")).to_have_count(2)
        expect(region.get_by_role("row", name="seed")).to_contain_text("5")
        expect(region.locator(".side-by-side blockquote")).to_have_text(["tinyI am one.", "second <b>I am <i>two</i>."])
        accessible(page)
        page.reload()
        expect(region.locator(".side-by-side")).to_be_visible()
        page.set_viewport_size({"width": 360, "height": 740})
        page.reload()
        expect(region.locator(".side-by-side")).to_be_visible()
        narrow(page)
        page.go_back()
        expect(region.get_by_role("heading", name="2 runs")).to_be_visible()


def test_a_checkpoint_is_chosen_and_another_answers_beside_it(browser: Browser, two: str) -> None:
    with opened(browser, two, SHORT) as page:
        bodies: list[Any] = []
        page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
        say(page, "one")
        page.locator("#model").click()
        dialog = page.get_by_role("dialog", name="Model")
        expect(dialog.locator(".models button")).not_to_have_count(1)
        expect(dialog.locator(".card")).to_contain_text("256 tokens")
        accessible(page)
        dialog.get_by_label("Filter the checkpoints").fill("tiny:sft:1")
        dialog.get_by_role("button", name="tiny fine-tuning · Step 1").press("Enter")
        expect(dialog.locator(".card")).to_contain_text("tiny")
        dialog.get_by_role("button", name="Done").click()
        expect(page.locator(".swap")).to_contain_text("tiny, fine-tuning step 1")
        say(page, "two")
        assert bodies[-1]["model"] == "tiny:sft:1" and "model" not in bodies[0]
        page.locator("#model").click()
        dialog.get_by_label("Second answer from").select_option("tiny:base:6")
        dialog.get_by_role("button", name="Done").click()
        say(page, "three")
        assert {bodies[-1]["model"], bodies[-2]["model"]} == {"tiny:sft:1", "tiny:base:6"}
        heads = page.locator(".message.assistant").last.locator("h4")
        expect(heads).to_have_text(["tiny, fine-tuning step 1", "tiny, pretraining step 6"])
        expect(page.locator(".other .body")).not_to_be_empty()
        second = page.locator(".other .body").inner_text()
        accessible(page)
        page.get_by_role("button", name="Keep the second answer").click()
        expect(page.locator(".versions")).to_contain_text("2/2")
        assert page.locator(".message.assistant").last.locator(".body").inner_text() == second
        page.reload()
        expect(page.locator("#model")).to_contain_text("tiny")
        expect(page.locator(".versions")).to_contain_text("2/2")


def reply(page: Page, state: dict[str, Any]) -> None:
    """Answer /api/training with `state` on top of what the server says."""

    def route(one: Route) -> None:
        with contextlib.suppress(Error):  # the test may have ended meanwhile
            response = one.fetch()
            one.fulfill(response=response, json=response.json() | state)

    page.route("**/api/training", route)


def live() -> dict[str, Any]:
    """A training at step 400 of 1000, with 200 of fine-tuning to come."""
    steps = range(10, 401, 10)
    curve = [{"stage": "base", "step": n, "value": 6 - n / 100 + (n // 10 % 2) / 2, "lr": 0.1, "tokens_per_second": 900.0} for n in steps]
    said = [(n, prompt) for n in (100, 200, 300, 400) for prompt in ("The sky", "A cat")]
    return {
        "run": "live",
        "stage": "base",
        "step": 400,
        "steps": 1000,
        "measure": "loss",
        "value": 2.0,
        "bpb": 1.2,
        "tokens": 409_600,
        "tokens_per_second": 900.0,
        "seconds_left": 960,
        "stage_seconds_left": 720,
        "cpu_others": 0.62,
        "elapsed_seconds": 480.0,
        "alive": True,
        "trial": False,
        "checkpoint": None,
        "curve": curve,
        "validation": [{"stage": "base", "step": n, "bpb": 2 - n / 500} for n in (200, 400)],
        "samples": [{"stage": "base", "step": n, "prompt": prompt, "text": f"said at {n}"} for n, prompt in said],
        "stages": [{"stage": "base", "steps": 1000}, {"stage": "sft", "steps": 200}],
    }


def test_the_live_view(browser: Browser) -> None:
    with running(loaded_model()) as server, opened(browser, server.url, SHORT) as page:
        state: dict[str, Any] = {"training": live(), "last": "live"}
        reply(page, state)
        page.reload()
        page.get_by_role("button", name="Training 33%").click()
        assert page.title().startswith("33% · ")
        view = page.get_by_role("region", name="Training")
        expect(view.locator("[aria-current=step]")).to_have_text("pretraining")
        expect(view.locator(".stepper li")).to_have_text(["pretraining", "fine-tuning", "evaluation"])
        expect(view.locator(".stepper")).to_contain_text("16 min left in all")
        expect(view.locator(".stats")).to_contain_text("other programs use 62% of the CPU")
        axis = view.locator(".plot .step").all_text_contents()
        assert axis[0] == "0" and axis[-1] in ("1,000", "1,200"), axis  # to the planned end of the last stage
        box = view.locator("polyline").first.bounding_box()
        plot = view.locator("svg.plot").bounding_box()
        assert box and plot and box["width"] < 0.4 * plot["width"]  # the curve has come a third of the way
        assert view.locator("circle.dot.bpb").count() == 2
        view.locator("svg.plot").hover(position={"x": plot["width"] * 0.2, "y": 100})
        expect(view.locator(".reading")).to_contain_text("Loss ")
        assert "Step" in view.locator(".reading").inner_text()
        view.locator("svg.plot").focus()
        page.keyboard.press("Home")
        expect(view.locator(".reading")).to_have_text("Step 10 · Loss 6.400")
        page.keyboard.press("ArrowRight")
        expect(view.locator(".reading")).to_have_text("Step 20 · Loss 5.800")
        rough = view.locator("polyline").first.get_attribute("points")
        view.get_by_label("Smoothing").select_option("0.9")
        assert view.locator("polyline").first.get_attribute("points") != rough
        for tab in ("Bits per byte", "Tokens/s", "Learning rate"):
            view.get_by_role("tab", name=tab).click()
            expect(view.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
            expect(view.locator("polyline")).to_have_count(1)
        page.keyboard.press("ArrowRight")
        expect(view.get_by_role("tab", name="Loss")).to_be_focused()
        slider = view.get_by_label("Step of the sample")
        expect(view.locator(".sample")).to_contain_text("said at 400")
        slider.focus()
        page.keyboard.press("Home")
        expect(view.locator(".sample")).to_contain_text("said at 100")
        view.get_by_label("Prompt of the samples").select_option("The sky")
        expect(view.locator(".sample .prompt")).to_have_text("The sky")
        page.wait_for_timeout(2500)  # another look at the server: what was chosen stays
        expect(view.get_by_label("Smoothing")).to_have_value("0.9")
        accessible(page)
        state["training"] |= {"step": 120_400, "steps": 121_400}
        expect(view.locator(".stats")).to_contain_text("120,400 of 121,400")
        for width in (1280, 900, 360):
            page.set_viewport_size({"width": width, "height": 740})
            narrow(page)
            boxes = "[...document.querySelectorAll('.stats div')]"
            assert page.evaluate(f"{boxes}.filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.innerText)") == []


def test_a_training_that_ends_while_the_page_is_open(browser: Browser, two: str) -> None:
    with opened(browser, two, SHORT) as page:
        state: dict[str, Any] = {"training": live() | {"run": "second <b>"}, "last": "second <b>"}
        reply(page, state)
        page.reload()
        expect(page.locator("#training-pill")).to_have_text("Training 33%")
        state["training"] = None
        expect(page.locator("#toast")).to_contain_text("held-out score 0.0% before, 75.0% now", timeout=30_000)
        expect(page.locator("#announcer")).to_contain_text("has finished")
        page.get_by_role("button", name="Show", exact=True).click()
        expect(page.get_by_role("region", name="Training").get_by_text("75.0%").first).to_be_visible()
        assert not page.title().startswith("33%")


def test_conversations_as_files(browser: Browser, tmp_path: Path) -> None:
    with running(loaded_model()) as server, opened(browser, server.url, SHORT) as page:
        say(page, "keep <me>")
        answer = page.locator(".assistant .body").inner_text()
        page.get_by_role("button", name="Settings").click()
        with page.expect_download() as markdown:
            page.get_by_role("button", name="Export this one").click()
        text = markdown.value.path().read_text(encoding="utf-8")
        assert text.startswith("# keep <me>\n") and "## You\n\nkeep <me>\n" in text and "## NanoChat (tiny, sft 7)\n" in text
        with page.expect_download() as download:
            page.get_by_role("button", name="Export all").click()
        download.value.save_as(tmp_path / "all.json")
        page.get_by_role("button", name="Done").click()
        page.get_by_role("button", name="Delete: keep <me>").click()
        expect(page.locator("#conversations .row")).to_have_count(0)
        page.get_by_role("button", name="Settings").click()
        page.locator("#import-file").set_input_files(tmp_path / "all.json")
        expect(page.locator("#import-json")).to_have_text("1 conversation imported")
        (tmp_path / "bad.json").write_text('{"format": "other"}')
        page.locator("#import-file").set_input_files(tmp_path / "bad.json")
        expect(page.locator("#import-json")).to_have_text("That file holds no conversations.")
        page.get_by_role("button", name="Done").click()
        page.get_by_role("button", name="keep <me>", exact=True).click()
        assert page.locator(".assistant .body").inner_text() == answer


def test_versions_settings_of_a_conversation_and_tokens(browser: Browser) -> None:
    with running(loaded_model()) as server, opened(browser, server.url, {"max_tokens": 8, "temperature": 1}) as page:
        bodies: list[Any] = []
        page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
        say(page, "again")
        expect(page.locator(".pace")).to_contain_text("8 tokens")
        first = page.locator(".assistant .body").inner_text()
        page.get_by_role("button", name="Answer again").click()
        expect(page.locator(".versions")).to_contain_text("2/2")
        done(page)
        second = page.locator(".assistant .body").inner_text()
        page.get_by_role("button", name="Answer before").press("Enter")
        expect(page.locator(".versions")).to_contain_text("1/2")
        assert page.locator(".assistant .body").inner_text() == first
        page.reload()
        page.get_by_role("button", name="Next answer").click()
        assert page.locator(".assistant .body").inner_text() == second
        page.get_by_role("button", name="Settings").click()
        page.get_by_label("Only for this conversation").check()
        page.get_by_label("Longest answer").fill("3")
        page.get_by_label("Token probabilities").check()
        accessible(page)
        page.get_by_role("button", name="Done").click()
        say(page, "short")
        assert (bodies[-1]["max_tokens"], bodies[-1]["logprobs"], bodies[-1]["top_logprobs"]) == (3, True, 5)
        page.get_by_role("button", name="Tokens and their probabilities").click()
        expect(page.locator(".token")).to_have_count(3)
        page.locator(".token").first.press("Enter")
        expect(page.locator(".token-card tr")).to_have_count(5)
        accessible(page)
        page.get_by_role("button", name="New chat").click()
        message(page).fill("other")
        page.keyboard.press("Enter")
        done(page)
        assert bodies[-1]["max_tokens"] == 8 and "logprobs" not in bodies[-1]

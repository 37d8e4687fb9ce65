"""A training run from the page alone, in a real browser: started, watched, stopped, resumed, talked to, compared; and its notification."""

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from nanochat.runs.heartbeat import HEARTBEAT, heartbeat
from tests.chat.launching import commands, launch_of, small_profile, wait_until
from tests.chat.pages import PHONE, SHORT, accessible, message, narrow, opened
from tests.chat.serve_process import Serve
from tests.chat.serving import running

pytestmark = pytest.mark.browser
LATER = 300_000  # milliseconds: a process has to start on a machine that does other things too


def training(page: Page) -> Locator:
    return page.get_by_role("region", name="Training")


def test_a_newcomer_in_the_browser_alone(browser: Browser, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty data directory, the first button, its training, a talk, its report, a second run, and both compared."""
    small_profile(tmp_path / "small", monkeypatch, num_iterations=80, sft_iterations=20, sample_every=20)
    server = Serve(base, "--allow-training")
    try:
        with opened(browser, server.url, SHORT) as page:
            view = training(page)
            expect(view.get_by_role("heading", name="There is no model yet")).to_be_visible()
            expect(view.get_by_role("button").first).to_have_text(re.compile("Train the quickstart model"))
            expect(view.get_by_role("button").first).to_have_text(re.compile(r"about \d+ min here"), timeout=LATER)
            accessible(page)
            view.get_by_role("button", name="Train the quickstart model").press("Enter")
            expect(view.get_by_role("button", name="Stop and save")).to_be_focused()
            expect(view.get_by_text("nanochat quickstart")).to_be_visible()  # the terminal's command
            watched(page, "quickstart")
            view.get_by_role("button", name="Talk to it").click()
            expect(page.locator("#model")).to_contain_text("quickstart", timeout=LATER)  # the server has loaded it
            message(page).fill("What is 12 + 34?")
            page.keyboard.press("Enter")
            ended = page.locator(".message.assistant").get_by_role("button", name=re.compile("Answer again|Try again"))
            expect(ended).to_be_attached()  # so small a model may say nothing, and is asked again
            page.get_by_role("button", name="Training", exact=True).click()
            view.get_by_role("button", name="Report").click()
            report = page.get_by_role("region", name="Runs")
            expect(report.get_by_text("nanochat quickstart")).to_be_visible()
            expect(report.get_by_role("row", name="addition")).to_be_visible()
            page.get_by_role("button", name="Training", exact=True).click()
            view.get_by_text("Train another model").click()
            view.get_by_label("Name of the run").fill("second")
            expect(view.get_by_text("It fits on this machine")).to_be_visible(timeout=LATER)
            expect(view.locator(".plan dl")).to_contain_text("Tokens81.9K")  # 80 steps of 1,024
            accessible(page)
            view.get_by_role("button", name="Start training").click()
            watched(page, "second")
            view.get_by_role("button", name="Compare").click()
            for name in ("quickstart", "second"):
                page.get_by_role("checkbox", name=f"Compare {name}").check()
            page.get_by_role("button", name="Compare 2 runs").click()
            expect(report.locator("figure").first.locator("polyline")).to_have_count(2)
            expect(report.locator(".side-by-side").first).to_contain_text("What is 12 + 34?")
            assert commands(base) == []
    finally:
        server.end()


def watched(page: Page, run: str) -> None:
    """Wait for the live view of `run`, and for its end."""
    view = training(page)
    expect(page.locator("#training-pill")).to_be_visible(timeout=LATER)
    expect(view.get_by_role("heading", name=run)).to_be_visible()
    expect(view.locator("polyline").first).to_be_visible(timeout=LATER)
    expect(view.get_by_text("Finished in")).to_be_visible(timeout=LATER)
    expect(view.get_by_label(re.compile("Held-out score: .* before training"))).to_be_visible()
    expect(view.get_by_role("button", name="Stop and save")).to_have_count(0)
    accessible(page)


def test_stop_and_resume(browser: Browser, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a phone, in two tabs: either stops the run of the other, and it resumes behind the step that was saved."""
    small_profile(tmp_path / "small", monkeypatch, num_iterations=100_000, sample_every=100_000, eval_every=100_000)
    server = Serve(base, "--allow-training")
    try:
        with opened(browser, server.url, SHORT, **PHONE) as page, opened(browser, server.url, SHORT) as other:
            training(page).get_by_role("button", name="Train the quickstart model").click()
            for tab in (page, other):
                expect(training(tab).locator("polyline").first).to_be_visible(timeout=LATER)
            narrow(page)
            accessible(page)
            training(other).get_by_role("button", name="Stop and save").click()
            for tab in (page, other):
                expect(training(tab).get_by_text("You stopped the run quickstart.")).to_be_visible(timeout=LATER)
                expect(training(tab).locator(".error")).to_have_count(0)
            narrow(page)
            accessible(page)
            saved = max(int(path.name[5:]) for path in (base / "runs" / "quickstart" / "base").glob("step_*"))
            training(page).get_by_role("button", name="Resume").click()
            expect(training(page).get_by_role("button", name="Stop and save")).to_be_visible(timeout=LATER)
            expect(training(page).locator("dl.stats")).to_be_visible(timeout=LATER)
            assert int(training(page).locator("dl.stats dd").first.inner_text().split()[0].replace(",", "")) >= saved
            page.reload()
            page.get_by_role("button", name=re.compile(r"Training \d+%")).click()
            training(page).get_by_role("button", name="Stop and save").click()
            expect(training(page).get_by_role("button", name="Resume")).to_be_visible(timeout=LATER)
    finally:
        server.end()
        wait_until(lambda: not commands(base))


def test_a_run_that_cannot_start(browser: Browser, base: Path, tmp_path: Path) -> None:
    """The plan says so while one chooses; if started all the same, the command's own error and hint are on the page, in either language."""
    (tmp_path / "empty.txt").touch()
    server = Serve(base, "--allow-training")
    refused = "status of 40[09]"  # the console reports every response of that kind
    try:
        with opened(browser, server.url, SHORT, errors=refused) as page:
            view = training(page)
            view.get_by_text("Choose another size or your own text").click()
            view.get_by_label("Your own text").fill(str(tmp_path / "none.txt"))
            start = view.get_by_role("button", name="Start training")
            expect(view.locator(".plan .error")).to_contain_text("none.txt' is no file or directory on the server's machine", timeout=LATER)
            expect(start).to_be_disabled()
            view.get_by_label("Your own text").fill(str(tmp_path / "empty.txt"))
            expect(start).to_be_enabled()  # until the plan is there
            start.click()
            expect(view.get_by_role("button", name="Try again")).to_be_visible(timeout=LATER)
            expect(view.get_by_role("alert")).to_contain_text("empty.txt")
            expect(view.locator(".launch .hint").first).to_be_visible()
            assert launch_of(server.url)["code"] == 4
            accessible(page)
            page.locator("#language").click()
            expect(page.locator("#training").get_by_role("button", name="再試一次")).to_be_visible()
            expect(page.locator("#training").get_by_text("選擇其他大小，或用自己的文字")).to_be_visible()
            narrow(page)
    finally:
        server.end()


def test_a_server_that_does_not_allow_it_shows_the_command(browser: Browser, base: Path) -> None:
    with running(None) as one, opened(browser, one.url, SHORT) as page:
        expect(training(page).locator("code")).to_have_text(re.compile("nanochat quickstart"))
        expect(training(page).get_by_role("button")).to_have_count(1)  # that copies it
        expect(training(page).locator("form")).to_have_count(0)


# Records the notifications that the page shows.
SPY = """
window.told = [];
const Shown = window.Notification;
window.Notification = class extends Shown { constructor(title, options) { super(title, options); told.push([title, options.body]); } };
"""


@pytest.mark.parametrize("asked", [True, False])
def test_a_notification_only_if_it_was_asked_for(browser: Browser, trained: Path, asked: bool) -> None:
    """At the end of the run that it was asked for in this tab, once."""
    server = Serve(trained)
    folder = trained / "runs" / "tiny"

    def about() -> dict[str, Any]:
        return {"device": "cpu", "steps": {"base": 6, "sft": 3}, "trial": False}

    try:
        with opened(browser, server.url, SHORT, permissions=["notifications"]) as page:
            page.add_init_script(SPY)
            page.reload()
            assert page.evaluate("Notification.permission") == "granted"
            with heartbeat(folder, about):
                wait_until((folder / HEARTBEAT).exists)
                page.get_by_role("button", name=re.compile(r"Training \d+%")).click()
                button = training(page).get_by_role("button", name="Notify me at the end")
                expect(button).to_be_visible()
                if asked:
                    button.click()
                    expect(button).to_have_count(0)
                    expect(page.locator("#announcer")).to_have_text("You will be notified.")
            expect(training(page).get_by_text("Finished in")).to_be_visible()
            page.wait_for_timeout(500)
            assert page.evaluate("told") == ([["The run tiny has finished.", "The run tiny has finished."]] if asked else [])
    finally:
        server.end()


def test_no_notification_without_the_permission(browser: Browser, trained: Path) -> None:
    """A browser that forbids them gets no button. Of a run on the GPU the page says where the answers come from meanwhile."""
    server = Serve(trained)
    folder = trained / "runs" / "tiny"
    try:
        with opened(browser, server.url, SHORT) as page:
            page.add_init_script("Object.defineProperty(Notification, 'permission', { get: () => 'denied' })")
            page.reload()
            with heartbeat(folder, lambda: {"device": "cuda", "steps": {"base": 6, "sft": 3}, "trial": False}):
                page.get_by_role("button", name=re.compile(r"Training \d+%")).click()
                expect(training(page).get_by_role("heading", name="tiny")).to_be_visible()
                expect(training(page).get_by_role("button", name="Notify me at the end")).to_have_count(0)
                expect(training(page).get_by_text("While it trains on the GPU, answers come from the CPU.")).to_be_visible()
    finally:
        server.end()

"""A data directory with hundreds of runs, a browser with a thousand conversations, and the times of the page over them."""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

RUNS, CONVERSATIONS = 500, 1000
COPIED = 1 << 20  # bytes; larger files are linked
HOUR = 3600

# As conversations.js keeps them. A thousand such ones take four of the five million characters that a browser gives a site.
STORE = """([count, run]) => {
  const words = "the bear went over a hill and saw that honey was sweet, so it stayed there until the evening came ".repeat(8);
  const model = {run, stage: "sft", step: 325};
  const stats = {tokens: 212, seconds: 1.25};
  for (let n = 0; n < count; n++) {
    const answer = {role: "assistant", parts: [{type: "text", text: words}], finish: "stop", model, stats};
    const pairs = Array.from({length: 4}, (_, turn) => [{role: "user", text: `word${n} turn ${turn}`}, answer]);
    const one = {id: n.toString(16).padStart(16, "0"), title: `talk ${n}`, updated: Date.now() - n * 4e6, messages: pairs.flat()};
    localStorage.setItem(`nanochat.conversation.${one.id}`, JSON.stringify(one));
  }
}"""


def many_runs(base: Path, run: str, count: int = RUNS) -> None:
    """Add `count` copies of a run of the data directory `base`, an hour older each; their weights are links to the run's own."""
    runs = base / "runs"

    def copy(source: str, target: str) -> None:
        if os.path.getsize(source) > COPIED:
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    for number in range(count):
        folder = runs / f"night {number}"
        shutil.copytree(runs / run, folder, copy_function=copy)
        record = folder / "config.toml"
        record.write_text(record.read_text().replace(f'run = "{run}"', f'run = "night {number}"'))
        when = time.time() - (number + 1) * HOUR
        os.utime(folder / "metrics.jsonl", (when, when))


def first_paint(browser: Browser, url: str) -> float:
    """Milliseconds from the request of the page to its first contents, in a browser that has nothing of it yet."""
    context = browser.new_context(locale="en-US")
    page = context.new_page()
    page.goto(url)
    painted = "performance.getEntriesByType('paint').find((one) => one.name === 'first-contentful-paint')?.startTime"
    page.wait_for_function(painted)
    milliseconds = float(page.evaluate(painted))
    context.close()
    return milliseconds


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def times_of_runs(page: Page, url: str) -> dict[str, float]:
    """Seconds to see `RUNS` + 1 runs, to scroll by a window's height, to find one, to open it, to see the checkpoints and to find one."""
    view = page.get_by_role("region", name="Runs")

    def see() -> None:
        page.reload()
        expect(view.get_by_role("heading", name=f"{RUNS + 1} runs")).to_be_visible()

    def find() -> None:
        page.get_by_label("Filter the runs").fill(f"night {RUNS - 1}")
        expect(view.locator("tbody tr")).to_have_count(1)

    def open_one() -> None:
        view.get_by_role("button", name=f"night {RUNS - 1}", exact=True).click()
        expect(view.get_by_role("heading", name=f"night {RUNS - 1}")).to_be_visible()

    def choose() -> None:
        page.locator("#model").click()
        expect(page.get_by_role("dialog", name="Model").locator(".models button").nth(1)).to_be_visible()

    def find_model() -> None:
        page.get_by_label("Filter the checkpoints").fill(f"night {RUNS - 1}:sft")
        expect(page.get_by_role("dialog", name="Model").locator(".models").last.get_by_role("button").first).to_contain_text(
            f"night {RUNS - 1}"
        )

    page.goto(f"{url}#/runs")
    times = {"list": timed(see), "scroll": scrolled(page, "#runs"), "find": timed(find), "open": timed(open_one)}
    return times | {"checkpoints": timed(choose), "find a checkpoint": timed(find_model)}


def times_of_conversations(page: Page, url: str) -> dict[str, float]:
    """Seconds to see `CONVERSATIONS`, to find one, to see all again, to scroll by a window's height and to open the last one."""
    rows = page.locator("#conversations .row")

    def see() -> None:
        page.reload()
        expect(rows).to_have_count(CONVERSATIONS)

    def find() -> None:
        page.get_by_label("Search the conversations").fill(f"word{CONVERSATIONS - 1}")
        expect(rows).to_have_text([f"talk {CONVERSATIONS - 1}"])

    def all_again() -> None:
        page.get_by_label("Search the conversations").fill("")
        expect(rows).to_have_count(CONVERSATIONS)

    def open_one() -> None:
        rows.last.click()
        expect(page.get_by_role("heading", name=f"talk {CONVERSATIONS - 1}")).to_be_visible()
        expect(page.locator(".message")).to_have_count(8)

    page.goto(url)
    times = {"list": timed(see), "find": timed(find), "all again": timed(all_again)}
    return times | {"scroll": scrolled(page, "nav"), "open": timed(open_one)}


def scrolled(page: Page, region: str) -> float:
    """Median seconds until one more window's height of a region is painted, to its end and back."""
    milliseconds = page.evaluate(
        """async (selector) => {
          const box = [...document.querySelectorAll(`${selector}, ${selector} *`)].find((one) => one.scrollHeight > one.clientHeight + 50);
          const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
          const times = [];
          for (const step of [box.clientHeight, -box.clientHeight]) {
            for (let before = NaN; box.scrollTop !== before; ) {
              before = box.scrollTop;
              const began = performance.now();
              box.scrollTop += step;
              await painted();
              times.push(performance.now() - began);
            }
          }
          return times;
        }""",
        region,
    )
    assert len(milliseconds) > 20
    return statistics.median(milliseconds) / 1000

"""report.html in headless Chromium: it asks for nothing outside itself, and its curves can be seen."""

import json
import math
import shutil
from pathlib import Path

import pytest
import tomli_w
from axe_playwright_python.sync_playwright import Axe

from nanochat.config import build_config
from nanochat.evaluation.results import SUMMARY, write_part
from nanochat.planning.rules import resolve
from nanochat.report.collect import write_report

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def page_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a finished run of two stages, with answers that try to break out."""
    folder = tmp_path_factory.mktemp("runs") / "seen"
    folder.mkdir()
    (folder / "config.toml").write_text(tomli_w.dumps(resolve(build_config("cpu")).to_dict()))
    lines = []
    for stage, steps in (("base", 400), ("sft", 100)):
        for step in range(1, steps + 1):
            entry = {"stage": stage, "step": step, "loss": 2 + 4 * math.exp(-step / 80), "tokens": 1024 * step}
            lines.append(entry | ({"bpb": 1 + math.exp(-step / 90)} if step % 50 == 0 else {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    hostile = "<img src=http://192.0.2.1/x onerror=alert(1)><script>alert(1)</script>"
    by_skill = {"a": {"untrained": 0.0, "trained": 1.0, "items": 2}, "b": {"untrained": 0.1, "trained": 0.5, "items": 2}}
    scores = {"untrained": 0.05, "trained": 0.75, "items": 4, "by_skill": by_skill}
    write_part(folder, SUMMARY, {"scores": scores, "samples": [{"prompt": hostile, "answer": hostile}], "seconds": 60.0})
    write_report(folder)
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_the_report_in_a_browser(page_of_a_run: Path, scheme: str, width: int) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked: list[str] = []
        said: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(page_of_a_run.as_uri())
        page.wait_for_load_state("networkidle")
        assert asked == [page_of_a_run.as_uri()] and said == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        curves = page.locator("polyline.curve:visible")
        assert curves.count() == 2
        letters = page.locator("svg text:visible").first.evaluate("(one) => one.getBoundingClientRect().height")
        assert letters > 11, letters  # on a phone as well
        inside = "(one) => [...one.children].every((part) => part.getBoundingClientRect().right <= one.getBoundingClientRect().right + 1)"
        assert page.locator("svg:not(.bars):visible").evaluate(inside)
        assert page.locator("main h1").count() == 1
        axe = Axe().run(page).response["violations"]
        assert [rule["id"] for rule in axe if rule["impact"] in ("serious", "critical")] == []
        for curve in curves.all():
            box = curve.bounding_box()
            assert curve.is_visible() and box is not None and box["width"] > 0.1 * width and box["height"] > 30
            assert curve.evaluate("node => getComputedStyle(node).stroke") not in ("none", background)
        assert page.locator("circle.bpb:visible").count() == 10 + 1  # and the legend's
        bars = page.locator(".bars .now").evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().width)")
        assert len(bars) == 3 and bars[0] > bars[1] > 0 and bars[0] == pytest.approx(2 * bars[1], rel=0.02)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.locator(".sample img, .sample script").count() == 0
        browser.close()

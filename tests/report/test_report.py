"""A report of a whole run, of an unfinished one, and of one that a crash has torn."""

import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import build_config, parse_flags
from nanochat.console import printable
from nanochat.errors import DataError
from nanochat.evaluation.results import SUMMARY, forget_summary, read_results, write_part
from nanochat.planning.rules import resolve
from nanochat.report import collect as report
from nanochat.report import curves, origin
from nanochat.report.collect import has_report, write_report
from nanochat.report.compare import compare, describe, write_page
from nanochat.runs.report_schema import Report, StageReport

SKILLS = {"addition": {"untrained": 0.0, "trained": 1.0, "items": 100}, "facts": {"untrained": 0.01, "trained": 0.9, "items": 200}}
SCORES = {"untrained": 0.0067, "trained": 0.9333, "items": 300, "by_skill": SKILLS}


def line(stage: str, step: int, **more: Any) -> str:
    entry = {"stage": stage, "step": step, "loss": 6.0 / step, "lr": 1.0, "tokens": 4096 * step, "tokens_per_second": 1000.0}
    return json.dumps(entry | {"step_seconds": 0.1, "elapsed_seconds": 0.1 * step, "peak_memory_bytes": 10**9} | more) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of two stages."""
    folder = tmp_path / "a run"
    folder.mkdir()
    config = resolve(build_config("cpu"))
    (folder / "config.toml").write_text(tomli_w.dumps(config.to_dict() | {"frozen": {"shards": []}}))
    lines = [line("base", step) for step in range(1, 1000)] + [line("base", 1000, bpb=1.25)]
    (folder / "metrics.jsonl").write_text("".join(lines + [line("sft", step, bpb=1.5) for step in (1, 2)]))
    samples = [{"prompt": "Who are <you>?", "answer": "A | model,\n*small* & 聰明 <script>alert(1)</script>"}]
    results = {"scores": SCORES, "samples": samples, "seconds": 320.5, "flops": 5e12, "parameters": 10**6, "tokens": 4_100_000, "bpb": 1.25}
    write_part(folder, SUMMARY, results)
    return folder


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_finished_run(run: Path) -> None:
    made = write_report(run)
    assert json.loads((run / "report.json").read_text()) == made
    assert (made["scores"], made["seconds"], made["flops"], made["bpb"]) == (SCORES, 320.5, 5e12, 1.25)
    assert (made["tokens"], made["parameters"], made["finished"]) == (4_100_000, 10**6, True)
    assert made["stages"]["base"]["steps"] == 1000
    assert made["config"]["depth"] == build_config("cpu").depth
    text = (run / "report.md").read_text()
    assert "| facts | 1.0% | 90.0% | 200 |" in text
    assert "| all | 0.7% | 93.3% | 300 |" in text
    assert "    *small* & 聰明" in text


def test_every_field_is_in_the_schema(run: Path) -> None:
    made = write_report(run)
    assert list(made) == list(Report.__annotations__)
    assert all(list(stage) == list(StageReport.__annotations__) for stage in made["stages"].values())


def test_an_older_runs_report_is_the_same(run: Path) -> None:
    """Its results were in two files."""
    write_part(run, "bpb", {"validation": 1.25})
    made, results = write_report(run), read_results(run)
    (run / "scores.json").write_text(json.dumps(results.pop("summary")))
    (run / "evaluation.json").write_text(json.dumps(results))
    assert write_report(run) == made and made["tasks"] == {"bpb": {"validation": 1.25}}


def test_a_models_words_cannot_steer_a_terminal(run: Path) -> None:
    hostile = "a\x1b]0;title\x07\x1b[2Jb\x9b31m\u202ec\ud800\r"
    (run / "samples.jsonl").write_text(json.dumps({"stage": "base", "step": 1, "prompt": hostile, "text": hostile}))
    write_part(run, SUMMARY, read_results(run)[SUMMARY] | {"samples": [{"prompt": hostile, "answer": hostile}]})
    made = write_report(run)
    assert json.loads((run / "report.json").read_text()) == made and made["samples"][0]["answer"] == hostile
    for name in ("report.md", "report.html"):
        text = (run / name).read_text(encoding="utf-8")
        assert printable(text) == text and "a]0;title[2Jb31mc" in re.sub(r"\\(.)", r"\1", text)
    assert has_report(run)


def test_an_older_mirrors_password_is_not_told(run: Path) -> None:
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('mirror = ""', 'mirror = "s3://user:S3CRET@bucket/x?key=S3CRET"'))
    assert write_report(run)["config"]["mirror"] == "s3://***@bucket/x?key=***"
    assert not [path.name for path in run.glob("report.*") if "S3CRET" in path.read_text()]


def test_the_page_stands_alone_and_runs_nothing(run: Path) -> None:
    write_report(run)
    text = (run / "report.html").read_text()
    page = Page(text)
    assert {"svg", "polyline", "circle", "table"} <= set(page.tags)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert "://" not in text
    assert "url(" not in text
    assert "prefers-color-scheme: dark" in text
    assert "<script>alert(1)</script>" in page.words  # shown, not run
    assert "聰明" in page.words


def test_the_curve_is_thinned_and_keeps_its_mean(run: Path) -> None:
    curve = write_report(run)["curve"]
    points = curve["base"]["loss"]
    assert len(points) <= report.CURVE_POINTS
    assert points[-1][0] == 1000
    width = points[1][0] - points[0][0]
    assert points[0][1] == pytest.approx(sum(6 / step for step in range(1, width + 1)) / width, rel=1e-4)
    assert curve["base"]["bpb"] == [[1000, 1.25]]
    assert [step for step, _ in curve["sft"]["loss"]] == [1, 2]


def test_an_unfinished_run_has_a_report(run: Path) -> None:
    forget_summary(run)
    (run / "metrics.jsonl").write_text(line("base", 1, bpb=3.5))
    made = write_report(run)
    assert (made["scores"], made["finished"], made["bpb"], made["tokens"]) == (None, False, 3.5, 4096)
    assert made["parameters"] > 10**5
    assert made["flops"] > 0
    assert "no scores yet" in (run / "report.md").read_text()
    assert "polyline" in Page((run / "report.html").read_text()).tags


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    made = write_report(tmp_path)
    assert (made["scores"], made["parameters"], made["curve"]) == (None, None, {})
    assert "Not started" in (tmp_path / "report.html").read_text()


def test_torn_and_odd_lines_are_left_out(run: Path) -> None:
    good = line("base", 1) + line("base", 2)
    odd = '{"stage": "base"}\n[1]\nnull\n\n' + line("base", 3, loss=float("nan")) + line("elsewhere", 4) + line("base", 5)[:40]
    (run / "metrics.jsonl").write_bytes((good + odd).encode() + b"\xff\xfe")
    (run / "evaluation.json").write_text('{"summary": {"scores": ')
    (run / "config.toml").write_text("[config")
    made = write_report(run)
    assert made["curve"]["base"]["loss"] == [[1, 6.0], [2, 3.0]]
    assert (made["config"], made["scores"]) == ({}, None)


def test_no_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run"):
        write_report(tmp_path / "nowhere")


def test_markdown_cells_cannot_break_the_table(run: Path) -> None:
    config = (run / "config.toml").read_text().replace('data = ""', 'data = "a | b\\n`c` <d>"')
    (run / "config.toml").write_text(config)
    write_report(run)
    rows = [text for text in (run / "report.md").read_text().splitlines() if text.startswith("| data |")]
    assert rows == ["| data | a \\| b \\`c\\` \\<d\\> |"]


@given(st.floats(1e-6, 1e12))
def test_ticks_are_round_and_reach(high: float) -> None:
    ticks = curves.ticks(0.0, high)
    assert ticks[0] == 0
    assert ticks[-1] >= high * 0.999
    assert 2 <= len(ticks) <= 7
    assert all(re.fullmatch(r"[0-9.e+-]+", f"{tick:g}") for tick in ticks)


def test_the_plan_stands_beside_what_came(run: Path) -> None:
    assert write_report(run)["plan"] == {}
    (run / report.PLAN).write_text(
        json.dumps({"seconds": 160.25, "tokens": 4_096_000, "tokens_per_second": 2000.0, "memory_bytes": {"total": 2e9}})
    )
    made = write_report(run)["plan"]
    assert made["seconds"] == {"planned": 160.25, "came": 320.5}
    assert made["tokens"] == {"planned": 4_096_000, "came": 4_096_000}
    text = (run / "report.md").read_text()
    assert "| tokens/s | 2.0K | 1.0K | 0.50 |" in text and "| memory (measured for the whole process) | 2.00 GB | 1.00 GB | 0.50 |" in text
    assert "Plan and result" in Page((run / "report.html").read_text()).words


def test_samples_by_step(run: Path) -> None:
    said = [{"stage": "base", "step": step, "prompt": "The", "text": f"<b>cat</b> {step}"} for step in range(30)]
    torn = '{"stage": "base"'
    (run / "samples.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in said) + torn)
    assert write_report(run)["samples_by_step"] == said[-report.SAMPLED :]
    assert "<b>cat</b> 29" in Page((run / "report.html").read_text()).words


def test_the_command_trains_the_run_again(run: Path) -> None:
    """As it is printed: the config that its words make is the run's."""
    for profile, trial, values in (
        ("cpu", False, {"run": "mine", "num_iterations": 7, "deterministic": True}),
        ("cpu", True, {"run": "cpu-trial"}),
        ("rtx4090", False, {"run": "the big one", "depth": 4, "data": "/texts/my books"}),
    ):
        config = resolve(build_config(profile, trial, values))
        (run / "config.toml").write_text(tomli_w.dumps(config.to_dict() | {"frozen": {"shards": []}}))
        words = shlex.split(write_report(run)["command"])
        assert words[:4] == ["nanochat", "train", "--profile", profile] and ("--trial" in words) == trial
        flags = parse_flags([word for word in words[4:] if word != "--trial"])
        assert set(flags) <= {*values, "run"}, flags
        assert resolve(build_config(profile, trial, flags)) == config
    (run / "config.toml").write_text(tomli_w.dumps(resolve(build_config("cpu", False, {"run": "quickstart"})).to_dict()))
    assert write_report(run)["command"] == "nanochat quickstart"


def test_the_command_is_found_once_for_a_config(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding it resolves a config for each field that differs; another config, or none before, is looked at anew."""
    made = write_report(run)
    asked: list[str] = []
    monkeypatch.setattr(origin, "command", lambda config: asked.append(config["run"]) or "nanochat again")
    assert write_report(run)["command"] == made["command"] != "" and asked == []
    (run / "report.json").write_text(json.dumps(made | {"config": made["config"] | {"depth": 99}}))
    assert write_report(run)["command"] == "nanochat again" and len(asked) == 1


def test_date_and_revision_are_those_of_the_training(run: Path) -> None:
    os.utime(run / "metrics.jsonl", (1.8e9, 1.8e9))
    made = write_report(run)
    assert made["date"] == "2027-01-15 08:00 UTC" and made["revision"].startswith(metadata.version("nanochat-appliance"))
    (run / "report.json").write_text(json.dumps(made | {"revision": "0.0.1 (abc)"}))
    assert write_report(run)["revision"] == "0.0.1 (abc)"
    assert "2027-01-15 08:00 UTC" in (run / "report.html").read_text() and "0.0.1 (abc)" in (run / "report.md").read_text()


def test_two_runs_compared_make_a_page(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "b<script>"
    shutil.copytree(run, other)
    path = write_page(compare(run, other), run)
    page = Page(path.read_text(encoding="utf-8"))
    assert path == run / "compare-b<script>.html" and "script" not in page.tags and page.tags.count("polyline") == 4
    assert {"main", "h1", "table"} <= set(page.tags) and "Answers to the same prompts" in page.words
    assert not [value for name, value in page.attributes if name in ("src", "href") or name.startswith("on")]


def test_two_runs_are_compared(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.toml").write_text(tomli_w.dumps(resolve(build_config("cpu", overrides={"depth": 5})).to_dict()))
    (other / "metrics.jsonl").write_text(line("base", 500, bpb=2.0) + line("base", 1000, bpb=1.125))
    found = compare(run, other)
    assert found["runs"] == ["a run", "other"]
    assert found["config"]["depth"] == [build_config("cpu").depth, 5] and "seed" not in found["config"]
    assert found["bpb"] == [[1000, 1.25, 1.125]]
    assert found["scores"]["facts"] == [0.9, None]
    text = describe(found)
    assert "| 1000 | 1.2500 | 1.1250 |" in text and "| facts | 90.0% | - |" in text
    with pytest.raises(DataError, match="no run"):
        compare(run, tmp_path / "missing")

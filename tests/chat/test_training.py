"""What the page shows of a running training run, and the heartbeat that tells whether it runs."""

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.chat import training
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.middleware import Limits
from nanochat.chat.scheduler import Scheduler
from nanochat.chat.server import create_app
from nanochat.chat.training import TrainingView, newest_training
from nanochat.runs.heartbeat import HEARTBEAT, heartbeat, read_heartbeat, why_killed


def line(stage: str, step: int, **more: Any) -> str:
    entry = {"stage": stage, "step": step, "loss": 5.0 - step / 10, "lr": 0.5, "tokens_per_second": 100.0, "step_seconds": 2.0}
    return json.dumps(entry | more) + "\n"


def test_a_runs_own_estimate_is_shown(tmp_path: Path) -> None:
    """The run knows its evaluations and how busy the CPU is; an odd or missing value falls back to the lines."""
    view, folder = TrainingView(tmp_path), tmp_path / "mine"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(line("base", 1) + line("base", 2))
    for left, others, shown in (
        (99.6, 0.62, (100, 40, 0.62)),
        (99.6, 0.05, (100, 40, None)),
        (-3, None, (0, 40, None)),
        ("nan", "much", (24, 16, None)),
        (float("nan"), True, (24, 16, None)),
    ):
        about = {"device": "cpu", "steps": {"base": 10, "sft": 4}, "seconds_left": left, "stage_seconds_left": 40.2, "cpu_others": others}
        with heartbeat(folder, lambda about=about: about):  # type: ignore[misc]
            while not (folder / HEARTBEAT).exists():
                time.sleep(0.01)
            state = view() or {}
        assert (state["seconds_left"], state["stage_seconds_left"], state["cpu_others"]) == shown


def test_the_training_view_follows_a_run(tmp_path: Path) -> None:
    view, run = TrainingView(tmp_path), tmp_path / "mine"
    assert view() is None
    run.mkdir()
    with heartbeat(run, lambda: {"device": "cpu", "steps": {"base": 10, "sft": 4}, "trial": True}):
        while not (run / HEARTBEAT).exists():
            time.sleep(0.01)
        assert view() == {"run": "mine", "stage": "base", "step": 0, "steps": 10, "measure": "loss", "value": None, "bpb": None} | {
            "device": "cpu",
            "tokens_per_second": None, "seconds_left": None, "alive": True, "trial": True, "checkpoint": None, "curve": [], "samples": [],
            "stage_seconds_left": None, "elapsed_seconds": None, "tokens": None, "validation": [], "cpu_others": None,
            "stages": [{"stage": "base", "steps": 10}, {"stage": "sft", "steps": 4}],
        }  # fmt: skip
        metrics = run / "metrics.jsonl"
        metrics.write_text(line("base", 1) + line("base", 2))
        state = view() or {}
        assert (state["step"], state["value"], state["seconds_left"]) == (2, 4.8, 2 * (8 + 4))
        assert state["stage_seconds_left"] == 2 * 8
        with metrics.open("a") as file:
            file.write(line("base", 3)[:20])  # half a line is not there yet
        assert (view() or {})["step"] == 2
        metrics.write_text(line("base", 1) + line("base", 2) + line("base", 3, bpb=1.5) + line("base", 4))
        state = view() or {}
        assert (state["step"], state["bpb"], [point["step"] for point in state["curve"]]) == (4, 1.5, [1, 2, 3, 4])
        assert state["validation"] == [{"stage": "base", "step": 3, "bpb": 1.5}]
        metrics.write_text(line("base", 1))  # a resumed run cuts what lies after its checkpoint
        assert (view() or {})["step"] == 1
        metrics.write_text("".join(line("base", i + 1) for i in range(2000)) + line("sft", 1))
        state = view() or {}
        assert (state["stage"], state["steps"], state["seconds_left"]) == ("sft", 4, 6)
        assert len(state["curve"]) <= 300
        assert state["curve"][-1] == {"stage": "sft", "step": 1, "value": 4.9, "lr": 0.5, "tokens_per_second": 100.0}
        with metrics.open("a") as file:  # the loss of reinforcement learning only says which way it goes
            file.write("".join(line("rl", step, reward=step / 10) for step in (1, 2)))
        state = view() or {}
        assert (state["stage"], state["measure"], state["value"]) == ("rl", "reward", 0.2)
        assert [(point["step"], point["value"]) for point in state["curve"]] == [(1, 0.1), (2, 0.2)]
        (run / "samples.jsonl").write_text(
            "".join(json.dumps({"stage": "base", "step": i, "prompt": "a", "text": "b"}) + "\n" for i in range(130))
        )
        shown = [sample["step"] for sample in (view() or {})["samples"]]
        assert len(shown) == 120 and (shown[0], shown[-1]) == (0, 129)  # from the first words to the newest
    assert view() is None


@pytest.mark.parametrize(
    ("left", "kills", "said"),
    [
        (None, 5, ""),
        ({"oom_kills": 3}, 5, "memory ran out (2 killed by the system since then)"),
        ({"oom_kills": 5}, 5, "or the machine was switched off"),
        ({"oom_kills": 9}, 0, "or the machine was switched off"),  # it was: the count began again
        ({"oom_kills": "x"}, 5, "or the machine was switched off"),
        ({"oom_kills": None}, None, "or the machine was switched off"),
    ],
)
def test_a_killed_process_is_explained(
    left: dict[str, Any] | None, kills: int | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanochat.runs.heartbeat.oom_kills", lambda: kills)
    if left is not None:
        (tmp_path / HEARTBEAT).write_text(json.dumps({"time": time.time() - 60} | left))
    assert said in why_killed(tmp_path) and bool(why_killed(tmp_path)) == bool(said)


def test_a_killed_trainings_heartbeat_grows_old(tmp_path: Path) -> None:
    about = {"device": "cuda", "steps": {"base": 3}, "trial": False, "pid": os.getpid(), "time": time.time() - 60}
    (tmp_path / HEARTBEAT).write_text(json.dumps(about))
    assert (read_heartbeat(tmp_path) or {})["alive"] is False
    (tmp_path / HEARTBEAT).write_text("{")
    assert read_heartbeat(tmp_path) is None


def test_after_the_clock_was_set_back_a_killed_training_is_not_taken_for_the_living_one(tmp_path: Path) -> None:
    """Its last heartbeat is in the future."""
    for name, ahead in (("killed", 3600), ("living", 0)):
        (tmp_path / name).mkdir()
        about = {"device": "cpu", "steps": {"base": 3}, "time": time.time() + ahead}
        (tmp_path / name / HEARTBEAT).write_text(json.dumps(about))
    found = newest_training(tmp_path)
    assert found and found[0].name == "living" and found[1]["alive"]
    assert (read_heartbeat(tmp_path / "killed") or {})["alive"] is False


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that is trained."""
    (tmp_path / "mine").mkdir()
    beat = {"device": "cpu", "steps": {"base": 9000}, "trial": False, "time": time.time() + 600}
    (tmp_path / "mine" / HEARTBEAT).write_text(json.dumps(beat))
    return tmp_path / "mine"


def test_many_tabs_read_each_line_once(run: Path) -> None:
    """While the file grows, from many threads: every line is kept once."""
    view, metrics, seen, errors = TrainingView(run.parent), run / "metrics.jsonl", [], []
    metrics.touch()
    ended = threading.Event()

    def tab() -> None:
        while not ended.is_set():
            try:
                seen.append((view() or {})["step"])
            except Exception as error:
                errors.append(error)

    tabs = [threading.Thread(target=tab) for _ in range(8)]
    for one in tabs:
        one.start()
    with metrics.open("a") as file:
        for step in range(1, 2001):
            file.write(line("base", step))
            if step % 50 == 0:
                file.flush()
                time.sleep(0.005)
    ended.set()
    for one in tabs:
        one.join()
    assert not errors
    assert (view() or {})["step"] == 2000 and "skipped_lines" not in (view() or {})
    assert [entry["step"] for entry in view._lines] == list(range(1, 2001))


ODD = [
    "",
    "[]",
    "5",
    "null",
    "{",
    "{}",
    "[" * 5000,
    '"base"',
    json.dumps({"stage": "base"}),
    json.dumps({"stage": "base", "step": "3", "loss": 1.0}),
    json.dumps({"stage": ["base"], "step": 3, "loss": 1.0}),
    json.dumps({"stage": "other", "step": 3, "loss": 1.0}),
    json.dumps({"stage": "base", "step": -1, "loss": 1.0}),
    json.dumps({"stage": "base", "step": True, "loss": 1.0}),
    json.dumps({"stage": "base", "step": 3, "loss": float("nan")}),
    json.dumps({"stage": "base", "step": 3, "loss": None}),
    json.dumps({"stage": "base", "step": 3, "loss": "5"}),
    json.dumps({"stage": "base", "step": 3, "loss": 1.0, "step_seconds": float("inf")}),
    json.dumps({"stage": "base", "step": 3, "loss": 10**400}),
    '{"stage": "base", "step": 1e999, "loss": 1}',
    '{"stage": "base", "step": 3, "loss": 1' + "0" * 5000 + "}",
    "x" * 200_000,
    line("base", 1).strip(),  # a step that goes back
]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_lines_are_skipped_and_counted(run: Path, odd: str, last: bool) -> None:
    metrics, view = run / "metrics.jsonl", TrainingView(run.parent)
    metrics.write_text(line("base", 1) + line("base", 2) + odd + "\n" + ("" if last else line("base", 3)))
    for _ in range(3):  # it is not counted again with each look
        state = view() or {}
        assert [point["step"] for point in state["curve"]] == ([1, 2] if last else [1, 2, 3])
        assert state["skipped_lines"] == (1 if len(odd) < training.LINE_BYTES else 4)
        json.dumps(state, allow_nan=False, ensure_ascii=False).encode()
    with metrics.open("a") as file:
        file.write(line("base", 4) + odd + "\n" + line("base", 5))
    assert (view() or {})["step"] == 5
    assert (view() or {})["skipped_lines"] == 2 * state["skipped_lines"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["base", "sft", "rl"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("stage", "step", "loss", "reward", "bpb", "tokens_per_second", "step_seconds", "prompt", "text"), JSON),
)
BEAT = st.fixed_dictionaries({}, optional=dict.fromkeys(("device", "steps", "trial", "pid", "time"), JSON))


@pytest.mark.long
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FIELDS, max_size=6), st.lists(FIELDS, max_size=4), BEAT, st.binary(max_size=20))
def test_whatever_the_files_hold(run: Path, lines: list[Any], samples: list[Any], beat: dict[str, Any], end: bytes) -> None:
    """Other types, other fields, no JSON: the state can always be sent."""
    (run / "metrics.jsonl").write_bytes("".join(json.dumps(one) + "\n" for one in lines).encode() + end)
    (run / "samples.jsonl").write_bytes("".join(json.dumps(one) + "\n" for one in samples).encode() + end)
    (run / HEARTBEAT).write_text(json.dumps({"steps": {"base": 3}, "time": time.time()} | beat))
    newest_training(run.parent)
    state = TrainingView(run.parent)()
    json.dumps(state, allow_nan=False, ensure_ascii=False).encode()


def test_a_file_that_was_cut_and_written_anew(run: Path) -> None:
    """It is longer than it was, so that its size says nothing."""
    metrics, view = run / "metrics.jsonl", TrainingView(run.parent)
    metrics.write_text("".join(line("base", step) for step in range(1, 9)))
    assert (view() or {})["step"] == 8
    metrics.write_text("".join(line("base", step, bpb=1.0) for step in range(1, 8)))
    state = view() or {}
    assert state["step"] == 7 and [point["step"] for point in state["curve"]] == list(range(1, 8)) and "skipped_lines" not in state
    metrics.write_text(line("base", 3))
    assert (view() or {})["step"] == 3
    metrics.write_text(line("base", 2))
    assert (view() or {})["step"] == 2 and "skipped_lines" not in (view() or {})
    metrics.unlink()
    assert (view() or {})["step"] == 0


def test_the_route_reads_once_for_all_who_ask() -> None:
    """A hundred tabs at once take one thread."""
    reading, most = 0, 0

    def slow() -> None:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        time.sleep(0.05)
        reading -= 1

    app = create_app(Scheduler(ServerMetrics()), ServerMetrics(), Limits(), slow)

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:  # type: ignore[arg-type]
            return await asyncio.gather(*(client.get("/api/training") for _ in range(100)))

    answers = asyncio.run(ask())
    assert {one.status_code for one in answers} == {200} and most == 1

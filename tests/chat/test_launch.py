"""Training runs that the page starts: who may, what a request can say, one at a time, and a run that outlives its server."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from nanochat.chat.api_errors import ApiError
from nanochat.chat.launch import Launcher
from nanochat.chat.launch_plan import error_and_hint
from nanochat.chat.launch_request import TrainingRequest
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.middleware import Limits
from nanochat.chat.models import ModelWatcher
from nanochat.chat.scheduler import Scheduler
from nanochat.chat.serve import ServeOptions, serve
from nanochat.errors import UsageError
from nanochat.runs import lock
from nanochat.runs.heartbeat import heartbeat
from tests.chat.launching import commands, launch_of, post, small_profile, step_of, wait_until
from tests.chat.serve_process import Serve
from tests.chat.serving import KEY, Running, loaded_model, running
from tests.tiny import ROOT, call, environment, sentences

pytestmark = pytest.mark.long
ROUTES = ("", "/plan", "/stop", "/resume")


@pytest.fixture
def server(base: Path) -> Iterator[Running]:
    with running(None, launcher=Launcher()) as one:
        yield one


@pytest.fixture
def long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cpu profile whose run ends when it is stopped."""
    small_profile(tmp_path / "small", monkeypatch, num_iterations=100_000, sample_every=100_000, eval_every=100_000)


def stop_and_wait(url: str) -> dict[str, Any]:
    """Stop the run; the state after its end."""
    assert post(url, "/stop").status_code == 202
    return wait_until(lambda: not (state := launch_of(url))["alive"] and state)  # type: ignore[no-any-return]


# Who may


def test_nobody_starts_a_run_unasked(base: Path) -> None:
    """A server without --allow-training has no such route, and says so to its page."""
    with running(None) as one:
        assert [post(one.url, path).status_code for path in ROUTES] == [404] * 4
        assert launch_of(one.url) is None
    assert not (base / "launch").exists()


REACHABLE: list[dict[str, Any]] = [
    {"host": "0.0.0.0"},
    {"host": "0.0.0.0", "insecure_no_key": True},
    {"allowed_hosts": ("a.example",)},
    {"trusted_proxies": ("192.0.2.1",)},
]


@pytest.mark.parametrize("options", REACHABLE)
def test_other_machines_need_a_key(base: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="lets other machines start training runs here, and no key is set") as refused:
        serve(ServeOptions(allow_training=True, **options))
    assert refused.value.hint == "set NANOCHAT_API_KEY or --api-key-file, or leave out --allow-training"


def test_the_command_line_refuses_it_too(base: Path) -> None:
    done = call(base, "entrypoint.py", "serve", "--allow-training", "--host=0.0.0.0", "--insecure-no-key")
    assert done.returncode == 2 and done.stderr.startswith("error: --allow-training lets other machines")


def test_other_sites_and_wrong_keys(base: Path) -> None:
    with running(None, Limits(api_key=KEY), launcher=Launcher()) as one:
        right = {"authorization": f"Bearer {KEY}"}
        for path, origin in itertools.product(ROUTES, ("http://evil.example", "null", "http://localhost:9")):
            assert post(one.url, path, {"quickstart": True}, headers=right | {"origin": origin}).status_code == 403
        for path, wrong in itertools.product(ROUTES, ({}, {"authorization": f"Bearer {KEY}x"})):
            assert post(one.url, path, {"quickstart": True}, headers=wrong).status_code == 401
        assert post(one.url, "/stop", headers=right | {"host": "evil.example"}).status_code == 403
        assert post(one.url, "/stop", headers=right | {"origin": one.url}).status_code == 409  # nothing runs
        assert httpx.get(f"{one.url}/api/train", headers=right).status_code == 405
    assert not (base / "launch").exists() and commands(base) == []


# A request's values


REFUSED: list[dict[str, Any]] = [
    {"profile": "--data=/etc/passwd"},
    {"profile": "cpu; touch x"},
    {"profile": "../cpu"},
    {"profile": ""},
    {"profile": None},
    {"hours": 0},
    {"hours": -1},
    {"hours": 10_000},
    {"hours": "1"},
    {"hours": "1 --data=/etc/passwd"},
    {"hours": True},
    {"hours": [1]},
    {"run": "../up"},
    {"run": "a/b"},
    {"run": ".."},
    {"run": ".hidden"},
    {"run": "-n"},
    {"run": "--mirror=s3://evil"},
    {"run": "a\n--data=/etc/passwd"},
    {"run": "a\0b"},
    {"run": "\u202egnp"},
    {"run": "x" * 201},
    {"run": "字" * 100},
    {"run": 5},
    {"data": "--out=/tmp"},
    {"data": "-"},
    {"data": "relative.txt"},
    {"data": "../../etc/passwd"},
    {"data": "/no/such/file"},
    {"data": "/no/such/file:text"},
    {"data": "~nobody-has-this-name/x"},
    {"data": "/etc/pass\nwd"},
    {"data": "/etc/\0passwd"},
    {"data": "/" + "x" * 4_000},
    {"data": "x" * 5_000},
    {"data": "/dev/zero"},
    {"data": "/dev/stdin"},
    {"data": "/proc/self/environ"},
    {"data": "/sys/kernel"},
    {"data": "hf:owner/name"},
    {"data": "https://evil.example/x"},
    {"device": "cuda"},
    {"mirror": "s3://evil"},
    {"quickstart": "yes"},
    {"quickstart": 1},
]


def test_values_that_are_refused(server: Running, base: Path, tmp_path: Path) -> None:
    """Before anything is started or written, with a sentence that names the field."""
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to("/proc/self/environ")
    for body in [*REFUSED, {"data": str(fifo)}, {"data": str(link)}]:
        for path in ("", "/plan"):
            answer = post(server.url, path, body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (400, "invalid_value"), (body, error)
            assert next(iter(body)) in (error["param"], error["message"].split(":")[0]), (body, error)
    for text in ('{"hours": NaN}', '{"hours": Infinity}', '{"hours": 1e999}', '{"run": "\\ud800"}', "[]", "null", '"quickstart"', "{", ""):
        answer = httpx.post(f"{server.url}/api/train", content=text, headers={"content-type": "application/json"})
        assert answer.status_code == 400, text
    assert post(server.url, "", {"data": "x" * 2_000_000}).status_code == 413
    form = httpx.post(f"{server.url}/api/train", content='{"quickstart": true}', headers={"content-type": "text/plain"})
    assert form.status_code == 400  # another site's form can send no JSON
    assert not (base / "launch").exists() and commands(base) == []


def test_the_command_is_a_list_of_arguments() -> None:
    evil = TrainingRequest(profile="cpu", hours=0.5, data="/a b;$(touch x)`id`'\"", run="$(id) && x")
    assert evil.arguments == ["train", "--profile=cpu", "--hours=0.5", "--data=/a b;$(touch x)`id`'\"", "--run=$(id) && x"]
    assert evil.plan_arguments == ["plan", "--json", *evil.arguments[1:]]
    assert TrainingRequest().arguments == ["train", "--profile=auto"]
    assert TrainingRequest(quickstart=True, run="other").arguments == ["quickstart"]
    requests = (TrainingRequest(profile="cpu"), TrainingRequest(run="a"), TrainingRequest(quickstart=True))
    assert [one.run_name for one in requests] == ["cpu", "a", "quickstart"]


def test_a_text_of_any_name(server: Running, base: Path, tmp_path: Path) -> None:
    """A file whose name looks like a shell's command is a file: the command reads it, and nothing else happens."""
    text = sentences(tmp_path / "a b;$(touch pwned)'`id`.txt", 2_000)
    answer = post(server.url, "", {"profile": "cpu", "data": str(text), "run": "$(touch pwned)"})
    assert answer.status_code == 202 and answer.json()["run"] == "$(touch pwned)"
    assert wait_until(lambda: commands(base)) == [["train", "--profile=cpu", f"--data={text}", "--run=$(touch pwned)"]]
    stop_and_wait(server.url)
    assert not list(ROOT.glob("pwned")) and not list(tmp_path.rglob("pwned"))


# One at a time


def test_two_starts_at_once(server: Running, base: Path) -> None:
    """Of many, on this server and on another one of the same data directory, exactly one starts a process."""
    with running(None, launcher=Launcher()) as other, ThreadPoolExecutor(8) as pool:
        barrier = threading.Barrier(8)

        def start(number: int) -> httpx.Response:
            barrier.wait()
            return post((server, other)[number % 2].url, "", {"profile": "cpu", "run": f"run-{number}"})

        answers = list(pool.map(start, range(8)))
        assert sorted(answer.status_code for answer in answers) == [202] + [409] * 7
        started = next(answer.json() for answer in answers if answer.status_code == 202)
        refused = next(answer.json()["error"] for answer in answers if answer.status_code == 409)
        assert refused["code"] == "training_under_way" and f"the run {started['run']!r} is in training" in refused["message"]
        assert len(commands(base)) == 1
        assert post(other.url, "/plan", {"quickstart": True}).status_code == 409
        assert launch_of(other.url)["alive"]  # either server shows it, and can stop it
        assert not stop_and_wait(other.url)["alive"]
    assert commands(base) == []
    assert post(server.url, "/stop").json()["error"]["code"] == "no_training"


def test_a_run_of_the_terminal_counts(server: Running, base: Path) -> None:
    """Whether its lock or, where there is none, its heartbeat shows it; what a killed run left does not."""
    with lock.hold("night", "a training run"), heartbeat(base / "runs" / "night", lambda: {"device": "cuda", "steps": {}, "trial": False}):
        answer = post(server.url, "", {"quickstart": True})
        assert answer.status_code == 409
        assert answer.json()["error"]["message"].startswith(f"the run 'night' is in training (process {os.getpid()} on ")
        assert post(server.url, "/plan", {"quickstart": True}).status_code == 409
    folder = base / "runs" / "old"
    folder.mkdir(parents=True)
    with heartbeat(folder, lambda: {"device": "cuda", "steps": {}, "trial": False}):
        wait_until(lambda: (folder / "heartbeat.json").exists())
        assert "the run 'old' is in training, and" in post(server.url, "", {"quickstart": True}).json()["error"]["message"]
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (folder / lock.LOCK).write_text(json.dumps(vars(lock.Holder.here("a training run", dead.pid))))
    with pytest.raises(ApiError, match="'old'"):
        Launcher().require_idle()
    dead.kill()
    dead.wait()
    Launcher().require_idle()
    assert commands(base) == []


# Its life


def test_a_start_that_fails(server: Running, tmp_path: Path) -> None:
    """The page has the command's error, hint and exit code; the same command can be tried again."""
    (tmp_path / "empty.txt").touch()
    body = {"profile": "cpu", "data": str(tmp_path / "empty.txt"), "run": "mine"}
    assert post(server.url, "/plan", body).json()["error"]["code"] == "plan_failed"
    for path in ("", "/resume"):
        assert post(server.url, path, body).status_code == 202
        state = wait_until(lambda: not (found := launch_of(server.url))["alive"] and found)
        assert (state["code"], state["finished"], state["resumable"]) == (4, False, False)
        assert "empty.txt" in state["error"] and state["hint"] and not state["error"].startswith("error")
        assert f"hint: {state['hint']}" in state["log"]
    sentences(tmp_path / "empty.txt", 2_000)
    assert error_and_hint(["x", "error: a", "hint: b", "c"]) == ("a", "b")
    assert error_and_hint(["stopped after base step 3 of 9, which is saved", "hint: d"])[1] == "d"
    assert error_and_hint(["error: a"]) == ("a", "") and error_and_hint([]) == ("", "")


@pytest.mark.slow
def test_a_killed_server_leaves_the_run(base: Path, long_run: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains on; another server shows it, refuses a second one, stops it with a checkpoint, and resumes it."""
    monkeypatch.setenv("NANOCHAT_API_KEY", KEY)
    key = {"authorization": f"Bearer {KEY}"}
    one = Serve(base, "--allow-training")
    assert post(one.url, "", {"quickstart": True}, headers=key).status_code == 202
    steps = wait_until(lambda: step_of(one.url, headers=key))
    process = json.loads((base / "launch" / "launch.json").read_text())["process"]["pid"]
    surroundings = Path(f"/proc/{process}/environ").read_bytes()
    assert KEY.encode() not in surroundings and b"OMP_WAIT_POLICY" not in surroundings
    assert os.getsid(process) == process != os.getsid(one.process.pid)
    one.end()
    two = Serve(base, "--allow-training")
    try:
        state = launch_of(two.url, headers=key)
        assert (state["run"], state["alive"]) == ("quickstart", True)
        wait_until(lambda: step_of(two.url, headers=key) > steps)
        assert post(two.url, "", {"profile": "cpu"}, headers=key).status_code == 409
        for _ in range(2):  # a second signal would end it without a checkpoint
            assert post(two.url, "/stop", headers=key).json()["stopping"]
        state = wait_until(lambda: not (found := launch_of(two.url, headers=key))["alive"] and found)
        assert "which is saved" in state["error"] and state["resumable"] and not state["finished"]
        assert state["code"] is None  # only its parent learns that
        saved = max(int(path.name[5:]) for path in (base / "runs" / "quickstart" / "base").glob("step_*"))
        assert saved >= steps
        assert post(two.url, "/resume", headers=key).status_code == 202
        wait_until(lambda: step_of(two.url, headers=key) > saved)
        two.process.send_signal(signal.SIGTERM)
        assert two.process.wait(60) == 0
        assert "the training run quickstart continues" in two.wait_log("continues")
        assert len(commands(base)) == 1
    finally:
        two.end()
        os.kill(json.loads((base / "launch" / "launch.json").read_text())["process"]["pid"], signal.SIGTERM)
        wait_until(lambda: not commands(base))


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root makes a process namespace here")
def test_a_container_that_stops_saves_the_run(base: Path, long_run: None) -> None:
    """Every process ends with a container's first one, so that one waits for the checkpoint; the next container resumes."""
    first_process = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    inside = [*first_process, sys.executable, "entrypoint.py", "serve", "--allow-training", "--port=0"]
    saved = 0
    for path in ("", "/resume"):
        outer = subprocess.Popen(inside, cwd=ROOT, env=environment(base), text=True, stderr=subprocess.PIPE)
        try:
            assert outer.stderr
            url = next(line for line in outer.stderr if "open http" in line).split()[1].rstrip("/")
            assert post(url, path, {"quickstart": True}).status_code == 202
            wait_until(lambda url=url, saved=saved: step_of(url) > saved)
            os.kill(int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0]), signal.SIGTERM)
            told = outer.stderr.read()
            assert outer.wait(60) == 0 and "waiting for the training run quickstart to save a checkpoint" in told
        finally:
            outer.kill()  # and with it all that runs inside
            outer.wait()
        assert "which is saved" in (base / "launch" / "train.log").read_text()
        newest = max(int(one.name[5:]) for one in (base / "runs" / "quickstart" / "base").glob("step_*"))
        assert newest > saved
        saved = newest


def test_damaged_records_are_none(base: Path) -> None:
    """The data directory may come from somebody else: what its launch.json says is checked like a request."""
    launcher, folder = Launcher(), base / "launch"
    folder.mkdir(parents=True)
    good = {"request": {"profile": "cpu"}, "run": "cpu", "process": vars(lock.Holder.here("a training run")), "stopping": False}
    (folder / "launch.json").write_text(json.dumps(good))
    assert launcher.state()["alive"]
    odd = [{"request": {"mirror": "x"}}, {"request": {"run": "--x"}}, {"run": "../x"}, {"run": 5}, {"process": {"pid": 1}}, {"process": 7}]
    for change in odd:
        (folder / "launch.json").write_text(json.dumps(good | change))
        assert launcher.state()["run"] is None, change
        with pytest.raises(ApiError, match="no training run was started here"):
            launcher.resume()
        with pytest.raises(ApiError, match="is running"):
            launcher.stop()
    (folder / "launch.json").write_text("[" * 100_000)
    assert launcher.state()["run"] is None


def test_a_process_that_has_the_number_of_an_ended_one_is_not_stopped(base: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = lock.Holder.here("a training run", other.pid)
    assert not lock.Holder(**vars(holder) | {"started": "1"}).terminate()
    time.sleep(0.1)
    assert other.poll() is None
    assert holder.terminate() and other.wait(10) == -signal.SIGTERM
    assert not holder.terminate()


def test_the_chat_leaves_the_gpu_before_a_run_starts(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It answers from the CPU before the process is there, so that the run plans with the GPU's whole memory, and goes back at its end."""
    step = base / "runs" / "a" / "sft" / "step_000001"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    places: list[tuple[str, int]] = []

    def load_on(_folder: Path, place: str) -> Any:
        places.append((place, len(commands(base))))
        return loaded_model()

    launcher = Launcher(lambda: watcher.look())
    watcher = ModelWatcher(Scheduler(ServerMetrics()), lambda: [step], load_on, base / "runs", "cuda", lambda: launcher.needs_gpu)
    watcher.look()
    sentences(tmp_path / "text.txt", 2_000)
    launcher.start(TrainingRequest(profile="cpu", data=str(tmp_path / "text.txt")))
    watcher.look()
    launcher.stop()
    wait_until(lambda: not launcher.state()["alive"])
    assert places == [("cuda", 0)]  # a run on the CPU needs no GPU
    launcher.start(TrainingRequest(data=str(tmp_path / "text.txt")))
    assert places[1:] == [("cpu", 0)]
    assert "the run that begins uses the GPU, so answers come from the CPU until it ends" in capsys.readouterr().err
    launcher.stop()
    wait_until(lambda: not launcher.state()["alive"])
    watcher.look()
    assert [place for place, _ in places] == ["cuda", "cpu", "cuda"]

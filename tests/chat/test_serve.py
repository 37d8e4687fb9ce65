"""`serve` as its user starts it: refusals, draining, kill and restart, a newer checkpoint taken over, a broken one refused."""

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from nanochat.chat.loading import load_model
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.models import ModelWatcher
from nanochat.chat.scheduler import Scheduler
from nanochat.chat.serve import ServeOptions, bind, serve
from nanochat.errors import DataError
from nanochat.runs import record as runs
from nanochat.runs.heartbeat import HEARTBEAT, heartbeat
from tests.chat.serve_process import Serve
from tests.chat.serving import loaded_model
from tests.tiny import call, start, wait_for

pytestmark = pytest.mark.long


@pytest.fixture
def server(trained: Path) -> Iterator[Serve]:
    one = Serve(trained)
    yield one
    one.end()


@pytest.mark.parametrize("options", [["--host=0.0.0.0"], ["--host=192.0.2.1"], ["--host=::"]])
def test_the_network_is_refused_without_a_key(base: Path, options: list[str]) -> None:
    done = call(base, "entrypoint.py", "serve", *options)
    assert done.returncode == 2
    assert "no key is set" in done.stderr
    assert "--insecure-no-key" in done.stderr


def test_ctrl_c_while_the_first_model_is_loaded(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(watcher: ModelWatcher) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelWatcher, "look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        serve(ServeOptions(port=0))


def test_key_files(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for name in ("missing", "empty"):
        done = call(base, "entrypoint.py", "serve", f"--api_key_file={tmp_path / name}")
        assert done.returncode == 2
        assert name in done.stderr


def test_a_taken_port_is_known_before_the_model_is_loaded(trained: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = call(trained, "entrypoint.py", "serve", f"--port={port}")
    assert done.returncode == 3
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}: address already in use\nhint: ")
    assert "serving run" not in done.stderr and "Traceback" not in done.stderr


def test_an_address_that_is_not_this_machines(base: Path) -> None:
    for host, why in (("192.0.2.1", "cannot assign requested address"), ("no.such.host.invalid", "there is no such address")):
        done = call(base, "entrypoint.py", "serve", f"--host={host}", "--insecure-no-key")
        assert done.returncode == 3 and why in done.stderr and "Traceback" not in done.stderr


def test_both_addresses_of_localhost(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may stand for two addresses, of which this machine may lack one."""
    answers = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    sockets = bind("localhost", 0)
    assert [one.family for one in sockets] == [socket.AF_INET]
    sockets[0].close()


def test_an_answer_and_a_key(trained: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("open sesame, or stay shut\n")
    key.chmod(0o600)
    one = Serve(trained, f"--api-key-file={key}")
    try:
        assert one.ask().status_code == 401
        answer = httpx.get(one.url + "/v1/models", headers={"authorization": "Bearer open sesame, or stay shut"}).json()["data"][0]
        assert (answer["id"], answer["stage"], answer["step"]) == ("tiny", "sft", 3)
        assert httpx.get(one.url + "/readyz").json() == {"status": "ready"}  # no name without the key
        assert "sesame" not in " ".join(map(str, one.process.args)) + "".join(one.log)
    finally:
        one.end()


def test_the_guides_command(trained: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(trained, "-m", "scripts.chat_web", f"--port={port}")
    try:
        wait_for(process, "open http://")
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()


def test_sigterm_drains(server: Serve) -> None:
    """An answer under way is finished, a new connection is refused, and the exit code is 0."""
    said: list[str] = []

    def read() -> None:
        body = {"messages": [{"role": "user", "content": "cat"}], "max_tokens": 200, "n": 8, "stream": True, "temperature": 1.5}
        with httpx.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=60) as answer:
            said.extend(answer.iter_lines())

    reader = threading.Thread(target=read)
    reader.start()
    end = time.monotonic() + 20
    while not said and time.monotonic() < end:
        time.sleep(0.001)
    server.process.send_signal(signal.SIGTERM)
    reader.join(60)
    assert said[-2] == "data: [DONE]"
    assert server.process.wait(40) == 0
    with pytest.raises(httpx.ConnectError):
        server.ask()


def test_killed_and_started_again(trained: Path) -> None:
    """Clients get an error that they can retry; nothing is left locked."""
    one = Serve(trained)
    results: list[Exception | int] = []

    def ask() -> None:
        try:
            results.append(one.ask(max_tokens=200, n=8, temperature=1.5).status_code)
        except httpx.HTTPError as error:
            results.append(error)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    time.sleep(0.3)
    one.end()
    for client in clients:
        client.join(30)
    assert len(results) == 4
    assert all(isinstance(result, httpx.TransportError) or result == 200 for result in results)
    again = Serve(trained)
    try:
        assert again.ask().status_code == 200
    finally:
        again.end()


def copy_steps(trained: Path, base: Path, stage: str, *steps: int) -> None:
    """Put steps of the trained run into `base`, the manifest last, as a trainer does."""
    for step in steps:
        source, target = trained / "runs" / "tiny" / stage / f"step_{step:06d}", base / "runs" / "tiny" / stage / f"step_{step:06d}"
        target.mkdir(parents=True)
        for path in sorted(source.iterdir(), key=lambda path: path.name == "manifest.json"):
            (target / path.name).write_bytes(path.read_bytes())
    if not (base / "tokenizer").exists():
        subprocess.run(["cp", "-r", str(trained / "tokenizer"), str(base / "tokenizer")], check=True)


def test_a_newer_checkpoint_takes_over_and_a_broken_one_does_not(trained: Path, base: Path) -> None:
    base.mkdir()
    one = Serve(base)
    try:
        assert httpx.get(one.url + "/readyz").status_code == 503
        copy_steps(trained, base, "base", 6)
        one.wait_log("serving run tiny, base step 6")
        assert one.ask().status_code == 200
        copy_steps(trained, base, "sft", 1)
        one.wait_log("serving run tiny, sft step 1")
        assert httpx.get(one.url + "/readyz").status_code == 200
        copy_steps(trained, base, "sft", 2)
        one.wait_log("serving run tiny, sft step 2")
        broken = base / "runs" / "tiny" / "sft" / "step_000003"
        broken.mkdir()
        for path in (trained / "runs" / "tiny" / "sft" / "step_000003").iterdir():
            data = bytearray(path.read_bytes())
            if path.name == "model.safetensors":
                data[-1] ^= 1
            (broken / path.name).write_bytes(data)
        assert "damaged" in one.wait_log("step_000003 is refused")
        time.sleep(3)
        assert httpx.get(one.url + "/v1/models").json()["data"][0]["step"] == 2
        assert one.ask().status_code == 200
        assert sum("step_000003 is refused" in line for line in one.log) == 1  # said once
    finally:
        one.end()


# What it is made of


def test_the_chat_leaves_the_gpu_to_a_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    step = tmp_path / "a" / "sft" / "step_000001"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("{}")
    places: list[str] = []

    def load_on(_folder: Path, place: str) -> Any:
        places.append(place)
        return loaded_model()

    watcher = ModelWatcher(Scheduler(ServerMetrics()), lambda: [step], load_on, tmp_path, "cuda")
    watcher.look()
    with heartbeat(tmp_path / "a", lambda: {"device": "cuda", "steps": {}, "trial": False}):
        while not (tmp_path / "a" / HEARTBEAT).exists():
            time.sleep(0.01)
        watcher.look()
        watcher.look()
    watcher.look()
    assert places == ["cuda", "cpu", "cuda"]
    assert capsys.readouterr().err.count("the run a uses the GPU") == 1


def test_the_chat_shares_the_cpu_with_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanochat.chat.models.physical_cores", lambda: 8)
    scheduler, limits = Scheduler(ServerMetrics()), []
    watcher = ModelWatcher(scheduler, list, lambda *_: loaded_model(), tmp_path)
    for run, device in (("a", "cuda"), ("b", "cpu")):
        (tmp_path / run).mkdir()
        with heartbeat(tmp_path / run, lambda device=device: {"device": device, "steps": {}, "trial": False}):  # type: ignore[misc]
            while not (tmp_path / run / HEARTBEAT).exists():
                time.sleep(0.01)
            for _ in range(2):
                watcher.look()
                limits.append(scheduler.most_threads)
        watcher.look()
        limits.append(scheduler.most_threads)
    assert limits == [None, None, None, 4, 4, None]
    assert capsys.readouterr().err.count("the run b trains on the CPU") == 1


def test_a_model_that_converses_is_not_replaced_unasked(tmp_path: Path) -> None:
    """Not by a base model, nor by another run's; a newer one of its run takes over, and a base model gives way to any."""
    found: list[Path] = []

    def put(run: str, stage: str, step: int) -> None:
        folder = tmp_path / run / stage / f"step_{step:06}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        found.insert(0, folder)

    def load_from(folder: Path, _place: str) -> Any:
        loaded = loaded_model(name=folder.parts[-3], chats=folder.parts[-2] != "base")
        loaded.stage, loaded.step = folder.parts[-2], int(folder.name.removeprefix("step_"))
        return loaded

    scheduler = Scheduler(ServerMetrics())
    watcher = ModelWatcher(scheduler, lambda: list(found), load_from, tmp_path)

    def answers() -> tuple[str, str, int]:
        watcher.look()
        assert scheduler.current
        return scheduler.current.name, scheduler.current.stage, scheduler.current.step

    put("a", "base", 1)
    assert answers() == ("a", "base", 1)
    put("b", "base", 1)
    assert answers() == ("b", "base", 1)
    put("a", "sft", 2)
    assert answers() == ("a", "sft", 2)
    put("b", "sft", 9)
    assert answers() == ("a", "sft", 2)  # another run's
    put("a", "base", 9)
    assert answers() == ("a", "sft", 2)  # a base model
    put("a", "sft", 3)
    assert answers() == ("a", "sft", 3)
    put("a", "rl", 1)
    assert answers() == ("a", "rl", 1)


def test_a_watcher_survives_whatever_it_finds(tmp_path: Path) -> None:
    def nothing() -> list[Path]:
        raise DataError("no run yet")

    scheduler = Scheduler(ServerMetrics())
    ModelWatcher(scheduler, nothing, lambda *_: loaded_model(), tmp_path).look()
    ModelWatcher(scheduler, lambda: [tmp_path / "gone"], lambda *_: loaded_model(), tmp_path).look()
    assert scheduler.current is None


def test_load(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(trained))
    steps = runs.finished_steps("tiny")
    assert [(step.parent.name, step.name) for step in steps[:4]] == [
        ("sft", "step_000003"),
        ("sft", "step_000002"),
        ("sft", "step_000001"),
        ("base", "step_000006"),
    ]
    one = load_model(steps[0], "cpu")
    assert (one.stage, one.step, one.chats, one.slots) == ("sft", 3, True, 64)
    assert load_model(steps[3], "cpu", slots=2).batch.slots == 2
    with pytest.raises(DataError):
        load_model(steps[0].parent / "step_000009", "cpu")

"""The guard inside a rented pod, with real commands and a server of our own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.cloud.guard import VARIABLE, Guard, supervise
from nanochat.errors import UsageError
from tests.cloud.fake_runpod import KEY, FakeRunPod, serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pod() -> Iterator[tuple[FakeRunPod, dict[str, str]]]:
    """A running pod, and the environment inside it."""
    with serving() as (fake, url):
        fake.create({"name": "n", "image": "i", "gpu": {"id": "g", "count": 1}})
        os.environ["NANOCHAT_RUNPOD_URL"] = url
        yield fake, {**os.environ, "RUNPOD_POD_ID": "pod0", "RUNPOD_API_KEY": KEY}
        del os.environ["NANOCHAT_RUNPOD_URL"]
        assert fake.invalid == []


def until(seconds: float, end: str = "stop") -> dict[str, str]:
    return {VARIABLE: str(Guard(time.time() + seconds, end))}


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


@pytest.mark.parametrize(("end", "state"), [("stop", "EXITED"), ("terminate", "TERMINATED")])
@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 6])
def test_pod_ends_with_the_training(pod: tuple[FakeRunPod, dict[str, str]], end: str, state: str, code: int) -> None:
    fake, environment = pod
    assert supervise(["sh", "-c", f"exit {code}"], environment | until(60, end), pause=0) == code
    assert fake.pods["pod0"]["status"] == state


def test_crashes_are_restarted_a_few_times(pod: tuple[FakeRunPod, dict[str, str]], tmp_path: Path) -> None:
    fake, environment = pod
    count = tmp_path / "count"
    assert supervise(["sh", "-c", f"echo >>{count}; exit 7"], environment | until(60), pause=0) == 7
    assert len(count.read_text()) == 3 and fake.running == []
    count.unlink()
    fake.pods["pod0"]["status"] = "RUNNING"
    again = f"echo >>{count}; test $(wc -l <{count}) = 2"
    assert supervise(["sh", "-c", again], environment | until(60), pause=0) == 0
    assert len(count.read_text()) == 2


def test_ceiling_lets_the_training_save(pod: tuple[FakeRunPod, dict[str, str]], tmp_path: Path) -> None:
    fake, environment = pod
    saved = tmp_path / "saved"
    text = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], 'w').close(), sys.exit(75))); time.sleep(60)"
    )
    assert supervise([*script(text), str(saved)], environment | until(3), pause=0) == 75
    assert saved.exists() and fake.pods["pod0"]["status"] == "EXITED"


def test_ceiling_kills_what_does_not_end(pod: tuple[FakeRunPod, dict[str, str]]) -> None:
    fake, environment = pod
    began = time.monotonic()
    text = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    assert supervise(script(text), environment | until(2), grace=0.5, pause=0) == 1
    assert time.monotonic() - began < 30 and fake.running == []


def test_pod_started_again_after_the_ceiling_ends_at_once(pod: tuple[FakeRunPod, dict[str, str]], tmp_path: Path) -> None:
    fake, environment = pod
    assert supervise(["touch", str(tmp_path / "ran")], environment | until(-5), pause=0) == 75
    assert not (tmp_path / "ran").exists() and fake.running == []


def test_host_is_asked_until_it_ends_the_pod(pod: tuple[FakeRunPod, dict[str, str]]) -> None:
    fake, environment = pod
    fake.fault("POST /v2/pods/[^/]+/action", (500,), "cut", (429, {"Retry-After": "0"}), (403,), (409,))  # 409: between two states
    assert supervise(["true"], environment | until(60), pause=0) == 0
    assert fake.running == [] and len(fake.calls("POST", "/v2/pods/pod0/action")) == 6


def test_training_sees_neither_guard_nor_key(pod: tuple[FakeRunPod, dict[str, str]]) -> None:
    _, environment = pod
    text = f"import os, sys; sys.exit(any(v in os.environ for v in ('{VARIABLE}', 'RUNPOD_API_KEY')))"
    assert supervise(script(text), environment | until(60), pause=0) == 0


def test_a_secret_that_the_account_lacks_ends_the_pod(pod: tuple[FakeRunPod, dict[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    """RunPod leaves such a reference as it is: sent as a token it would be refused, and the pod billed meanwhile."""
    fake, environment = pod
    environment |= {"HF_TOKEN": "{{ RUNPOD_SECRET_hf }}", "WANDB_API_KEY": "value"}
    assert supervise(["true"], environment | until(60), pause=0) == 2
    assert fake.running == [] and "no secret named hf" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "stop", "delete@5", "stop@soon"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Guard.parse(text)
    assert Guard.parse(str(Guard(1.8e9, "stop"))) == Guard(1.8e9, "stop")


@pytest.mark.long
def test_the_image_s_own_command_is_guarded(pod: tuple[FakeRunPod, dict[str, str]], tmp_path: Path) -> None:
    """As the pod runs it: the laptop's command, with the variable set; a final code, and a stop from outside."""
    fake, environment = pod
    environment |= {"NANOCHAT_BASE_DIR": str(tmp_path)}
    command = [sys.executable, "entrypoint.py", "train", "--profile", "cpu"]
    refused = subprocess.run(
        [*command, "--depth=0"], cwd=ROOT, env=environment | until(600), capture_output=True, text=True, timeout=120, check=False
    )
    assert refused.returncode == 2 and "error: --depth" in refused.stderr and KEY not in refused.stderr
    assert fake.running == []
    fake.create({"name": "n", "image": "i", "gpu": {"id": "g", "count": 1}})
    with subprocess.Popen(
        [*command, "--num_iterations=100000"], cwd=ROOT, env=environment | {"RUNPOD_POD_ID": "pod1"} | until(600)
    ) as process:
        metrics = tmp_path / "runs" / "cpu" / "metrics.jsonl"
        while not metrics.exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    assert fake.running == ["pod1"]  # whoever stops the pod does it himself

"""Renting on RunPod, against a server of our own that holds each request to the published description and plays every fault."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from nanochat.cli.submit import app
from nanochat.cloud import runpod, runpod_watch
from nanochat.cloud.guard import VARIABLE, Guard
from nanochat.cloud.runpod_api import Indeterminate, PaymentRequired, RunPod, read_key
from nanochat.cloud.runpod_secrets import environment, missing
from nanochat.cloud.workload import Workload, workload
from nanochat.errors import NanochatError, PreflightError, UsageError
from tests.cloud.fake_runpod import CARD, KEY, SECOND, FakeRunPod, gpu, serving

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = runpod.RentalOptions(min_cuda="13.0", poll=0.02)


@pytest.fixture
def server() -> Iterator[tuple[FakeRunPod, str]]:
    with serving() as (fake, url):
        yield fake, url
        assert fake.invalid == []


@pytest.fixture
def fake(server: tuple[FakeRunPod, str]) -> FakeRunPod:
    return server[0]


@pytest.fixture
def api(server: tuple[FakeRunPod, str]) -> RunPod:
    return RunPod(KEY, server[1], pause=0.01)


@pytest.fixture(scope="module")
def work() -> Workload:
    return workload("registry.example.org/me/nanochat:1", "night", "rtx4090", False, [])


def agree(_plan: str) -> bool:
    return True


def test_rents_follows_and_ends(fake: FakeRunPod, api: RunPod, work: Workload, capsys: pytest.CaptureFixture[str]) -> None:
    fake.lines.append("guard: the training ended with 0; this pod is ended (stop)")
    assert runpod.submit(api, work, OPTIONS, agree) == 0
    body = fake.calls("POST", "/v2/pods")[0]
    assert body["args"] == "train --profile rtx4090" and body["image"] == work.image
    assert body["gpu"] == {"id": CARD, "count": 1, "minCudaVersion": "13.0"}
    assert body["mounts"]["persistent"]["path"] == body["env"]["NANOCHAT_BASE_DIR"] == "/data"
    guard = Guard.parse(body["env"][VARIABLE])
    assert guard.end == "stop" and abs(guard.until - time.time() - 3600 * (2 * work.hours + 1)) < 60
    assert capsys.readouterr().out.splitlines()[:6] == [f"step {i}" for i in range(6)]
    assert fake.running == []


@pytest.mark.skipif("NANOCHAT_SCHEMAS" not in os.environ, reason="NANOCHAT_SCHEMAS names no folder of published schemas")
def test_bodies_follow_the_published_description(fake: FakeRunPod, work: Workload) -> None:
    """Every kind of body, and that the check is strict: an unknown field is refused."""
    one = runpod.Candidate(CARD, 0.5, "HIGH", 10.0)
    rich = replace(OPTIONS, volume="vol_x", registry="reg_x", data_centers=("US-KS-2",), environment=(("HF_ENDPOINT", "https://x"),))
    for options in (OPTIONS, rich, replace(OPTIONS, min_cuda="", cloud="COMMUNITY")):
        body = runpod.body(work, options, one, 1e9)
        assert fake.check("CreatePodRequest", body) == []
        assert fake.check("CreatePodRequest", body | {"interruptible": True}) != []
        assert fake.check("CreatePodRequest", body | {"gpu": {"id": CARD, "cuda": "13"}}) != []


def test_secrets_go_by_reference(fake: FakeRunPod, api: RunPod, work: Workload, capsys: pytest.CaptureFixture[str]) -> None:
    """As RunPod writes them, in a body that its description allows; the account's secret is never here, the guard keeps the rest."""
    values = environment(
        ["HF_ENDPOINT=https://mirror.example.org", "WANDB_API_KEY={{RUNPOD_SECRET_wandb}}"], ["HF_TOKEN=my-token", "AWS_SECRET_ACCESS_KEY"]
    )
    assert runpod.submit(api, work, replace(OPTIONS, environment=tuple(values.items())), agree, follow=False) == 0
    sent = fake.calls("POST", "/v2/pods")[0]
    assert {key: value for key, value in sent["env"].items() if "SECRET" in value} == {
        "HF_TOKEN": "{{ RUNPOD_SECRET_my-token }}",
        "AWS_SECRET_ACCESS_KEY": "{{ RUNPOD_SECRET_AWS_SECRET_ACCESS_KEY }}",
        "WANDB_API_KEY": "{{ RUNPOD_SECRET_wandb }}",
    }
    assert sent["env"]["HF_ENDPOINT"] == "https://mirror.example.org" and VARIABLE in sent["env"]
    assert fake.check("CreatePodRequest", sent) == [] and missing(sent["env"]) == ["AWS_SECRET_ACCESS_KEY", "my-token", "wandb"]
    fake.pods["pod0"]["status"] = "EXITED"
    assert runpod.submit(api, work, replace(OPTIONS, environment=tuple(values.items())), agree, follow=False) == 0
    (changed,) = fake.calls("PATCH", "/v2/pods/pod0")  # a stopped pod that is started again gets them too
    assert changed["env"]["HF_TOKEN"] == "{{ RUNPOD_SECRET_my-token }}"


@pytest.mark.parametrize(
    ("plain", "secrets"),
    [
        (["HF_TOKEN=hf_x"], []),
        (["HF_TOKEN=x{{ RUNPOD_SECRET_a }}hf_x"], []),
        ([], ["HF_TOKEN=hf_x y"]),
        ([], ["HF_TOKEN="]),
        ([], ["=a"]),
        ([], ["hf-x"]),
        ([], ["RUNPOD_API_KEY=a"]),
        ([], ["NANOCHAT_GUARD=a"]),
        (["PET_NNODES={{ RUNPOD_SECRET_a }}"], []),
        (["HF_ENDPOINT=https://me:hf_x@mirror.example.org"], []),
    ],
)
def test_secrets_that_are_none(plain: list[str], secrets: list[str]) -> None:
    """Refused without being repeated; the hint names an option of this command."""
    with pytest.raises(UsageError) as caught:
        environment(plain, secrets)
    assert "hf_x" not in caught.value.message + caught.value.hint
    for option in re.findall(r"--[a-z-]+", caught.value.message + caught.value.hint):
        assert option in {word for parameter in get_command(app).commands["runpod"].params for word in parameter.opts}, option


def test_plan_is_shown_and_a_no_rents_nothing(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    shown: list[str] = []
    assert runpod.submit(api, work, OPTIONS, lambda plan: bool(shown.append(plan))) == 0
    assert CARD in shown[0] and "$0.50 an hour" in shown[0] and "a month" in shown[0]
    assert fake.calls("POST", "/v2/pods") == []


def test_one_name_is_one_pod(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    assert runpod.submit(api, work, OPTIONS, agree, follow=False) == 0
    assert runpod.submit(api, work, OPTIONS, agree) == 0
    assert len(fake.pods) == 1
    assert runpod.submit(api, work, OPTIONS, agree, follow=False) == 0  # stopped by now: started again, with a new ceiling
    assert len(fake.pods) == 1 and fake.running == ["pod0"]


def test_next_candidate_where_there_is_no_capacity(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    fake.fault("POST /v2/pods", (400, {}, "no capacity"))
    assert runpod.submit(api, work, OPTIONS, agree, follow=False) == 0
    assert [body["gpu"]["id"] for body in fake.calls("POST", "/v2/pods")] == [CARD, SECOND]
    assert len(fake.running) == 1


@pytest.mark.parametrize(
    ("status", "error", "asked"),
    [
        (400, PreflightError, 2),
        (401, UsageError, 1),
        (402, PaymentRequired, 1),
        (403, PreflightError, 2),
        (409, NanochatError, 1),
        (422, UsageError, 1),
    ],
)
def test_refusals(fake: FakeRunPod, api: RunPod, work: Workload, status: int, error: type[NanochatError], asked: int) -> None:
    fake.fault("POST /v2/pods", *[(status, {}, "so it is")] * 5)
    with pytest.raises(error) as caught:
        runpod.submit(api, work, OPTIONS, agree)
    assert caught.value.hint
    assert len(fake.calls("POST", "/v2/pods")) == asked and fake.pods == {}


def test_patience_is_kept(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    fake.fault("POST /v2/pods", (429, {"Retry-After": "1"}))
    began = time.monotonic()
    assert runpod.submit(api, work, OPTIONS, agree, follow=False) == 0
    assert time.monotonic() - began >= 1 and len(fake.pods) == 1


@pytest.mark.parametrize("fault", [(500,), (503,), "cut"])
def test_failing_server_is_asked_again(fake: FakeRunPod, api: RunPod, work: Workload, fault: Any) -> None:
    fake.fault("GET /v2/pods", fault, fault)
    fake.fault("GET /v2/catalog/gpus", fault)
    fake.fault("POST /v2/pods", fault)
    assert runpod.submit(api, work, OPTIONS, agree, follow=False) == 0
    assert len(fake.pods) == 1


def test_pod_made_although_the_answer_was_lost(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    fake.fault("POST /v2/pods", "made-then-cut")
    assert runpod.submit(api, work, OPTIONS, agree, follow=False) == 0
    assert len(fake.calls("POST", "/v2/pods")) == 1 and len(fake.pods) == 1


def test_server_that_never_answers_ends_in_an_error(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    fake.fault("GET /v2/pods", *["cut"] * 20)
    with pytest.raises(Indeterminate) as caught:
        runpod.submit(api, work, OPTIONS, agree)
    assert fake.pods == {} and caught.value.__cause__ is None


def test_log_survives_cuts_without_losing_or_repeating_a_line(
    fake: FakeRunPod, api: RunPod, work: Workload, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.cut_after = 2
    fake.fault("GET /v2/pods/[^/]+/logs", (500,), "cut")
    assert runpod.submit(api, work, OPTIONS, agree) == 0
    assert capsys.readouterr().out.splitlines() == fake.lines


def test_exit_code_is_the_trainings(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    fake.lines.append("guard: the run ended with 5; this pod is ended (stop)")
    assert runpod.submit(api, work, OPTIONS, agree) == 5


@pytest.mark.parametrize("state", ["PROVISIONING", "STARTING", "ERROR"])
def test_pod_that_never_runs_is_given_back(fake: FakeRunPod, api: RunPod, work: Workload, state: str) -> None:
    fake.after_create = state
    with pytest.raises(PreflightError, match="terminated"):
        runpod.submit(api, work, replace(OPTIONS, start_minutes=0.002), agree)
    assert fake.pods["pod0"]["status"] == "TERMINATED"


def test_pod_that_dies(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    fake.when_logged = "ERROR"
    with pytest.raises(NanochatError, match="error state") as caught:
        runpod.submit(api, work, OPTIONS, agree)
    assert "terminate" in caught.value.hint and fake.running == []
    with pytest.raises(PreflightError, match="error state"):
        runpod.submit(api, work, OPTIONS, agree)


@pytest.mark.parametrize(("volume", "left"), [("", "EXITED"), ("vol_x", "TERMINATED")])
def test_client_enforces_the_ceiling(fake: FakeRunPod, api: RunPod, work: Workload, volume: str, left: str) -> None:
    fake.when_logged = ""
    fake.fault("POST /v2/pods/[^/]+/action", (500,), "cut")
    runpod.submit(api, work, replace(OPTIONS, volume=volume), agree, follow=False)
    with pytest.raises(NanochatError, match="time limit"):
        runpod_watch.watch(api, "pod0", time.time() + 0.2, OPTIONS.poll)
    assert fake.pods["pod0"]["status"] == left


def test_pod_that_cannot_be_ended_is_said_loudly(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    runpod.submit(api, work, OPTIONS, agree, follow=False)
    fake.fault("POST /v2/pods/[^/]+/action", *[(409,)] * 20)
    with pytest.raises(NanochatError, match="may still run and cost money"):
        runpod_watch.end(api, "pod0", "terminate")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"max_price": 0.1}, "--max-price"),
        ({"max_cost": 0.5}, "--max-cost"),
        ({"max_hours": 0.5}, "--max-hours"),
        ({"gpus": ("NVIDIA RTX 4050",)}, "not offered"),
    ],
)
def test_ceilings_refuse_before_anything_is_rented(fake: FakeRunPod, api: RunPod, work: Workload, change: dict[str, Any], why: str) -> None:
    with pytest.raises(PreflightError, match=why):
        runpod.submit(api, work, replace(OPTIONS, **change), agree)
    assert fake.pods == {}


def test_dearer_pod_than_the_catalogue_said_is_given_back(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    fake.cost = 3.0
    with pytest.raises(PreflightError, match="terminated"):
        runpod.submit(api, work, replace(OPTIONS, max_price=0.6), agree)
    assert fake.pods["pod0"]["status"] == "TERMINATED"


def test_free_cards_come_first_and_small_machines_are_left_out(fake: FakeRunPod, api: RunPod, work: Workload) -> None:
    fake.catalog = [gpu(CARD, free="NONE"), gpu(SECOND)]
    assert [one.gpu for one in runpod.candidates(api, work, OPTIONS)] == [SECOND, CARD]
    eight = workload("i", "", "h100x8", False, [])
    fake.catalog = [gpu("NVIDIA H100 80GB HBM3", most=4), gpu("NVIDIA H200", 4.0)]
    found = runpod.candidates(api, eight, OPTIONS)
    assert [(one.gpu, one.price) for one in found] == [("NVIDIA H200", 32.0)]
    with pytest.raises(UsageError, match="needs no GPU"):
        runpod.candidates(api, workload("i", "", "cpu", False, []), OPTIONS)


def test_key_is_bound_to_encryption_and_hidden(fake: FakeRunPod, api: RunPod, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unencrypted"):
        RunPod(KEY, "http://api.example.org")
    with pytest.raises(UsageError, match="no RunPod API key"):
        RunPod(" ")
    assert KEY not in api.hide(f"a\x1b[31m{KEY}b") and "\x1b" not in api.hide("\x1b[31m")
    assert api.hide("你好\u3000世界 👩‍💻") == "你好\u3000世界 👩‍💻"  # what steers no terminal stays
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    assert read_key(str(file)) == KEY
    with pytest.raises(PreflightError):
        read_key(str(tmp_path / "none"))


def command(url: str, *arguments: str, key: str = KEY, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NANOCHAT_RUNPOD_URL": url, "RUNPOD_API_KEY": key} | more
    return subprocess.run(
        [sys.executable, "entrypoint.py", "submit", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.long
def test_key_appears_nowhere(server: tuple[FakeRunPod, str]) -> None:
    """Not in output or a traceback, whatever fails, even where the server and the log repeat it."""
    fake, url = server
    fake.lines.append(f"env: RUNPOD_API_KEY={KEY}")
    told = [command(url, "runpod", "--image", "i", "--name", "night", "--yes")]
    told.append(command(url, "status", "--on", "runpod"))
    for fault in ((422, {}, f"bad {KEY}"), (500, {}, KEY), "cut"):
        fake.fault("GET /v2/pods", *[fault] * 5)
        told.append(command(url, "status", "night", "--on", "runpod", NANOCHAT_DEBUG="1"))
        fake.faults.clear()
    told.append(command(url, "status", "--on", "runpod", key=KEY + "x"))
    assert [one.returncode == 0 for one in told] == [True, True, False, False, False, False]
    assert "step 5" in told[0].stdout and "night" in told[1].stdout
    for one in told:
        assert KEY not in one.stdout + one.stderr
    assert fake.running == []


@pytest.mark.long
def test_interrupted_client_says_that_the_pod_goes_on(server: tuple[FakeRunPod, str]) -> None:
    fake, url = server
    fake.when_logged = ""
    environment = os.environ | {"NANOCHAT_RUNPOD_URL": url, "RUNPOD_API_KEY": KEY}
    arguments = [sys.executable, "entrypoint.py", "submit", "runpod", "--image", "i", "--name", "night", "--yes"]
    with subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "step 0\n"
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and "stopped following" in told and fake.running == ["pod0"]
    assert command(url, "stop", "night").returncode == 0
    assert fake.running == []
    assert command(url, "terminate", "night").returncode == 0
    assert fake.pods["pod0"]["status"] == "TERMINATED"

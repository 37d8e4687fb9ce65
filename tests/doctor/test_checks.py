"""Each thing that makes a run fail on somebody's machine, produced here, is found and answered in a line."""

import dataclasses
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.config import Config, build_config, parse_flags
from nanochat.doctor import checks as doctor
from nanochat.doctor import gpus
from nanochat.doctor.findings import Finding
from nanochat.errors import PreflightError, UsageError
from nanochat.hardware import nvml
from nanochat.hardware.machine import Hardware
from nanochat.hardware.memory import Memory
from nanochat.hardware.power import Power
from nanochat.model.build import allocate_model
from nanochat.model.scaling import gpt_config
from nanochat.pipeline import train as run
from nanochat.planning.plan import make_plan
from nanochat.planning.rules import resolve
from nanochat.train import device as training_device
from tests import tiny

CARD = Hardware(name="NVIDIA GeForce RTX 4050 Laptop GPU", cuda=True, memory=6 << 30, usable=int(5.2e9), flops=9.8e12, bf16=True)
CPU = Hardware(name="a CPU", cuda=False, memory=16 << 30, usable=12 << 30, flops=30e9)

# A driver's library as a C file: version, number of cards, memory, one process that holds some of it.
FAKE_NVML = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu, compute; } process_t;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strcpy(text, VERSION); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)1; return 0; }
int nvmlDeviceGetName(void *handle, char *name, unsigned size) { strcpy(name, "NVIDIA GeForce RTX 4050 Laptop GPU"); return 0; }
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    memory->total = 6ull << 30; memory->free = FREE; memory->used = memory->total - memory->free; return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process_t *found) {
    *count = 1; found[0].pid = 4711; found[0].bytes = memory_held(); return 0;
}
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a fake driver of some version, with some bytes free on its one card."""
    if not shutil.which("cc"):
        pytest.skip("a fake driver needs a C compiler")

    def install(version: str = "580.65.06", free: int = 6 << 30, visible: int = 1) -> None:
        source, library = tmp_path / "nvml.c", tmp_path / f"nvml-{version}-{free}.so"
        held = f"static unsigned long long memory_held(void) {{ return {(6 << 30) - free}ull; }}\n"
        source.write_text(held + FAKE_NVML.replace("VERSION", f'"{version}"').replace("FREE", f"{free}ull"))
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        monkeypatch.setattr(nvml, "LIBRARY", str(library))
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: visible > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)

    return install


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


def gpu_config(**changes: Any) -> Config:
    return build_config("rtx4050", True, {"dataset": "embedded", "device": "cuda"} | changes)


def findings(config: Config, hardware: Hardware, quick: bool = True) -> dict[str, Finding]:
    """The worst finding of each kind."""
    config = resolve(config, hardware=hardware)
    found = doctor.examine(config, make_plan(config, hardware), quick)
    order = {doctor.OK: 0, doctor.WARNING: 1, doctor.ERROR: 2}
    return {each.id: each for each in sorted(found, key=lambda each: order[each.level])}


# ---- the five rows of the guide ---------------------------------------------------------------------------------


def test_more_processes_than_gpus(base: Path, driver: Any) -> None:
    driver(visible=1)
    found = findings(gpu_config(nproc_per_node=8, total_batch_size=2048), CARD)["processes"]
    assert found.level == doctor.ERROR and found.what == "8 processes were requested; 1 GPU(s) are visible"
    assert "--nproc_per_node=1 (or --device=cpu)" in found.fix and "invalid device ordinal" in found.why


def test_they_are_refused_before_anything_is_launched(base: Path, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(visible=1)
    monkeypatch.setattr("nanochat.pipeline.prepare.this_machine", lambda device="auto": CARD)
    monkeypatch.setattr(run.ranks, "launch", lambda *arguments: pytest.fail("launched"))
    with pytest.raises(PreflightError, match="2 processes were requested; 1 GPU") as raised:
        run.train(gpu_config(nproc_per_node=2))
    assert "--nproc_per_node=1" in raised.value.hint


def test_unknown_config_key() -> None:
    for key in ("model_dim", "model-dim", "n_embd"):
        with pytest.raises(UsageError) as raised:
            parse_flags([f"--{key}=512"])
        assert raised.value.message.startswith("unknown config key") and "use --depth" in raised.value.hint


def test_missing_data_is_refused_at_once_with_a_command(base: Path) -> None:
    config = build_config("rtx4050", True, {"device": "cpu"})
    found = findings(config, CPU, quick=False)["network"]
    assert found.level == doctor.ERROR and "shards of climbmix" in found.what and "127.0.0.1:9 does not answer" in found.why
    assert "download --for rtx4050 --trial" in found.fix
    assert findings(config, CPU)["data"].level == doctor.OK  # `train` tries to fetch it itself


@pytest.mark.long
def test_more_ranks_than_rows(base: Path, tmp_path: Path) -> None:
    """16 KB of text are two rows of this length; four ranks would have to share them."""
    text = tiny.sentences(tmp_path / "text.txt", 40_000)
    command = tiny.flags(text, device="cpu", max_seq_len=16384, device_batch_size=1, total_batch_size=4 * 16384, num_iterations=1)
    command = [part for part in command if not part.startswith("--eval_tokens")]
    done = tiny.call(base, "entrypoint.py", *command, "--nproc_per_node=4", "--eval_tokens=16384", timeout=120)
    assert done.returncode == 4, done.stderr
    assert "processes were requested; the text has" in done.stderr and "--nproc_per_node=" in done.stderr


def test_compiling_shows_a_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch, "compile", lambda model, dynamic: model)
    config = resolve(gpu_config(compile="on"), hardware=CARD)
    training_device.forward_of(allocate_model(gpt_config(config.replace(vocab_size=300)), "meta"), config)
    assert "the first step and the first evaluation take about a minute longer" in capfd.readouterr().err


def test_no_rust_compiler(tmp_path: Path) -> None:
    """maturin's own message names no way out; the installer's does."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "printf", "awk", "sort", "head"):
        (tools / name).symlink_to(str(shutil.which(name)))
    environment = {"PATH": str(tools), "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "scripts/install.sh"], cwd=tiny.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "error: no working Rust compiler (cargo)" in done.stderr and "rustup), or load it: . ~/.cargo/env" in done.stderr


def test_windows_would_spill(base: Path, driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver()
    assert "spill" not in findings(gpu_config(), CARD)
    monkeypatch.setattr(platform, "release", lambda: "5.15.153.1-microsoft-standard-WSL2")
    found = findings(gpu_config(), CARD)["spill"]
    assert found.level == doctor.WARNING and "2%" in found.why and "--device_batch_size" in found.fix


# ---- the driver and its cards -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "level"), [("535.183.01", doctor.ERROR), ("580.65.06", doctor.OK)])
def test_the_driver_against_torch(base: Path, driver: Any, version: str, level: str) -> None:
    driver(version)
    found = findings(gpu_config(), CARD)["driver"]
    assert found.level == level and version in found.what
    assert ("R580" in found.fix) == (level == doctor.ERROR)


def test_who_holds_the_memory(base: Path, driver: Any) -> None:
    driver(free=int(1e8))
    found = findings(gpu_config(), CARD)["memory"]
    assert found.level == doctor.ERROR and "process 4711 uses 6.3 GB" in found.what
    driver(free=4 << 30)
    assert findings(gpu_config(), CARD)["memory"].level == doctor.WARNING
    driver()
    assert findings(gpu_config(), CARD)["memory"].level == doctor.OK


def test_the_hint_names_a_batch_that_fits_into_what_others_leave(base: Path, driver: Any) -> None:
    driver(free=2 << 30)
    config = gpu_config(depth=8, vocab_size=16384, max_seq_len=1024, device_batch_size=16, total_batch_size=16384)
    found = findings(config, CARD)["memory"]
    assert found.level == doctor.ERROR
    smaller = int(found.fix.split("--device_batch_size=")[1].split(",")[0])
    assert 1 <= smaller < 16
    assert findings(config.replace(device_batch_size=smaller), CARD)["memory"].level != doctor.ERROR


def test_a_cards_run_for_days_on_the_cpu_is_refused_also_where_a_driver_is_there(base: Path, driver: Any) -> None:
    driver(visible=0)
    config = resolve(build_config("rtx4050", False, {"dataset": "embedded", "device_batch_size": 8}), hardware=CPU)
    plan = dataclasses.replace(make_plan(config, CPU), seconds=4 * 86400.0)
    with pytest.raises(PreflightError, match="no CUDA device is visible"):
        doctor.require(config, plan, "auto")
    doctor.require(config, plan, "cpu")


def test_cards_that_torch_does_not_see(base: Path, driver: Any) -> None:
    driver(visible=0)
    found = findings(gpu_config(), CARD)
    assert found["torch"].level == doctor.ERROR and "CUDA_VISIBLE_DEVICES" in found["torch"].why
    assert findings(gpu_config(device="cpu"), CPU)["torch"].level == doctor.WARNING


def test_a_gpu_asked_for_where_there_is_none(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "no-such-library.so")
    assert findings(gpu_config(), CARD)["driver"].level == doctor.ERROR
    assert findings(build_config("cpu"), CPU)["driver"].level == doctor.OK


# ---- the machine ------------------------------------------------------------------------------------------------


def test_without_a_compiler(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = findings(build_config("cpu"), CPU)["compiler"]
    assert found.level == doctor.WARNING and "cc" in found.what and "apt install gcc" in found.fix
    assert findings(build_config("cpu", overrides={"compile": "on"}), CPU)["compiler"].level == doctor.ERROR


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk with 100 MB left, as the data directory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "none", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs a mount, which is not allowed here")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_with_100_megabytes_left(full_disk: Path) -> None:
    found = findings(build_config("rtx4050", overrides={"device": "cpu"}), CPU)["disk"]
    assert found.level == doctor.ERROR and "0.1 GB free" in found.what and "NANOCHAT_BASE_DIR" in found.fix
    assert findings(build_config("cpu"), CPU)["disk"].level == doctor.OK  # which is enough for the small one
    (full_disk / "filler").write_bytes(bytes(80 << 20))
    assert findings(build_config("cpu"), CPU)["disk"].level == doctor.WARNING


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "file" / "below"))
    found = findings(build_config("cpu"), CPU)["folder"]
    assert found.level == doctor.ERROR and str(tmp_path / "file" / "below") in found.what and "NANOCHAT_BASE_DIR" in found.fix


def test_a_clock_that_is_wrong_and_too_few_files(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {"clock", "files"} & findings(build_config("cpu"), CPU).keys()
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (256, 4096))
    found = findings(build_config("cpu"), CPU)
    assert found["clock"].level == found["files"].level == doctor.WARNING and "ulimit -n 4096" in found["files"].fix


def test_a_slow_disk(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(build_config("cpu"), CPU, quick=False)["disk speed"].level in (doctor.OK, doctor.WARNING)
    monkeypatch.setattr(doctor, "SLOW_DISK", 1e15)
    assert findings(build_config("cpu"), CPU, quick=False)["disk speed"].level == doctor.WARNING
    assert not list(base.glob(".tmp-*"))


# ---- the commands -----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_command(base: Path) -> None:
    done = tiny.call(base, "entrypoint.py", "doctor", "--profile=cpu", "--json")
    value = json.loads(done.stdout)
    assert done.returncode == 0 and value["ok"] is True, done.stderr
    assert all(set(finding) == {"id", "level", "what", "why", "fix", "means"} for finding in value["findings"])
    assert all(bool(finding["means"]) == (finding["level"] != "ok") for finding in value["findings"])
    text = tiny.call(base, "entrypoint.py", "doctor", "--profile=rtx4050")  # whose data cannot be fetched here
    assert text.returncode == 3 and "does not answer" in text.stdout and "fix: " in text.stdout


def test_battery_and_heat(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not {"battery", "heat"} & set(findings(build_config("cpu"), CPU)) or Path("/sys/class/power_supply/BAT0").exists()
    monkeypatch.setattr(doctor.power, "read_power", lambda: Power(41, "the system limits the processor to 40% of its frequency"))
    found = findings(build_config("cpu"), CPU)
    assert found["battery"].level == doctor.WARNING and "battery (41% left)" in found["battery"].what and found["battery"].means
    assert found["heat"].level == doctor.WARNING and "40%" in found["heat"].what and found["heat"].means


def test_a_limit_of_memory_is_named(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.memory, "available", lambda: Memory(1, "a container's or service's limit (memory.max) of 2.0 GB"))
    assert findings(build_config("cpu"), CPU)["memory"].what.endswith("usable, by a container's or service's limit (memory.max) of 2.0 GB")


@pytest.mark.parametrize(("limit", "level"), [(0.5, doctor.WARNING), (1.5, doctor.OK), (4.0, None)])
def test_a_limit_of_processors_is_named(limit: float, level: str | None, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_processors", lambda: set(range(4)))
    monkeypatch.setattr(doctor, "processor_limit", lambda: limit)
    found = findings(build_config("cpu"), CPU).get("processors")
    assert found is None if level is None else found and found.level == level and found.what.startswith(f"{limit} of 4 processors")


def test_train_warns_and_goes_on(base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (256, 4096))
    config = resolve(build_config("cpu"), hardware=CPU)
    doctor.require(config, make_plan(config, CPU))
    assert "warning: the limit of open files is 256" in capfd.readouterr().err


# ---- doctor --gpus ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_work_and_the_exchange_between_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tiny.ROOT))
    found = gpus.check_gpus("cpu", 2, seconds=0.5)
    assert [each.id for each in found] == ["gpus", "gpus", "all-reduce"], found
    assert "TFLOP/s" in found[0].what and "GB/s between 2 devices" in found[2].what


def test_an_outlier_is_named() -> None:
    found = gpus.judge([400e12] * 3 + [250e12] + [400e12] * 4, 1e11)
    assert [each.level for each in found].count(doctor.WARNING) == 1
    assert found[3].level == doctor.WARNING and "GPU 3" in found[3].what and "cooling" in found[3].fix


def test_a_device_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.ranks, "launch", lambda *arguments, **options: 1)
    assert gpus.check_gpus("cuda", 2)[0].level == doctor.ERROR
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpus.check_gpus("cuda")[0].what == "there is no GPU to test"

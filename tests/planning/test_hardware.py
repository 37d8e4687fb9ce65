"""What a run is planned for: this machine's GPU, the profile's, or this machine's CPU."""

import dataclasses

import pytest

from nanochat.config import Config, build_config
from nanochat.hardware.gpu_specs import GIB, GPU_SPECS, require_spec
from nanochat.hardware.machine import Hardware
from nanochat.planning import hardware
from nanochat.planning.hardware import choose_hardware, detect_profile, gpu_hardware, profile_hardware

CPU = Hardware(name="a CPU", cuda=False, memory=16 * GIB, usable=12 * GIB, flops=30e9)


def gpus(gibibytes: int, count: int = 1) -> Hardware:
    return Hardware(name="a GPU", cuda=True, memory=gibibytes * GIB, usable=gibibytes * GIB, flops=1e13, count=count)


@pytest.mark.parametrize(
    ("machine", "profile"),
    [
        (CPU, "cpu"),
        (gpus(6), "rtx4050"),
        (gpus(24), "rtx4090"),
        (gpus(80), "rtx4090"),
        (gpus(80, 8), "h100x8"),
        (dataclasses.replace(gpus(15, 2), fp16=True), "t4"),
        (dataclasses.replace(gpus(16), fp16=True, bf16=True), "rtx4050"),
        (dataclasses.replace(gpus(24), fp16=True), "rtx4090"),
    ],
    ids=["cpu", "6 GB", "24 GB", "80 GB", "8 x 80 GB", "2 x T4", "16 GB with bfloat16", "24 GB of Turing"],
)
def test_the_profile_for_this_machine(machine: Hardware, profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "this_machine", lambda device="auto": machine)
    assert detect_profile() == profile


def test_a_gpu_that_is_here_comes_before_the_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config("h100x8")
    monkeypatch.setattr(hardware, "this_machine", lambda device="auto": CPU)
    planned = choose_hardware(config)
    assert (planned.name, planned.count, planned.here) == ("NVIDIA H100 80GB HBM3", 8, False)
    assert choose_hardware(config.replace(device="cpu")) == choose_hardware(Config()) == CPU
    monkeypatch.setattr(hardware, "this_machine", lambda device="auto": gpus(24))
    assert choose_hardware(config) == gpus(24)


def test_the_table_is_planned_with() -> None:
    assert profile_hardware(build_config("cpu")) is None
    for spec in GPU_SPECS:
        found = gpu_hardware(require_spec(spec.name), 2)
        assert (found.memory, found.flops, found.source, found.dollars) == (spec.memory, spec.flops, spec.source, spec.dollars)
        assert found.count == 2 and 0.8 * found.memory < found.usable < found.memory

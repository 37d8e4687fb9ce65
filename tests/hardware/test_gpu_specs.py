"""The table of GPUs: each figure has a source, and people's and drivers' names find the right row."""

import pytest

from nanochat.errors import UsageError
from nanochat.hardware.gpu_specs import GIB, GPU_SPECS, PROFILE_GPUS, RENTAL_GPUS, find_spec, require_spec


def test_each_figure_has_a_source() -> None:
    for spec in GPU_SPECS:
        assert "published" in spec.source or spec.source.startswith("estimate"), spec
        assert 0.1 * spec.peak_flops < spec.flops < 0.9 * spec.peak_flops, spec
        assert spec.memory % GIB == 0
    assert len({spec.name for spec in GPU_SPECS}) == len(GPU_SPECS)


# Multiprocessors and boost clock in GHz, from NVIDIA's white papers and product pages.
GEFORCE = {
    "RTX 3060": (28, 1.777),
    "RTX 3090": (82, 1.695),
    "RTX 4050 Laptop GPU": (20, 2.37),
    "RTX 4060": (24, 2.46),
    "RTX 4060 Laptop GPU": (24, 2.37),
    "RTX 4070": (46, 2.475),
    "RTX 4080": (76, 2.505),
    "RTX 4090": (128, 2.52),
    "RTX 5090": (170, 2.407),
}


def test_geforces_peaks_follow_from_their_units_and_clocks() -> None:
    found = {spec.name.removeprefix("NVIDIA GeForce "): spec.peak_flops for spec in GPU_SPECS if "GeForce" in spec.name}
    assert found.keys() == GEFORCE.keys()
    for name, (units, clock) in GEFORCE.items():
        assert found[name] == pytest.approx(512 * units * clock * 1e9, rel=0.05), name


def test_a_turing_gpu_has_no_bfloat16() -> None:
    assert [spec.name for spec in GPU_SPECS if not spec.bf16] == ["Tesla T4"] and find_spec("Tesla T4") is find_spec("t4")


@pytest.mark.parametrize("profile", PROFILE_GPUS)
def test_what_is_rented_for_a_profile_is_no_slower_than_its_own_gpu(profile: str) -> None:
    own = require_spec(PROFILE_GPUS[profile])
    assert own.name == PROFILE_GPUS[profile]
    for name in RENTAL_GPUS[profile]:
        rented = require_spec(name)
        assert rented.name == name and rented.dollars and rented.memory >= own.memory and rented.peak_flops >= own.peak_flops


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "NVIDIA GeForce RTX 4060 Laptop GPU"),
        ("NVIDIA GeForce RTX 4060", "NVIDIA GeForce RTX 4060"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"),
        ("4070", "NVIDIA GeForce RTX 4070"),
        ("rtx 4090", "NVIDIA GeForce RTX 4090"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("RTX4050", "NVIDIA GeForce RTX 4050 Laptop GPU"),
    ],
)
def test_names(name: str, found: str) -> None:
    assert require_spec(name).name == found


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 NVL", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 3090 Ti", 71e12),
    ],
)
def test_the_peaks_of_the_metrics_mfu(name: str, peak: float) -> None:
    spec = find_spec(name)
    assert spec is not None and spec.peak_flops == peak


@pytest.mark.parametrize("name", ["GeForce GTX 1080", "nothing", "", "NVIDIA"])
def test_unknown_names(name: str) -> None:
    assert find_spec(name) is None
    with pytest.raises(UsageError, match="unknown GPU") as raised:
        require_spec(name)
    assert "RTX 4070" in raised.value.hint

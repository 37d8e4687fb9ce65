"""Every kernel of a training step compiles for every GPU that the project names, and fits its registers and its shared memory."""

from pathlib import Path

import pytest

from tests.nullgpu.architectures import Compiled, candidates, compiled, faults, tried
from tests.nullgpu.machine import steps

SHAPE = {"depth": 4, "device_batch_size": 4, "max_seq_len": 512, "compile": "on", "total_batch_size": 4096, "window_pattern": "SSSL"}


def kernels(card: str, dtype: str, cache: Path, **changes: object) -> list[Path]:
    """The kernels of a compiled step on `card`."""
    environ = {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    steps(card, environ=environ, config=SHAPE | {"dtype": dtype} | changes, kernels="compile", steps=2, evaluate=True, timeout=3000)
    found = candidates(cache)
    assert len({path.stem for path in found}) > 10
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("card", "dtype", "architectures"),
    [
        ("4090", "bfloat16", {86: "bf16", 89: "bf16", 90: "bf16", 100: "bf16", 120: "bf16", 75: "f16"}),  # Turing has no bfloat16
        ("t4", "float32", {75: "bf16"}),  # what a Turing GPU computes in with --dtype=float32
        ("t4", "float16", {75: "f16"}),  # and without it
    ],
)
def test_every_kernel_compiles(card: str, dtype: str, architectures: dict[int, str], tmp_path: Path) -> None:
    sources = kernels(card, dtype, tmp_path / "cache")
    bad = []
    for capability, half in architectures.items():
        bad += faults(tried(sources, capability, tmp_path, half), capability)
    assert bad == []


ADD = """
module {
  tt.func public @add(%a: !tt.ptr<bf16> {tt.divisibility = 16 : i32}) attributes {noinline = false} {
    %at = tt.make_range {end = 128 : i32, start = 0 : i32} : tensor<128xi32>
    %base = tt.splat %a : !tt.ptr<bf16> -> tensor<128x!tt.ptr<bf16>>
    %where = tt.addptr %base, %at : tensor<128x!tt.ptr<bf16>>, tensor<128xi32>
    %value = tt.load %where : tensor<128x!tt.ptr<bf16>>
    %sum = arith.addf %value, %value : tensor<128xbf16>
    tt.store %where, %sum : tensor<128x!tt.ptr<bf16>>
    tt.return
  }
}
"""


@pytest.mark.parametrize(("capability", "half"), [(75, "f16"), (89, "bf16"), (120, "bf16")])
def test_a_kernel_compiles_without_a_gpu(capability: int, half: str, tmp_path: Path) -> None:
    source = tmp_path / "cache" / "add.ttir"
    source.parent.mkdir()
    source.write_text(ADD, encoding="utf-8")
    source.with_suffix(".json").write_text('{"num_warps": 4, "num_stages": 1}', encoding="utf-8")
    assert candidates(tmp_path) == [source]
    found = compiled(source, capability, tmp_path, half)
    assert found.name == "add" and 0 < found.registers <= 255 and found.spilled == 0 and faults([found], capability) == []
    assert tried([source, source], capability, tmp_path, half) == [found], "one candidate without faults is enough"


def test_a_kernel_needs_one_good_candidate() -> None:
    spills, large, good = (Compiled("k", 255, spilled, shared) for spilled, shared in ((8, 0), (0, 200 << 10), (0, 1024)))
    assert faults([spills, good], 89) == faults([large, good], 89) == faults([large], 90) == []
    assert faults([spills], 90) == ["sm_90: every candidate of k spills"]
    assert faults([large], 89) == ["sm_89: every candidate of k needs more shared memory than a block has"]

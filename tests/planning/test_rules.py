"""Every rule gives a value that can run, the same each time."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import FIELDS, PROFILE_NAMES, Config, build_config
from nanochat.errors import UsageError
from nanochat.hardware import toolchain
from nanochat.hardware.machine import Hardware
from nanochat.model import scaling
from nanochat.planning import rules
from nanochat.planning.rules import apply_rules, resolve
from tests.planning.machines import CPU, GPU, card

# There -1 says "at the end", or (rl_iterations) is settled when the questions are there.
MAY_STAY = {"eval_every", "sample_every", "save_every", "rl_iterations"}


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "product_gain", lambda *_: 1.0)


def user_text(**changes: object) -> Config:
    return build_config("cpu", overrides={"data": "texts", "vocab_size": -1, "num_iterations": -1, "sft_iterations": -1} | changes)


@pytest.mark.parametrize("trial", [False, True], ids=["full", "trial"])
@pytest.mark.parametrize("name", PROFILE_NAMES)
def test_nothing_is_left_to_the_rules(name: str, trial: bool) -> None:
    config = build_config(name, trial)
    applied = apply_rules(config, hardware=card(config))
    left = {key for key, value in applied.config.to_dict().items() if value in (-1, "auto") and key not in MAY_STAY}
    assert left <= ({"shards"} if name == "cpu" else set())  # the embedded text has no published shards
    assert resolve(applied.config, hardware=card(config)) == applied.config
    changed = {key for key in FIELDS if getattr(applied.config, key) != getattr(config, key)}
    assert {line.split(" = ")[0] for line in applied.rules} == changed


@given(
    depth=st.integers(1, 32),
    rows=st.integers(1, 40),
    context=st.integers(32, 4096),
    processes=st.integers(1, 8),
    ratio=st.floats(0.1, 40),
    text=st.none() | st.integers(1, 10**12),
    hardware=st.sampled_from([CPU, GPU]),
)
def test_resolved_values_can_always_run(
    depth: int, rows: int, context: int, processes: int, ratio: float, text: int | None, hardware: Hardware
) -> None:
    config = Config(
        depth=depth,
        device_batch_size=rows,
        max_seq_len=context,
        nproc_per_node=processes,
        target_param_data_ratio=ratio,
        window_pattern="SSSL",
    )
    resolved = resolve(config, text_bytes=text, hardware=hardware)  # Config itself checks that the batch can be dealt
    assert resolved == resolve(config, text_bytes=text, hardware=hardware)
    assert 512 <= resolved.vocab_size <= 32768
    assert resolved.num_iterations >= 1
    assert resolved.eval_tokens % context == 0
    assert 5 * resolved.sft_iterations <= resolved.num_iterations or resolved.sft_iterations == 1
    assert resolved.compile in ("on", "off")


def test_a_gpu_run_follows_the_published_rules() -> None:
    config = resolve(Config(depth=12), hardware=GPU)
    assert (config.device, config.vocab_size, config.total_batch_size, config.num_iterations) == ("cuda", 32768, 2**19, 2520)
    assert config.weight_decay == pytest.approx(0.28, rel=1e-3)
    assert config.shards == 43


def test_the_precision_is_what_the_device_is_fast_in(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = {"bfloat16": 2.4, "int16": 1.4}
    monkeypatch.setattr(rules, "product_gain", lambda _, kind: gains[kind])
    wide, narrow = (Config(depth=4, aspect_ratio=width // 4, head_dim=32, device="cpu") for width in (256, 96))
    units = dataclasses.replace(CPU, bf16=True)
    assert resolve(Config(), hardware=GPU).dtype == resolve(wide, hardware=units).dtype == "bfloat16"
    assert resolve(Config(), hardware=dataclasses.replace(GPU, bf16=False)).dtype == "float32"
    turing = apply_rules(Config(), hardware=dataclasses.replace(GPU, name="Tesla T4", bf16=False, fp16=True))
    assert turing.config.dtype == "float16" and "dtype = float16: no bfloat16 units in Tesla T4; the loss is scaled" in turing.rules
    assert resolve(Config(deterministic=True), hardware=dataclasses.replace(GPU, bf16=False, fp16=True)).dtype == "float32"
    assert resolve(wide, hardware=CPU).dtype == "int16"
    assert resolve(wide, hardware=dataclasses.replace(CPU, avx2=False)).dtype == "float32"
    assert resolve(narrow, hardware=units).dtype == resolve(narrow, hardware=CPU).dtype == "float32"
    assert resolve(wide.replace(deterministic=True), hardware=units).dtype == "float32"
    gains.update(bfloat16=0.5, int16=1.1)  # units that an emulator would beat; integers that a wider processor's floats beat
    for machine, gain in ((units, "0.5"), (CPU, "1.1")):
        slow = apply_rules(wide, hardware=machine)
        assert slow.config.dtype == "float32" and any(f"{gain} times as fast" in line for line in slow.rules)
    assert resolve(Config(dtype="float32"), hardware=GPU).dtype == "float32"
    for dtype in ("bfloat16", "float16", "int16"):
        with pytest.raises(UsageError, match=f"not in --dtype={dtype}"):
            Config(deterministic=True, dtype=dtype)
    with pytest.raises(UsageError, match="int16 needs a CPU"):
        resolve(Config(dtype="int16"), hardware=GPU)


def test_shards_follow_the_published_counts() -> None:
    assert [resolve(Config(depth=depth), hardware=GPU).shards for depth in (4, 12)] == [5, 43]
    assert resolve(Config(depth=24, target_param_data_ratio=8), hardware=GPU).shards == pytest.approx(170, rel=0.15)
    assert resolve(Config(depth=60, dataset="fineweb-edu"), hardware=GPU).shards == 1822  # no more are published


def test_what_the_user_says_is_kept() -> None:
    config = Config(depth=4, vocab_size=1000, total_batch_size=65536, num_iterations=7, weight_decay=0.5, shards=3, eval_tokens=4096)
    said = config.replace(dtype="float32", compile="off", threads=1, device="cpu", sft_iterations=2)
    assert apply_rules(said, hardware=CPU) == rules.Resolved(said, [])


def test_paths_become_absolute_and_public_sets_stay_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = rules.normal(Config(data="texts", chat_data="hf:some/Talks", identity="~/who.toml"))
    assert (config.data, config.chat_data) == (str(tmp_path / "texts"), "hf:some/Talks")
    assert config.identity == str(Path.home() / "who.toml")


def test_a_small_text_gets_a_small_vocabulary_and_few_passes() -> None:
    sizes = [10**4, 10**6, 5 * 10**7, 4 * 10**8, 10**10]
    chosen = [resolve(user_text(), text_bytes=size, hardware=CPU) for size in sizes]
    assert [config.vocab_size for config in chosen] == [512, 512, 1024, 4096, 16384]
    assert chosen[0].num_iterations == rules.MINIMUM_ITERATIONS
    for size, config in zip(sizes[1:], chosen[1:], strict=True):
        seen = config.num_iterations * config.total_batch_size * scaling.bytes_per_token(config.vocab_size)
        assert seen <= scaling.MAXIMUM_EPOCHS * size


def test_a_cpu_run_by_rule_ends_in_minutes() -> None:
    for size in (10**6, 4 * 10**8):
        config = resolve(user_text(), text_bytes=size, hardware=CPU)
        operations = scaling.flops_per_token(scaling.gpt_config(config)) * config.num_iterations * config.total_batch_size
        assert operations <= rules.CPU_BUDGET * 1.01
    lines = apply_rules(user_text(), text_bytes=4 * 10**8, hardware=CPU).rules
    assert any(line.startswith("num_iterations") and "--num_iterations" in line for line in lines)


def test_published_text_on_a_cpu_takes_one_shard_and_its_vocabulary() -> None:
    config = resolve(user_text(data="", dataset="climbmix"), hardware=CPU)
    assert (config.shards, config.vocab_size) == (1, 4096)


def test_compile_only_where_it_earns_its_start_back(monkeypatch: pytest.MonkeyPatch) -> None:
    long = {"depth": 8, "num_iterations": 10_000}
    assert resolve(Config(**long), hardware=GPU).compile == "on"
    assert resolve(Config(**long, deterministic=True), hardware=GPU).compile == "off"
    assert resolve(build_config("rtx4090", True), hardware=GPU).compile == "off"
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    applied = apply_rules(Config(**long), hardware=dataclasses.replace(GPU, here=True))
    assert applied.config.compile == "off"
    assert any("gcc" in line for line in applied.rules)
    assert resolve(Config(**long), hardware=CPU).compile == "off"

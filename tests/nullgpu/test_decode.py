"""Decoding on the null GPU: a token's launches, syncs and copies with CUDA graphs, in `serve` and in rollouts, and their memory."""

import json
from typing import Any

import pytest

from tests.nullgpu.machine import run

LAUNCHES = 23  # a token: a tenth of the 236 of November 2026, when each kernel was a launch
DECODED = """
import json, torch
from nanochat.config import build_config
from nanochat.generate.batching import Batch, SequenceState
from nanochat.generate.sampling import Sampling
from nanochat.model.gpt import GPT
from nanochat.model.scaling import gpt_config
from nanochat.train import device
from tests.generate.models import TOKENIZER
from tests.nullgpu.counted import Counted
GPT.init_weights = lambda self, seed: None
config = build_config("rtx4050", False, {"device": "cuda", "threads": 1})
device.set_up(config)
model = device.new_model(gpt_config(config), torch.device("cuda", 0), config)
def decoded(rows, *samplings, steps=20, prompt=50):
    batch = Batch(model, TOKENIZER, rows, 512, prompt_tokens=1 << 20)
    for i in range(rows):
        batch.join(SequenceState(TOKENIZER, [1] * prompt, 900, samplings[i % len(samplings)], i))
    for _ in range(4):
        batch.step()
    with Counted() as counted:
        for _ in range(steps):
            batch.step()
    return {name: count / steps for name, count in counted.entry["counts"].items()} | {"rows": rows}
"""
CASES = """
greedy, chat, rollout = Sampling(0.0), Sampling(0.8, 50, seed=1), Sampling(1.0, 50, seed=1)
mixed = greedy, chat, Sampling(1.0, seed=2), Sampling(1.0, None, 0.9, 3)
found = [decoded(1, greedy), decoded(1, chat), decoded(5, *mixed), decoded(128, rollout)]
print(json.dumps(found))
"""
ROLLOUTS = """
batch, tokens, steps = Batch(model, TOKENIZER, 128, 320, prompt_tokens=1 << 20), 0, 0
with Counted() as counted:
    for i in range(128):
        batch.join(SequenceState(TOKENIZER, [1] * 50, 8 + 2 * i, Sampling(1.0, 50, seed=1), i))
    while batch.sequences:
        tokens += len(batch.step())
        steps += 1
print(json.dumps([tokens, steps, counted.entry["counts"]]))
"""
SERVED = """
import queue
from nanochat.chat.loading import LoadedModel
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.scheduler import GenerationRequest, Scheduler
loaded = LoadedModel("run", "sft", 1, model, TOKENIZER, True, False, 1, 8)
scheduler, deltas = Scheduler(ServerMetrics()), queue.Queue()
scheduler.start()
with Counted() as counted:
    chat = Sampling(0.8, 50, seed=1)
    scheduler.submit([GenerationRequest(loaded, [1] * 50, 300, chat, deltas.put, index) for index in range(5)])
    done = 0
    while done < 5:
        done += deltas.get(timeout=60).finish is not None
scheduler.stop()
print(json.dumps([300, counted.entry["counts"]]))
"""
SAMPLED = """
from nanochat.data.problems import Problem
from nanochat.generate.engine import Engine
from nanochat.train.reinforce import Sampler
sampler = Sampler(Engine(model, TOKENIZER), config.replace(rl_max_new_tokens=200))
with Counted() as counted:
    sampler([Problem(f"{i} + 1", f"{i + 1}", str) for i in range(8)], 16, 1)
print(json.dumps([200, counted.entry["counts"]]))
"""
HELD = """
held = []
for _ in range(4):
    decoded(64, Sampling(1.0, 50, seed=1), steps=8)
    held.append([torch.cuda.memory_allocated(), torch.cuda.memory_reserved()])
batch = Batch(model, TOKENIZER, 64, 512)
before = torch.cuda.memory_reserved()
for rows in range(64):
    batch.join(SequenceState(TOKENIZER, [1] * 50, 900, Sampling(1.0, 50, seed=1), rows))
    for _ in range(4):
        batch.step()
print(json.dumps([held, torch.cuda.memory_reserved() - before]))
"""


def waits(counts: dict[str, float]) -> float:
    return sum(counts.get(name, 0) for name in ("stream_syncs", "event_syncs", "device_syncs", "blocking_copies"))


def check(counts: dict[str, float]) -> None:
    """A step that only decodes: two graphs, one copy there and one back."""
    assert counts.get("launches", 0) + counts.get("triton_launches", 0) + counts["graph_launches"] <= LAUNCHES, counts
    assert waits(counts) <= 1 and counts["uploads"] <= 1 and counts["downloads"] <= 1, counts
    assert not {"allocations", "host_allocations", "captured"} & counts.keys(), counts
    assert counts["replayed"] > 20, "the graphs hold the step's kernels"


def check_all(steps: int, counts: dict[str, float]) -> None:
    """Per step, everything from the first prompt on: also copies on the GPU, and each size's first step, which is no graph yet."""
    print(steps, counts)
    assert sum(counts[name] for name in ("launches", "products", "device_copies", "fills", "graph_launches")) <= LAUNCHES * steps
    assert waits(counts) <= 1.1 * steps and counts["uploads"] <= 1.1 * steps and counts["downloads"] <= 1.1 * steps


def figures(code: str, **environ: str) -> tuple[Any, str]:
    done = run("4050", "-c", DECODED + code, **environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.long
def test_a_decoded_token() -> None:
    found, said = figures(CASES)
    for counts in found:
        print(counts)
        check(counts)
        assert counts["replayed"] > 200
    assert "CUDA graphs" not in said


@pytest.mark.long
def test_a_gpu_without_graphs() -> None:
    """Every capture fails: it is said once, and each kernel is launched by itself."""
    found, said = figures(CASES, NULLGPU_GRAPHS="0")
    assert said.count("skipped: CUDA graphs for decoding") == 1
    for counts in found:
        print(counts)
        assert "graph_launches" not in counts and counts["launches"] > 200 and waits(counts) <= 1


@pytest.mark.long
def test_whole_rollouts() -> None:
    """Of 8 to 262 tokens: also the prompts, the first step of each size, which is no graph yet, and the slots that answers leave."""
    (tokens, steps, counts), _ = figures(ROLLOUTS)
    check_all(steps, counts)
    assert tokens > 60 * steps


@pytest.mark.long
@pytest.mark.parametrize("code", [SERVED, SAMPLED], ids=["served", "rollouts"])
def test_by_the_server_and_by_reinforcement_learning(code: str) -> None:
    (steps, counts), said = figures(code)
    check_all(steps, counts)
    assert "CUDA graphs" not in said


@pytest.mark.long
def test_the_graphs_memory() -> None:
    """One pool for all graphs of a cache, freed with it: another batch reserves nothing more, and 64 sizes little more than the largest."""
    (held, grown), _ = figures(HELD)
    print(held, grown)
    assert held[1] == held[2] == held[3]
    assert grown < 64 << 20

"""Reinforcement learning: what a step learns, against a slow reference; that it depends on seed and step alone; that rewards rise."""

import itertools
import json
import math
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from nanochat.config import Config, build_config
from nanochat.data.problems import Problem, arithmetic_problems, grade_school_problems
from nanochat.data.published.sets import task_folder
from nanochat.distributed.ranks import Ranks, single
from nanochat.errors import UsageError
from nanochat.generate.engine import Emitted, Engine
from nanochat.model.build import build_model
from nanochat.model.loss import IGNORE
from nanochat.model.optim import LearningRates, MuonAdamW
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.pipeline import train as run
from nanochat.pipeline.identity import Request
from nanochat.pipeline.prepare import Prepared, prepare
from nanochat.runs import record as runs
from nanochat.runs.checkpoint import Checkpoints
from nanochat.runs.metrics import Metrics
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train import reinforce
from nanochat.train.batch import StepBatch
from nanochat.train.gradients import accumulate_gradients
from nanochat.train.reinforce import Rollout, RolloutBatches, Sampler, pass_at_k
from nanochat.train.schedule import Schedule
from nanochat.train.signals import StopSignal
from nanochat.train.stage import Stage
from nanochat.train.trainer import Trainer
from tests import tiny

CONFIG = Config(depth=1, rl_examples_per_step=5, rl_num_samples=4, rl_max_new_tokens=7, rl_top_k=0)
TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])


def engine() -> Engine:
    torch.set_num_threads(1)
    shape = GPTConfig(depth=1, dim=32, n_head=2, n_kv_head=2, head_dim=16, vocab_size=TOKENIZER.vocab_size, max_seq_len=40)
    model = build_model(shape)
    with torch.no_grad():
        model.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return Engine(model, TOKENIZER)


def problems(hard: int = 1) -> list[Problem]:
    """Of differing lengths; about half of what is said is right. The first `hard` ones have no right answer."""
    parity = [Problem("?" * (1 + number), "odd", lambda said: "odd" if sum(said.encode()) % 2 else "even") for number in range(9)]
    return [Problem("never", "right", lambda said: "wrong")] * hard + parity


def source(asked: Sequence[Problem], config: Config = CONFIG) -> RolloutBatches:
    return RolloutBatches(Sampler(engine(), config), asked, config)


def slow_loss(model: Transformer, answered: Sequence[Sequence[Rollout]]) -> torch.Tensor:
    """The definition, token by token: over questions the mean of sum (reward - mean) * -log p / tokens of the question's answers."""
    total = torch.zeros(())
    for rollouts in answered:
        mean = sum(one.reward for one in rollouts) / len(rollouts)
        tokens = sum(chosen for one in rollouts for chosen in one.chosen)
        for one in rollouts:
            logp = F.log_softmax(model.logits(model(torch.tensor([one.ids[:-1]])))[0], dim=-1)
            for place in range(1, len(one.ids)):
                if one.chosen[place]:
                    total = total - (one.reward - mean) * logp[place - 1, one.ids[place]] / tokens
    return total / len(answered)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_loss_and_gradient_equal_a_slow_reference(rows: int) -> None:
    learner = source(problems())
    model, order = learner.sampler.engine.model, [learner.problem(number) for number in range(5, 10)]
    answered = learner.sampler(order, 4, reinforce.seed_of(CONFIG.seed, "answers") + 5 * 4)
    assert {one.reward for rollouts in answered for one in rollouts} == {0.0, 1.0}
    wanted = slow_loss(model, answered)
    wanted.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    batch = learner.batch(1, single())
    found = accumulate_gradients(batch, rows, model, model, single())
    assert found[0].item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-6)
    for name, weight in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-6, msg=name)
    assert batch.facts["reward"] == pytest.approx(np.mean([one.reward for rollouts in answered for one in rollouts]))
    assert batch.tokens == sum(len(one.ids) for rollouts in answered for one in rollouts)


def together(batches: Sequence[StepBatch]) -> list[tuple[list[int], list[int], float]]:
    """Inputs, targets and weight of each row, without the padding, in an order that does not depend on the ranks."""
    rows = []
    for batch in batches:
        assert batch.weights is not None
        for inputs, targets, weight in zip(batch.inputs, batch.targets, batch.weights, strict=True):
            end = int(np.flatnonzero(targets != IGNORE)[-1]) + 1
            rows.append((inputs[:end].tolist(), targets[:end].tolist(), float(weight)))
    return sorted(rows)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [3, 128])
def test_rows_depend_on_seed_and_step_alone(world_size: int, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ranks there are (also more than questions), and however many answers are sampled at once."""
    whole = [source(problems()).batch(2, single())]
    ranks = [Ranks(rank, rank, world_size, torch.device("cpu")) for rank in range(world_size)]
    sent: list[Any] = []
    monkeypatch.setattr(Ranks, "gather_objects", lambda self, value: sent.append(value) or [value])
    for one in ranks:
        source(problems()).batch(2, one)
    monkeypatch.setattr(Ranks, "gather_objects", lambda self, value: sent)
    dealt = []
    for one in ranks:
        learner = source(problems())
        learner.sampler.batch_size = batch_size
        dealt.append(learner.batch(2, one))
    monkeypatch.undo()
    assert together(dealt) == together(whole) != together([source(problems()).batch(3, single())])
    assert {(batch.counted, batch.tokens, *batch.facts.values()) for batch in dealt} == {
        (whole[0].counted, whole[0].tokens, *whole[0].facts.values())
    }
    other = source(problems(), CONFIG.replace(seed=7)).batch(2, single())
    assert together([other]) != together(whole)


def test_every_question_comes_once_in_a_pass() -> None:
    learner = source(problems())
    for epoch in range(3):
        prompts = [learner.problem(10 * epoch + place).prompt for place in range(10)]
        assert sorted(prompts) == sorted(problem.prompt for problem in problems())
    assert [learner.problem(place) for place in range(10)] != [learner.problem(10 + place) for place in range(10)]


class Calculating(Engine):
    """Answers with a call of the calculator, whose output is forced, and is right in every second answer."""

    def generate(self, prompts, **_):  # type: ignore[no-untyped-def,override]
        special, encode = self.tokenizer.special, self.tokenizer.encode
        for row in range(len(prompts)):
            answer = [special("<|python_start|>"), *encode("1+1"), special("<|python_end|>")]
            output = [special("<|output_start|>"), *encode("2"), special("<|output_end|>")]
            said = [*encode(f"#### {2 + row % 2}"), special("<|assistant_end|>")]
            for forced, tokens in ((False, answer), (True, output), (False, said)):
                yield from ([Emitted(row, token, forced)] for token in tokens)


def test_the_calculators_tokens_are_not_learned() -> None:
    config = CONFIG.replace(rl_examples_per_step=1, rl_num_samples=2)
    learner = RolloutBatches(Sampler(Calculating(engine().model, TOKENIZER), config), [Problem("1 + 1?", "#### 2", str.strip)], config)
    batch = learner.batch(0, single())
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        learned = TOKENIZER.decode([token for token in targets if token != IGNORE])
        assert "<|python_start|>1+1<|python_end|>####" in learned and learned.endswith("<|assistant_end|>")
        assert "output" not in learned and "user" not in learned
        assert "<|output_start|>2<|output_end|>" in TOKENIZER.decode(inputs)
    assert batch.weights is not None and batch.weights[0] == -batch.weights[1] != 0
    assert batch.facts["reward"] == 0.5


def stage(source: RolloutBatches, folder: Path, steps: int) -> tuple[Stage, Transformer, MuonAdamW, Checkpoints, Metrics]:
    model = source.sampler.engine.model
    schedule = Schedule(steps, warmup_steps=0, warmdown_ratio=1.0, final_lr_frac=0.0, weight_decay=0.0, momentum=reinforce.MOMENTUM)
    optimizer = MuonAdamW(model, LearningRates(), 512, single())
    made = Stage("rl", source, schedule, device_batch_size=8, save_seconds=1e9)
    return made, model, optimizer, Checkpoints(folder / "rl"), Metrics(folder / "metrics.jsonl", "rl", 0)


def test_equal_rewards_teach_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No row, no NaN, no update, also not by the optimizer's momentum; and it is said."""
    learner = source(problems())
    made, model, optimizer, store, metrics = stage(learner, tmp_path, 2)
    Trainer(made, model, model, optimizer, single(), store, metrics, StopSignal(), 0).run()  # there is momentum now
    assert optimizer.steps == 2
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    learner.problems = problems(hard=1)[:1]
    batch = learner.batch(0, single())
    assert batch.inputs.shape[0] == batch.targets.shape[0] == batch.counted == 0 and batch.facts["reward"] == 0
    capsys.readouterr()
    Trainer(made, model, model, optimizer, single(), store, metrics, StopSignal(), 0).run()
    metrics.close()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    assert optimizer.steps == 2 and "no targets to learn from in this step" in capsys.readouterr().err
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["stage"] == "rl" and line["loss"] == line["reward"] == 0 and line["skipped"] and line["tokens"] > 0


def test_out_of_memory_halves_what_is_sampled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole = source(problems()).batch(0, single())
    real = Engine.generate

    def generate(self: Engine, prompts: Any, **options: Any) -> Iterator[list[Emitted]]:
        for number, step in enumerate(real(self, prompts, **options)):
            if number == 3 and len(prompts) > 6:
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield step

    monkeypatch.setattr(Engine, "generate", generate)
    learner = source(problems())
    assert together([learner.batch(0, single())]) == together([whole])
    assert learner.sampler.batch_size == 5 and "out of memory sampling answers; continuing with batch size 5" in capsys.readouterr().err


def test_pass_at_k_is_the_mean_over_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of k among the eight answers that were asked for."""
    asked = problems()
    sampler = Sampler(engine(), CONFIG)
    found = pass_at_k(sampler, asked, 3, single())
    assert found is not None
    rewards = [[one.reward for one in rollouts] for rollouts in sampler(asked, 8, 3)]
    for k in (1, 2, 4, 8):
        chosen = [max(few) for each in rewards for few in itertools.combinations(each, k)]
        assert found[f"pass@{k}"] == pytest.approx(sum(chosen) / len(chosen), abs=1e-6)
    assert 0 < found["pass@1"] < found["pass@8"] == 0.9

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "generate", full)
    assert pass_at_k(sampler, asked, 3, single()) is None


def test_embedded_questions() -> None:
    learned, held_out = arithmetic_problems(50)
    assert len({problem.prompt for problem in learned}) == 4000 and len(held_out) == 50
    assert not {problem.prompt for problem in learned} & {problem.prompt for problem in held_out}
    assert all(problem.reward(f" {problem.answer}\n") == 1 and problem.reward(problem.answer + "1") == 0 for problem in held_out)
    assert (learned, held_out) == arithmetic_problems(50)


# ---- whole runs: a text, conversations that answer every word with "#### 1" to "#### 3", and questions whose right answer is 2

RL: dict[str, Any] = {
    "rl_iterations": 16,
    "rl_examples_per_step": 4,
    "rl_num_samples": 8,
    "rl_max_new_tokens": 16,
    "rl_eval_examples": 10,
    "rl_lr_frac": 0.5,
}
STEPS = {"num_iterations": 20, "sft_iterations": 40, "save_every": 3, "eval_every": 6}
OPTIONS = {"max_seq_len": 64, "device_batch_size": 2, "matrix_lr": 0.1} | STEPS | RL


def school(base: Path) -> tuple[Path, dict[str, Any]]:
    """The text, and the options of a run with reinforcement learning."""
    base.mkdir(parents=True, exist_ok=True)
    rng = random.Random(2)
    turns = [
        [{"role": "user", "content": rng.choice(tiny.WORDS)}, {"role": "assistant", "content": f"#### {1 + i % 3}"}] for i in range(300)
    ]
    talks = base / "chats.jsonl"
    talks.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
    for name in ("gsm8k", "gsm8k-test"):
        task_folder(name).mkdir(parents=True)
        rows = {"question": [rng.choice(tiny.WORDS) for _ in range(40)], "answer": ["It is <<1+1=2>>2.\n#### 2"] * 40}
        pq.write_table(pa.table(rows), task_folder(name) / "a.parquet")
    return tiny.sentences(base / "text.txt"), OPTIONS | {"chat_data": str(talks)}


def lines(base: Path, name: str = "tiny") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (base / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["stage"] == "rl"]


def test_a_run_with_reinforcement_learning(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Added to a finished run, its settings chosen only then; the rewards rise; the chat uses it."""
    text, options = school(base)
    without = {name: value for name, value in options.items() if name not in RL}
    with pytest.raises(UsageError, match="needs a fine-tuned model"):
        run.train(tiny.config(text, **options), ("rl",))
    assert run.train(tiny.config(text, **without)) == 0
    assert "skipped: reinforcement learning (--stage=rl adds it" in capsys.readouterr().err
    assert runs.open_model("tiny").checkpoint.meta["stage"] == "sft"

    assert run.train(tiny.config(text, **options), ("rl",)) == 0
    found = lines(base)
    assert [line["step"] for line in found] == list(range(1, 17))
    rewards = [line["reward"] for line in found]
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.15, rewards
    assert all(math.isfinite(line["loss"]) and line["sequence_length"] > 3 for line in found)
    assert [line["step"] for line in found if "pass@1" in line] == [6, 12, 16]
    assert found[0]["lr"] == 0.5 and found[8]["lr"] == 0.25  # falls to 0
    assert runs.open_model("tiny").checkpoint.meta["stage"] == "rl" and runs.open_model("tiny").chats
    assert runs.read_record("tiny").config.rl_num_samples == 8  # type: ignore[union-attr]
    report = json.loads((base / "runs" / "tiny" / "report.json").read_text())
    assert report["finished"] and report["stages"]["rl"]["last_reward"] > report["stages"]["rl"]["first_reward"]
    assert "reinforcement learning" in (base / "runs" / "tiny" / "report.md").read_text()

    capsys.readouterr()
    for stages in (("rl",), ("base", "sft")):  # neither begins anything again, with the settings or without
        assert run.train(tiny.config(text, **(options if stages == ("rl",) else without)), stages) == 0
        assert "is finished" in capsys.readouterr().err
    with pytest.raises(UsageError, match="rl_num_samples was 8, now 4"):
        run.train(tiny.config(text, **options | {"rl_num_samples": 4}), ("rl",))


def test_one_pass_by_rule(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, options = school(base)
    config = tiny.config(text, **options | {"rl_iterations": -1, "num_iterations": 2, "sft_iterations": 2})
    prepared = prepare(Request(config, ("base", "sft", "rl"), time.monotonic()))
    assert isinstance(prepared, Prepared) and prepared.record.config.rl_iterations == 10
    assert "rl_iterations = 10 (one epoch of 40 prompts)" in capsys.readouterr().err
    train, test = grade_school_problems(7)
    assert len(train) == 40 and len(test) == 7 and train[0].reward("So it is 2.\n#### 2") == 1 and train[0].reward("2") == 0
    with pytest.raises(UsageError, match="this run has no fine-tuning"):
        prepare(Request(tiny.config(text, run="mute"), ("rl",), time.monotonic()))


def test_killed_and_stopped_it_goes_on_exactly(base: Path) -> None:
    text, options = school(base)
    straight = tiny.call(base, "entrypoint.py", *tiny.flags(text, run="straight", **options), timeout=120)
    assert straight.returncode == 0, straight.stderr
    command = ["entrypoint.py", *tiny.flags(text, **options)]
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 75)):
        process = tiny.start(base, *command)
        tiny.wait_for(process, "rl step ")
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
    done = tiny.call(base, *command, timeout=120)
    assert done.returncode == 0 and "rl: resuming at step" in done.stderr, done.stderr
    assert [line | BLANK for line in lines(base)] == [line | BLANK for line in lines(base, "straight")]


BLANK = dict.fromkeys(
    ("tokens_per_second", "step_seconds", "elapsed_seconds", "cpu_others", "peak_memory_bytes")
)  # what differs from run to run


@pytest.mark.long
def test_two_processes_learn_the_same(base: Path) -> None:
    text, options = school(base)
    for name, processes in (("one", 1), ("two", 2)):
        done = tiny.call(base, "entrypoint.py", *tiny.flags(text, run=name, nproc_per_node=processes, **options), timeout=120)
        assert done.returncode == 0, done.stderr
    one, two = lines(base, "one"), lines(base, "two")
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-3, abs=1e-4)
    assert [line["reward"] for line in two] == [line["reward"] for line in one]


def test_another_machine_takes_up_its_settings(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the mirror: the first one had the run before reinforcement learning, and both had its record as it was then."""
    text, options = school(base)
    options |= {"mirror": (tmp_path / "mirror").as_uri(), "num_iterations": 4, "sft_iterations": 20, "rl_iterations": 4}
    without = {name: value for name, value in options.items() if name not in RL}
    assert run.train(tiny.config(text, **without)) == 0
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "other"))
    assert run.train(tiny.config(text, **without)) == 0
    school(tmp_path / "other")
    assert run.train(tiny.config(text, **options), ("rl",)) == 0
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    assert run.train(tiny.config(text, **options), ("rl",)) == 0
    record = runs.read_record("tiny")
    assert record is not None and record.config.rl_num_samples == 8 and runs.open_model("tiny").checkpoint.meta["stage"] == "rl"
    assert lines(base) == lines(tmp_path / "other")


@pytest.mark.slow
def test_a_small_model_learns_arithmetic(base: Path) -> None:
    """The quickstart's model, fine-tuned for too short a time, answers more of the embedded sums that it has not seen."""
    steps = {"num_iterations": 350, "sft_iterations": 70, "rl_iterations": 40}
    answers = {"rl_examples_per_step": 8, "rl_num_samples": 8, "rl_max_new_tokens": 32, "rl_eval_examples": 60, "rl_lr_frac": 0.1}
    config = build_config("cpu", overrides={"run": "sums", "threads": 1} | steps | answers)
    assert run.train(config) == 0
    opened = runs.open_model("sums")
    _, asked = arithmetic_problems(60)
    before = pass_at_k(Sampler(Engine(opened.model, opened.tokenizer), config), asked, 0, single())
    assert run.train(config, ("rl",)) == 0
    rewards = [line["reward"] for line in lines(base, "sums")]
    opened = runs.open_model("sums")
    after = pass_at_k(Sampler(Engine(opened.model, opened.tokenizer), config), asked, 0, single())
    assert opened.checkpoint.meta["stage"] == "rl" and before is not None and after is not None
    print(f"pass@1 {before['pass@1']:.3f} -> {after['pass@1']:.3f}; rewards {[round(reward, 2) for reward in rewards]}")
    assert after["pass@1"] > before["pass@1"] + 0.1

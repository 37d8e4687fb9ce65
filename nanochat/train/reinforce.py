"""Reinforcement learning with verifiable rewards: REINFORCE (Williams, 1992), the mean reward of a prompt's rollouts as the baseline.

As in karpathy/nanochat, the model answers each prompt several times, and a rollout's advantage is its reward minus the prompt's mean
reward. There is no reference model, no clipping (all rollouts are on-policy) and no division by the standard deviation. Every token of a
prompt's rollouts has the same weight, as in DAPO (Yu et al., 2025). The calculator's tokens are not learned. Unlike in nanochat, the
token that ends an answer is learned too, and losses do not depend on the micro-batch size.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nanochat.config import Config, RLConfig
from nanochat.console import log
from nanochat.data.problems import Problem
from nanochat.distributed.memory import map_with_oom_backoff
from nanochat.distributed.ranks import Ranks
from nanochat.errors import OutOfMemoryError
from nanochat.generate.engine import Engine, answer_text, prompt_ids
from nanochat.model.loss import IGNORE
from nanochat.model.transformer import Transformer
from nanochat.runs.checkpoint import Checkpoint
from nanochat.train.batch import StepBatch
from nanochat.train.schedule import Schedule
from nanochat.train.session import Session

BATCH_SIZE = 128  # rollouts sampled together, fewer when out of memory
PASSES = (1, 2, 4, 8)  # k of pass@k; the last is the number of rollouts
SAMPLES = 3
MOMENTUM = (0.95, 0.95, 0.95)


class Rollout(NamedTuple):
    """The ids of a prompt and one answer, a mask of the ids that the model sampled, and the answer's reward."""

    ids: list[int]
    chosen: list[bool]
    reward: float


class Sampler:
    """Samples rollouts with the current weights of `engine`'s model."""

    def __init__(self, engine: Engine, config: RLConfig):
        self.engine, self.batch_size = engine, BATCH_SIZE
        self.max_tokens = min(config.rl_max_new_tokens, engine.context // 2)
        self.temperature, self.top_k = config.rl_temperature, config.rl_top_k

    def __call__(self, problems: Sequence[Problem], samples: int, seed: int) -> list[list[Rollout]]:
        """`samples` rollouts of each problem; rollout i over all problems is sampled with seed + i. Raises OutOfMemoryError."""
        longest = self.engine.context - self.max_tokens
        prompts = [prompt_ids(self.engine.tokenizer, problem.prompt)[-longest:] for problem in problems]

        def answer(part: Sequence[int]) -> list[Rollout]:
            asked = [prompts[number // samples] for number in part]
            ids, chosen = [list(prompt) for prompt in asked], [[False] * len(prompt) for prompt in asked]
            options = {"max_tokens": self.max_tokens, "batch_size": len(part), "seed": seed + part[0]}
            for step in self.engine.generate(asked, temperature=self.temperature, top_k=self.top_k, **options):
                for row, token, forced in step:
                    ids[row].append(token)
                    chosen[row].append(not forced)
            said = [answer_text(self.engine.tokenizer, own[len(prompt) :]) for own, prompt in zip(ids, asked, strict=True)]
            rewards = [problems[number // samples].reward(text) for number, text in zip(part, said, strict=True)]
            return [Rollout(*one) for one in zip(ids, chosen, rewards, strict=True)]

        device = next(self.engine.model.parameters()).device
        found, self.batch_size = map_with_oom_backoff(range(len(problems) * samples), self.batch_size, answer, device, "sampling answers")
        return [found[first : first + samples] for first in range(0, len(found), samples)]


class RolloutBatches:
    """Rollouts of each step's prompts, from number `begin` on, whose order depends on the seed; each rank samples its part."""

    def __init__(self, sampler: Sampler, problems: Sequence[Problem], config: Config, begin: int = 0):
        self.sampler, self.problems, self.config, self.begin = sampler, problems, config, begin

    def batch(self, step: int, ranks: Ranks) -> StepBatch:
        """Rollouts of this rank's prompts of `step` (from 0), without prompts whose rollouts all have the same reward."""
        prompts, samples = self.config.rl_examples_per_step, self.config.rl_num_samples
        first = self.begin + step * prompts
        own = _share(range(first, first + prompts), ranks)
        sampled = self.sampler(
            [self.problem(number) for number in own], samples, seed_of(self.config.seed, "answers") + own.start * samples
        )
        rows: list[tuple[Rollout, float]] = []  # with the advantage of each of its tokens
        for rollouts in sampled:
            if len({one.reward for one in rollouts}) > 1:
                mean = sum(one.reward for one in rollouts) / samples
                tokens = sum(sum(one.chosen) for one in rollouts)
                rows += [(one, (one.reward - mean) / tokens) for one in rollouts]
        rows.sort(key=lambda row: -len(row[0].ids))
        every = [one for rollouts in sampled for one in rollouts]
        own_sums = (sum(sum(one.chosen) for one, _ in rows), sum(one.reward for one in every), sum(len(one.ids) for one in every))
        counted, rewards, tokens = map(sum, zip(*ranks.gather_objects(own_sums), strict=True))
        inputs, targets = _padded([one for one, _ in rows], self.sampler.engine.tokenizer.bos)
        weights = np.array([advantage * counted / prompts for _, advantage in rows], dtype=np.float32)
        facts = {"reward": round(rewards / (prompts * samples), 6), "sequence_length": round(tokens / (prompts * samples), 2)}
        return StepBatch(inputs, targets, counted, tokens, weights, facts)

    def problem(self, number: int) -> Problem:
        """Problem `number` counted over all steps; each epoch has its own order."""
        epoch, index = divmod(number, len(self.problems))
        order = np.random.default_rng((self.config.seed, epoch)).permutation(len(self.problems))
        return self.problems[int(order[index])]


def seed_of(seed: int, purpose: str) -> int:
    """The first of a range of consecutive seeds, far from the ranges of other runs and purposes."""
    return int.from_bytes(hashlib.blake2b(f"{purpose} {seed}".encode(), digest_size=7).digest(), "big")


def _share(numbers: range, ranks: Ranks) -> range:
    """This rank's part of `numbers`; sizes differ by one at most."""
    first, end = (len(numbers) * part // ranks.world_size for part in (ranks.rank, ranks.rank + 1))
    return numbers[first:end]


def _padded(rollouts: Sequence[Rollout], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (n, T) of rollouts, padded to the longest; targets that the model did not sample are IGNORE."""
    shape = len(rollouts), max((len(one.ids) for one in rollouts), default=2) - 1
    inputs, targets = np.full(shape, padding, dtype=np.int64), np.full(shape, IGNORE, dtype=np.int64)
    for row, (ids, chosen, _) in enumerate(rollouts):
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, : len(ids) - 1] = np.where(chosen[1:], ids[1:], IGNORE)
    return inputs, targets


def pass_at_k(sampler: Sampler, problems: Sequence[Problem], seed: int, ranks: Ranks) -> dict[str, float] | None:
    """Estimated probability that at least one of k answers is correct, over `problems`, for each k of PASSES (Chen et al., 2021).

    Each rank samples its part; None on all ranks if one rank runs out of memory with a single rollout.
    """
    samples = PASSES[-1]
    own = _share(range(len(problems)), ranks)
    found: list[tuple[int, int]] | None = None  # correct answers to each problem, and the tokens of all of them
    try:
        answered = sampler([problems[number] for number in own], samples, seed + own.start * samples)
        found = [(sum(one.reward == 1 for one in each), sum(len(one.ids) for one in each)) for each in answered]
    except OutOfMemoryError:
        pass
    every = ranks.gather_objects(found)
    if None in every:
        log("warning: evaluation skipped, out of memory with one rollout")
        return None
    right = [count for part in every for count, _ in part]
    passed = {k: sum(1 - math.comb(samples - count, k) / math.comb(samples, k) for count in right) / len(right) for k in PASSES}
    tokens = sum(tokens for part in every for _, tokens in part)
    return {f"pass@{k}": round(value, 6) for k, value in passed.items()} | {"eval_tokens": tokens}


def reinforce(session: Session, parent: Checkpoint | None, problems: Sequence[Problem], held_out: Sequence[Problem]) -> Transformer:
    """Train the rl stage of the run to its end, from the weights of `parent` and with a new optimizer where it has no step yet."""
    config = session.config
    schedule = Schedule(
        config.rl_iterations,
        warmup_steps=0,
        warmdown_ratio=1.0,
        final_lr_frac=0.0,
        weight_decay=0.0,
        peak=config.rl_lr_frac,
        momentum=MOMENTUM,
    )

    work = f"{config.rl_examples_per_step} prompts x {config.rl_num_samples} rollouts of at most {config.rl_max_new_tokens} tokens"
    origin = f", from {parent.folder}" if parent else ""
    log(f"reinforcement learning: {config.rl_iterations} steps of {work}{origin}")
    if config.compile == "on":
        log("skipped: torch.compile, because the rollouts' lengths differ between steps")

    def sampler(model: Transformer) -> Sampler:
        return Sampler(Engine(model, session.tokenizer), config)

    prompts = [prompt_ids(session.tokenizer, problem.prompt)[-config.max_seq_len // 2 :] for problem in held_out[:SAMPLES]]
    return session.run(
        "rl",
        lambda model: RolloutBatches(sampler(model), problems, config, session.begin_row("rl")),
        schedule,
        lambda model, forward: pass_at_k(sampler(model), held_out, seed_of(config.seed, "evaluation"), session.ranks),
        prompts,
        parent=parent,
        fresh=True,
    )

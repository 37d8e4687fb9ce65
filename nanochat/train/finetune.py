"""Supervised fine-tuning: whole conversations packed into rows, with only the assistant's tokens as targets."""

import contextlib
from collections.abc import Sequence

import numpy as np

from nanochat.console import log
from nanochat.data.rows import ConversationRows
from nanochat.distributed.ranks import Ranks
from nanochat.errors import UsageError
from nanochat.model.loss import IGNORE
from nanochat.model.transformer import Transformer
from nanochat.runs.checkpoint import Checkpoint
from nanochat.tokenizer.conversation import Conversation
from nanochat.train.batch import StepBatch
from nanochat.train.schedule import Schedule
from nanochat.train.session import Session

HELD_OUT = 50  # one packed row in so many is for validation
HELD_OUT_LIMIT = 64
SAMPLES = 3
MOMENTUM = (0.85, 0.95, 0.95)
MOMENTUM_STEPS = 300
WARMDOWN_RATIO = 0.5


class ConversationBatches:
    """The k-th group of packed rows for step k, from row `begin` on; an equal part for each rank."""

    def __init__(self, rows: ConversationRows, rows_per_step: int, begin: int = 0):
        self.rows, self.rows_per_step, self.begin = rows, rows_per_step, begin

    def batch(self, step: int, ranks: Ranks) -> StepBatch:
        """This rank's rows of `step` (from 0); targets outside the mask are ignored."""
        first = self.begin + step * self.rows_per_step
        ids, mask = self.rows.rows(first, first + self.rows_per_step)  # (rows, T + 1)
        share = self.rows_per_step // ranks.world_size
        own = slice(ranks.rank * share, (ranks.rank + 1) * share)
        inputs, targets = masked(ids, mask)
        return StepBatch(inputs[own], targets[own], counted=int(mask[:, 1:].sum()), tokens=inputs.size)


def masked(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (n, T) of rows (n, T + 1): a target outside the mask becomes IGNORE."""
    return ids[:, :-1], np.where(mask[:, 1:], ids[:, 1:], IGNORE)


def finetune(session: Session, parent: Checkpoint | None, conversations: Sequence[Conversation]) -> Transformer:
    """Train the sft stage of the run to its end, from the weights and the optimizer of `parent` where it has no step yet."""
    config, tokenizer = session.config, session.tokenizer
    rows = ConversationRows(conversations, tokenizer, config.max_seq_len, config.seed)
    validation = rows.hold_out(min(len(rows) // HELD_OUT, HELD_OUT_LIMIT))
    passes = config.sft_iterations * session.rows_per_step() / len(rows)
    if passes > 1:
        log(f"fine-tuning: {len(rows)} rows of conversations, {passes:.1f} epochs")
    schedule = Schedule(
        config.sft_iterations,
        warmup_steps=0,
        warmdown_ratio=WARMDOWN_RATIO,
        final_lr_frac=0.0,
        weight_decay=0.0,
        peak=config.sft_lr_frac,
        momentum=MOMENTUM,
        momentum_steps=MOMENTUM_STEPS,
    )
    prompts = []
    for conversation in conversations[:SAMPLES]:
        question = conversation[: 2 if conversation[0]["role"] == "system" else 1]
        with contextlib.suppress(UsageError):  # longer than the context
            prompts.append(tokenizer.render_prompt(question, config.max_seq_len - 1)[0])
    source = ConversationBatches(rows, session.rows_per_step(), session.begin_row("sft"))
    measure = session.measure(*masked(*validation))
    return session.run("sft", lambda model: source, schedule, measure, prompts, parent=parent, pacer=session.pacer)

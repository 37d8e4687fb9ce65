"""Pretraining: rows of a dataset's text, every id a target."""

import numpy as np

from nanochat.data.rows import RowCache, TextRows
from nanochat.distributed.ranks import Ranks
from nanochat.errors import DataError
from nanochat.model.transformer import Transformer
from nanochat.train.batch import StepBatch
from nanochat.train.schedule import Schedule
from nanochat.train.session import Session

SAMPLES = 3
SAMPLE_PROMPT = 9  # ids of a validation row that a sample continues, BOS included


class TextBatches:
    """Step k takes the k-th group of rows of the text's order; each rank its equal part of them."""

    def __init__(self, rows: TextRows, rows_per_step: int):
        self.rows, self.rows_per_step = rows, rows_per_step

    def batch(self, step: int, ranks: Ranks) -> StepBatch:
        """The rows of `step` (from 0) that this rank takes."""
        share = self.rows_per_step // ranks.world_size
        first = step * self.rows_per_step + ranks.rank * share
        ids = self.rows.rows(first, first + share)  # (share, T + 1)
        tokens = self.rows_per_step * (ids.shape[1] - 1)
        return StepBatch(ids[:, :-1], ids[:, 1:], counted=tokens, tokens=tokens)


def pretrain(session: Session) -> Transformer:
    """Train the base stage of the run to its end. Raises DataError if the text gives no row."""
    config = session.config
    # On a CPU the cores would be the training's own: a step then takes ten times as long, and packing five times.
    packer, ahead = session.ranks.local_rank == 0, config.device != "cpu"
    cache = RowCache(session.tokenizer, config.max_seq_len, packer=packer, ahead=ahead)
    try:
        held_out = cache.rows(session.dataset.validation)[: max(config.eval_tokens // config.max_seq_len, 1)]
        if not len(held_out):
            raise DataError("the validation text gives no row", "give it more text")
        if session.ranks.world_size > 1:
            _require_rows(session, cache)
        schedule = Schedule(config.num_iterations, config.warmup_steps, config.warmdown_ratio, config.final_lr_frac, config.weight_decay)
        source = TextBatches(TextRows(session.dataset, cache, config.seed), session.rows_per_step())
        measure = session.measure(held_out[:, :-1], held_out[:, 1:])
        prompts = [row[: min(SAMPLE_PROMPT, config.max_seq_len)].astype(np.int64).tolist() for row in held_out[:SAMPLES]]
        return session.run("base", lambda model: source, schedule, measure, prompts, pacer=session.pacer)
    finally:
        cache.close()


def _require_rows(session: Session, cache: RowCache) -> None:
    """Raise DataError where there are more processes than rows: some of them would have nothing to read, or all the same."""
    rows = 0
    for shard in session.dataset.training:
        rows += cache.count(shard)
        if rows >= session.ranks.world_size:
            return
    raise DataError(
        f"{session.ranks.world_size} processes asked, and the text gives {rows} row(s) of {session.config.max_seq_len} tokens",
        f"use --nproc_per_node={max(rows, 1)}, a smaller --max_seq_len, or more text",
    )

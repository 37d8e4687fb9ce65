"""Pretraining: rows of a dataset's text, every id a target."""

import numpy as np

from nanochat.data.rows import RowCache, TextRows
from nanochat.data.shards import Dataset
from nanochat.distributed.ranks import Ranks
from nanochat.errors import DataError
from nanochat.model.transformer import Transformer
from nanochat.runs.checkpoint import Checkpoint
from nanochat.train.batch import StepBatch
from nanochat.train.schedule import Schedule
from nanochat.train.session import Session

SAMPLES = 3
SAMPLE_PROMPT = 9  # length of a sample's prompt, from a validation row, BOS included


class TextBatches:
    """The k-th group of rows in the text's order for step k, from row `begin` on; an equal part for each rank."""

    def __init__(self, rows: TextRows, rows_per_step: int, begin: int = 0):
        self.rows, self.rows_per_step, self.begin = rows, rows_per_step, begin

    def batch(self, step: int, ranks: Ranks) -> StepBatch:
        """This rank's rows of `step` (from 0)."""
        share = self.rows_per_step // ranks.world_size
        first = self.begin + step * self.rows_per_step + ranks.rank * share
        ids = self.rows.rows(first, first + share)  # (share, T + 1)
        tokens = self.rows_per_step * (ids.shape[1] - 1)
        return StepBatch(ids[:, :-1], ids[:, 1:], counted=tokens, tokens=tokens)


def pretrain(session: Session, parent: Checkpoint | None = None) -> Transformer:
    """Train the base stage of the run to its end, from `parent` if there is one.

    Raises DataError if the text is shorter than one sequence.
    """
    config, dataset = session.config, session.dataset
    assert dataset is not None, "a run that pretrains has a text"
    # Not in the background on a CPU, where packing would compete for the cores: a step takes ten times as long, packing five times.
    packer, ahead = session.ranks.local_rank == 0, config.device != "cpu"
    cache = RowCache(session.tokenizer, config.max_seq_len, packer=packer, ahead=ahead)
    try:
        held_out = cache.rows(dataset.validation)[: max(config.eval_tokens // config.max_seq_len, 1)]
        if not len(held_out):
            raise DataError(
                f"the validation text is shorter than one sequence ({config.max_seq_len} tokens)", "add text, or lower --max_seq_len"
            )
        if session.ranks.world_size > 1:
            _require_rows(session, cache, dataset)
        schedule = Schedule(config.num_iterations, config.warmup_steps, config.warmdown_ratio, config.final_lr_frac, config.weight_decay)
        source = TextBatches(TextRows(dataset, cache, config.seed), session.rows_per_step(), session.begin_row("base"))
        measure = session.measure(held_out[:, :-1], held_out[:, 1:])
        prompts = [row[: min(SAMPLE_PROMPT, config.max_seq_len)].astype(np.int64).tolist() for row in held_out[:SAMPLES]]
        return session.run("base", lambda model: source, schedule, measure, prompts, parent, pacer=session.pacer)
    finally:
        cache.close()


def _require_rows(session: Session, cache: RowCache, dataset: Dataset) -> None:
    """Raise DataError if there are more processes than rows, because some processes would have no rows of their own."""
    rows = 0
    for shard in dataset.training:
        rows += cache.count(shard)
        if rows >= session.ranks.world_size:
            return
    raise DataError(
        f"{session.ranks.world_size} processes were requested; the text has {rows} sequence(s) of {session.config.max_seq_len} tokens",
        f"use --nproc_per_node={max(rows, 1)}, a smaller --max_seq_len, or more text",
    )

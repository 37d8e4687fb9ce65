"""Bits per byte of held-out documents, by one protocol for both sides: score.py ours|upstream TAG PARQUET DOCUMENTS.

Each document's ids are cut into pieces of T, each read behind a BOS: every token is predicted once, from those of its piece before
it. Nats are summed over all tokens of text and divided by ln 2 and the documents' UTF-8 bytes. The module `nanochat` is whichever
the caller's PYTHONPATH leads to; weights are computed with in float32, uncompiled.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

ROWS = 16
Losses = Callable[[Tensor, Tensor], Tensor]  # ids, targets (B, T), -1 not counted -> nats of each, 0 where not counted (B, T)


def ours(tag: str) -> tuple[Losses, Callable[[str], list[int]], int, int]:
    """Token losses, encode, the id of BOS, and T."""
    from nanochat.model.loss import token_losses
    from nanochat.paths import run_dir
    from nanochat.runs import record as runs
    from nanochat.runs.checkpoint import Checkpoints

    checkpoint = Checkpoints(run_dir(tag) / "base").newest()
    assert checkpoint is not None
    opened = runs.open_checkpoint(tag, checkpoint)
    model, tokenizer = opened.model.eval(), opened.tokenizer
    return lambda ids, targets: token_losses(model, model(ids), targets), tokenizer.encode, tokenizer.bos, model.config.max_seq_len


def upstream(tag: str) -> tuple[Losses, Callable[[str], list[int]], int, int]:
    """The same of karpathy/nanochat."""
    from nanochat.checkpoint_manager import load_model  # type: ignore[import-not-found]

    model, tokenizer, _ = load_model("base", torch.device("cpu"), "eval", model_tag=tag)

    def losses(ids: Tensor, targets: Tensor) -> Tensor:
        return model(ids, targets, loss_reduction="none").view_as(targets)

    return losses, tokenizer.encode, tokenizer.get_bos_token_id(), model.config.sequence_len


@torch.inference_mode()
def main(who: str, tag: str, path: str, documents: int) -> float:
    """The documents' bits per byte."""
    losses, encode, bos, length = {"ours": ours, "upstream": upstream}[who](tag)
    texts = pq.read_table(Path(path), columns=["text"]).column(0).to_pylist()[:documents]
    pieces = [piece for text in texts for ids in [encode(text)] for piece in (ids[at : at + length] for at in range(0, len(ids), length))]
    pieces.sort(key=len)  # rows of one batch are about as long
    nats = 0.0
    for first in range(0, len(pieces), ROWS):
        part = pieces[first : first + ROWS]
        width = max(map(len, part))
        ids, targets = torch.full((len(part), width), bos), torch.full((len(part), width), -1)
        for row, piece in enumerate(part):
            ids[row, 1 : len(piece)] = torch.tensor(piece[:-1])
            targets[row, : len(piece)] = torch.tensor(piece)
        nats += float(losses(ids, targets).double().sum())
    return nats / (math.log(2) * sum(len(text.encode()) for text in texts))


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))

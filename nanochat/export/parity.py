"""Prompts and the run's own greedy answers, for the checks of all formats."""

import torch

from nanochat.data.embedded.corpus import heldout
from nanochat.generate.engine import prompt_ids
from nanochat.model.attention import KVCache
from nanochat.model.decode import decoder_for
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.tokenizer import Tokenizer

PROMPTS = 16  # number of compared prompts
NEW_TOKENS = 32
INTERNAL_ERROR = "report it, because this is an internal error"


def prompts(tokenizer: Tokenizer, context: int, count: int) -> list[list[int]]:
    """Held-out questions as ids, without those that fill the context."""
    found = [ids for item in heldout() if len(ids := prompt_ids(tokenizer, item.prompt)) + NEW_TOKENS <= context]
    return found[:: max(len(found) // count, 1)][:count] or [[tokenizer.bos]]


@torch.inference_mode()
def greedy(model: Transformer, rows: list[list[int]], count: int) -> list[list[int]]:
    """The next `count` greedy tokens of each of `rows` (of equal length), decoded with the cache; no token ends a row."""
    length = len(rows[0])
    cache = KVCache(model.config, len(rows), length + count, next(model.parameters()).device, model.compute_dtype)
    decode = decoder_for(model)
    assert decode is not None
    logits = model.logits(model(torch.tensor(rows, device=cache.lengths.device), cache=cache)[:, -1])
    new: list[list[int]] = []
    for held in range(length, length + count):
        new.append(logits.argmax(-1).tolist())
        if len(new) < count:  # the last one may fill the context
            logits = decode(new[-1], [held] * len(rows), cache)
    return [list(row) for row in zip(*new, strict=True)]

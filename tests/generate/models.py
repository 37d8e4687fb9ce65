"""Small models for the tests of the generation: one with random weights, and one that says what a script holds."""

from typing import Any

import torch

from nanochat.model.build import build_model
from nanochat.model.gpt import GPT
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.conversation import SPECIAL_TOKENS
from nanochat.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
V = TOKENIZER.vocab_size
END = TOKENIZER.special("<|assistant_end|>")


def config(**changes: Any) -> GPTConfig:
    """A tiny GPT's, over bytes and the special tokens."""
    shape = {"depth": 3, "dim": 64, "n_head": 2, "n_kv_head": 1, "head_dim": 32, "vocab_size": V, "max_seq_len": 64}
    return GPTConfig(**shape | changes)


def random_model(seed: int = 0, **changes: Any) -> Transformer:
    """A tiny GPT whose every weight is random, so that each part of it moves the logits."""
    torch.set_num_threads(1)
    model = build_model(config(**changes), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.dim() > 1 else 0.5))
    return model


class Scripted(GPT):
    """Says scripts[n] to a prompt whose first id is n, whatever it reads; its place in the script is what the cache holds."""

    def __init__(self, scripts: list[list[int]], **changes: Any):
        super().__init__(config(**changes))
        self.scripts = scripts
        self.read: list[list[int]] = []

    def forward(self, ids: torch.Tensor, cache: Any = None, counts: torch.Tensor | None = None) -> torch.Tensor:
        assert counts is not None
        if not self.read:  # which script, and from where: kept where a real model keeps a row's last embedding
            cache.previous[:, 0], cache.previous[:, 1] = ids[:, 0], counts
        self.read.append(ids.flatten().tolist())
        cache.lengths += counts
        hidden = torch.zeros(*ids.shape, V)
        for row, (script, start) in enumerate(cache.previous[:, :2].long().tolist()):
            place = int(cache.lengths[row]) - start
            hidden[row, :, self.scripts[script][place] if place < len(self.scripts[script]) else END] = 1.0
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def marked(text: str, tokenizer: Tokenizer = TOKENIZER) -> list[int]:
    """Ids of a text in which specials are spelt <|name|>; every other character by itself."""
    ids: list[int] = []
    while text:
        name = next((name for name in SPECIAL_TOKENS if text.startswith(name)), None)
        ids += [tokenizer.special(name)] if name else tokenizer.encode(text[0])
        text = text[len(name or " ") :]
    return ids

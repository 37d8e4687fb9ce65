"""Hugging Face directories of random Qwen3 models, made by transformers and tokenizers themselves."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nanochat.tokenizer.foreign_file import QWEN_PATTERN
from tests.export.random_model import TEXT
from tests.export.words import WORDS

TEMPLATE = Path(__file__).with_name("qwen3_template.jinja")
# Three shapes: grouped queries with a width that is not heads x head_dim, tied; one key/value head; as many as queries.
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"heads": 4, "groups": 2, "head_dim": 32, "width": 64, "inside": 96, "depth": 3, "tied": True, "theta": 1e6, "eps": 1e-6},
    "single": {"heads": 6, "groups": 1, "head_dim": 16, "width": 80, "inside": 112, "depth": 2, "tied": False, "theta": 5e5, "eps": 1e-5},
    "full": {"heads": 4, "groups": 4, "head_dim": 16, "width": 64, "inside": 192, "depth": 4, "tied": False, "theta": 1e4, "eps": 1e-6},
}


def foreign_tokenizer(first: bool = False) -> Tokenizer:
    """A trained tokenizer in Qwen's form; `first`: its special tokens have the first ids instead of the last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": names} if first else {}
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False, **options))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in ("<think>", "</think>")])
    return tokenizer


def write_qwen3(
    folder: Path, shape: str = "grouped", template: bool = True, shards: bool = False, dtype: torch.dtype = torch.float32
) -> Any:
    """A directory as transformers saves it; returns the model in float32, with random weights in every part."""
    size = SHAPES[shape]
    tokenizer = foreign_tokenizer(first=shape == "single")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    if template:
        wrapped.chat_template = TEMPLATE.read_text()
    config = transformers.Qwen3Config(
        vocab_size=len(wrapped) + 11,  # with ids that have no token
        hidden_size=size["width"],
        intermediate_size=size["inside"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["groups"],
        head_dim=size["head_dim"],
        max_position_embeddings=512,
        rope_theta=size["theta"],
        rms_norm_eps=size["eps"],
        tie_word_embeddings=size["tied"],
        bos_token_id=wrapped.convert_tokens_to_ids("<|endoftext|>"),
        eos_token_id=wrapped.convert_tokens_to_ids("<|im_end|>"),
    )
    torch.manual_seed(len(shape))
    model = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight)
            weight.copy_(1 + 0.2 * noise if "norm" in name else noise * (0.02 if "embed" in name else 0.15))
    model = model.to(dtype)
    model.save_pretrained(folder, **({"max_shard_size": "100KB"} if shards else {}))
    wrapped.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return model.eval() if dtype == torch.float32 else transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def change_config(folder: Path, **values: Any) -> None:
    """Change values of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def written_text(rng: random.Random, specials: bool = False) -> str:
    """Random text of many scripts, on request with the texts of special tokens in it."""
    words = [*WORDS, "e\u0301", "a < b", "ſ", "'ſ"]
    words += ["<|im_end|>", "<|im_start|>", "<think>", "<|im_", "end|>", "<"] if specials else []
    return "".join(rng.choice(words) if rng.random() < 0.8 else chr(rng.randint(32, 0x2FFF)) for _ in range(rng.randint(1, 15)))

"""`export --check`: comparison of an export, loaded by its own library, with the run's model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.console import log
from nanochat.data.embedded.corpus import heldout
from nanochat.errors import NanochatError
from nanochat.export.folder import hf_weights, is_plain_qwen3
from nanochat.export.gguf_file import GGUF
from nanochat.generate.engine import prompt_ids
from nanochat.hardware.extras import needed
from nanochat.model.attention import KVCache
from nanochat.model.decode import decoder_for
from nanochat.model.transformer import Transformer
from nanochat.runs.record import TrainedModel
from nanochat.tokenizer.tokenizer import Tokenizer

PROMPTS = 16  # number of compared prompts
NEW_TOKENS = 32
TOLERANCE = 1e-4  # largest difference of logits in float32
INTERNAL_ERROR = "report it, because this is an internal error"


def check(opened: TrainedModel, to: str, out: Path) -> None:
    """Compare the export in `out` with the run's model and log the result.

    Raises NanochatError if the two differ, UsageError if a library is missing.
    """
    if to == "hf":
        _check_folder(opened, out)
    else:
        _check_gguf(opened, out)


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
        logits = decode(new[-1], [held] * len(rows), cache)
    return [list(row) for row in zip(*new, strict=True)]


def load_folder(folder: Path, own_code: bool) -> Any:
    """The exported model in float32, loaded by transformers; `own_code` uses the modelling code in the directory."""
    transformers = needed("transformers", "transformers", "--check of a Hugging Face export")
    found = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=own_code, dtype=torch.float32)
    return found.eval()


@torch.inference_mode()
def _check_folder(opened: TrainedModel, out: Path) -> None:
    """Compare logits and greedy answers of a Hugging Face export with the run's."""
    model, tokenizer = opened.model, opened.tokenizer
    theirs = load_folder(out, own_code=not is_plain_qwen3(model.config))
    asked = prompts(tokenizer, model.config.max_seq_len, PROMPTS)
    worst = 0.0
    for ids in asked:
        ours = model.logits(model(torch.tensor([ids])))
        worst = max(worst, _difference(ours, theirs(torch.tensor([ids])).logits))
        made = theirs.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, min_new_tokens=1, do_sample=False)[0, len(ids) :].tolist()
        if made != greedy(model, [ids], NEW_TOKENS)[0][: len(made)]:
            raise NanochatError(f"the answers of {out} differ from those of the run {opened.run}", INTERNAL_ERROR)
    if worst > TOLERANCE:
        raise NanochatError(f"the logits of {out} differ by {worst:.1e} from the run's", INTERNAL_ERROR)
    log(f"checked: logits within {worst:.1e} on {len(asked)} prompts, and greedy answers equal")


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors' values."""
    return float((ours - theirs).abs().max())


def _check_gguf(opened: TrainedModel, out: Path) -> None:
    """Compare the tensors of a GGUF file with the run's, bit for bit."""
    gguf = needed("gguf", "gguf", "--check of a GGUF file")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, opened.model.config.depth)
    written = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out / GGUF).tensors}
    weights = hf_weights(opened.model)
    for name, weight in weights.items():
        found = written.get(names.get_name(name, try_suffixes=(".weight",)))
        if found is None or not torch.equal(torch.from_numpy(found.copy()).view(weight.shape), weight.cpu()):
            raise NanochatError(f"{name} in {out / GGUF} differs from the run's", INTERNAL_ERROR)
    log(f"checked: {len(weights)} tensors of {out / GGUF} equal the run's, bit for bit")

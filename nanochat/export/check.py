"""`export --check`: comparison of an export, loaded by its own library, with the run's model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.console import log
from nanochat.errors import NanochatError
from nanochat.export.check_gguf import check_gguf
from nanochat.export.parity import INTERNAL_ERROR, NEW_TOKENS, PROMPTS, greedy, prompts
from nanochat.export.weights import is_plain_qwen3
from nanochat.hardware.extras import needed
from nanochat.runs.record import TrainedModel

TOLERANCE = 1e-4  # largest difference of logits in float32


def check(opened: TrainedModel, to: str, out: Path) -> None:
    """Compare the export in `out` with the run's model and log the result.

    Raises NanochatError if the two differ, UsageError if a library is missing.
    """
    if to == "hf":
        _check_folder(opened, out)
    else:
        check_gguf(opened, out)


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

"""`export --check` of a GGUF file: tensors, perplexity and greedy answers, through llama.cpp if it is installed.

Without the package llama-cpp-python the file's weights are dequantized, as ggml does it, and run through this project's forward pass.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.console import log
from nanochat.data.embedded.corpus import heldout
from nanochat.errors import NanochatError
from nanochat.export.gguf_file import GGUF
from nanochat.export.parity import INTERNAL_ERROR, NEW_TOKENS, PROMPTS, greedy, prompts
from nanochat.export.weights import fill, hf_shapes, hf_weights
from nanochat.hardware.extras import needed
from nanochat.model.build import allocate_model
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.runs.record import TrainedModel
from nanochat.tokenizer.tokenizer import Tokenizer

TEXTS = 96  # held-out questions with their answers, whose perplexity is compared
TOLERANCE = 0.01  # largest relative difference of the perplexity


@dataclass(frozen=True)
class Reader:
    """A program with the file's weights: logits (T, V) after each of some ids, and the next `count` greedy ids."""

    name: str
    logits: Callable[[list[int]], Tensor]
    greedy: Callable[[list[int], int], list[int]]


def check_gguf(opened: TrainedModel, out: Path) -> None:
    """Compare the file in `out` with the run's model, and log perplexity and greedy answers of both.

    Raises NanochatError if a float32 file is not equal, or the perplexity of another one differs by more than TOLERANCE.
    """
    gguf = needed("gguf", "gguf", "--check of a GGUF file")
    stored = _read(gguf, out / GGUF, opened.model.config)
    if exact := all(kind == "F32" for kind, _ in stored.values()):
        _require_equal(stored, opened.model, out / GGUF)
    model = opened.model
    reader = _llama_cpp(out / GGUF, model.config) if importlib.util.find_spec("llama_cpp") else _dequantized(stored, model.config)
    texts = heldout_ids(opened.tokenizer, model.config.max_seq_len)
    ours, theirs = perplexity(lambda ids: model.logits(model(torch.tensor([ids])))[0], texts), perplexity(reader.logits, texts)
    change = theirs / ours - 1
    asked = prompts(opened.tokenizer, model.config.max_seq_len, PROMPTS)
    expected = [greedy(model, [ids], NEW_TOKENS)[0] for ids in asked]
    pairs = list(zip([reader.greedy(ids, NEW_TOKENS) for ids in asked], expected, strict=True))
    equal = sum(_until_end(found, opened.tokenizer) == _until_end(wanted, opened.tokenizer) for found, wanted in pairs)
    if abs(change) > TOLERANCE or not np.isfinite(change):
        raise NanochatError(f"the perplexity of {out / GGUF} is {theirs:.4g} instead of {ours:.4g} ({change:+.2%})", "use --outtype f32")
    if exact:
        log(f"checked: {len(stored)} tensors of {out / GGUF} equal the run's, bit for bit")
    answers = f"{equal} of {len(pairs)} greedy answers equal"
    log(f"checked by {reader.name}: perplexity {theirs:.4f} instead of {ours:.4f} ({change:+.3%}), {answers}")


@torch.inference_mode()
def perplexity(logits: Callable[[list[int]], Tensor], texts: list[list[int]]) -> float:
    """exp of the mean loss in nats of each id of `texts` but the first; `logits` returns (T, V) after each of some ids."""
    total = sum(float(F.cross_entropy(logits(ids[:-1]).double(), torch.tensor(ids[1:]), reduction="sum")) for ids in texts)
    return float(np.exp(total / sum(len(ids) - 1 for ids in texts)))


def heldout_ids(tokenizer: Tokenizer, context: int) -> list[list[int]]:
    """Held-out questions with their answers as ids, cut at the context."""
    items = heldout()
    chosen = items[:: max(len(items) // TEXTS, 1)][:TEXTS]
    talks = ([{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}] for item in chosen)
    return [tokenizer.render(talk, context)[0] for talk in talks]


def _until_end(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """The ids of an answer up to the token that ends it."""
    return ids[: next((place for place, id in enumerate(ids) if id in tokenizer.ends), len(ids))]


def _read(gguf: Any, path: Path, gpt: GPTConfig) -> dict[str, tuple[str, np.ndarray]]:
    """Hugging Face's name -> (type, values in float32) of each tensor in the file."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, gpt.depth)
    found = {}
    for name in hf_shapes(gpt):
        tensor = tensors.get(names.get_name(name, try_suffixes=(".weight",)))
        if tensor is None:
            raise NanochatError(f"{name} is missing in {path}", INTERNAL_ERROR)
        found[name] = (tensor.tensor_type.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    return found


def _require_equal(stored: dict[str, tuple[str, np.ndarray]], model: Transformer, path: Path) -> None:
    """Raise NanochatError if a weight in the file is not the run's, bit for bit."""
    for name, weight in hf_weights(model).items():
        if not torch.equal(torch.from_numpy(stored[name][1].copy()).view(weight.shape), weight.cpu()):
            raise NanochatError(f"{name} in {path} differs from the run's", INTERNAL_ERROR)


def _dequantized(stored: dict[str, tuple[str, np.ndarray]], gpt: GPTConfig) -> Reader:
    """This project's forward pass with the file's weights."""
    model = allocate_model(gpt)
    fill(model, lambda name: torch.from_numpy(stored[name][1].copy()))
    return Reader(
        "dequantized weights",
        lambda ids: model.logits(model(torch.tensor([ids])))[0],
        lambda ids, count: greedy(model, [ids], count)[0],
    )


def _llama_cpp(path: Path, gpt: GPTConfig) -> Reader:
    """llama.cpp through llama-cpp-python, on the CPU, with keys and values in float32."""
    llama_cpp = needed("llama_cpp", "llama-cpp-python", "--check through llama.cpp")
    options = {"n_ctx": gpt.max_seq_len, "n_batch": gpt.max_seq_len, "n_gpu_layers": 0, "logits_all": True, "flash_attn": False}
    engine = llama_cpp.Llama(str(path), verbose=False, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, **options)

    def logits(ids: list[int]) -> Tensor:
        engine.reset()
        engine.eval(ids)
        return torch.from_numpy(np.array(engine.scores[: len(ids)]))

    def answer(ids: list[int], count: int) -> list[int]:
        new = [int(logits(ids)[-1].argmax())]
        while len(new) < count:
            engine.eval(new[-1:])
            new.append(int(engine.scores[engine.n_tokens - 1].argmax()))
        return new

    return Reader(f"llama.cpp ({llama_cpp.__version__})", logits, answer)

"""Export of a portable model as a GGUF file, with chat template and stop tokens, and a Modelfile for `ollama create`."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nanochat import paths
from nanochat.errors import UsageError
from nanochat.export import vocabulary
from nanochat.export.card import CARD, gguf_card
from nanochat.export.metadata import licence_of
from nanochat.export.output import new_folder
from nanochat.export.weights import hf_weights, is_plain_qwen3
from nanochat.hardware.extras import needed
from nanochat.kernels.operations import RMS_EPS
from nanochat.model.layers import ROPE_BASE
from nanochat.model.scaling import GPTConfig
from nanochat.runs.record import TrainedModel
from nanochat.tokenizer.conversation import SPECIAL_TOKENS
from nanochat.tokenizer.formats import merges, written
from nanochat.tokenizer.tokenizer import QWEN2_PATTERN, Tokenizer

GGUF = "model.gguf"
OUTTYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}  # type of the matrices -> llama.cpp's name of such a file
Q8_BLOCK = 32  # weights that share one scale in Q8_0; a matrix whose rows do not divide into such blocks is stored as f16
MODELFILE = """# ollama create NAME -f Modelfile, then ollama run NAME
FROM ./model.gguf
TEMPLATE \"\"\"<|bos|>{{ $system := .System }}{{ range .Messages }}{{ if eq .Role "user" }}<|user_start|>{{ if $system }}{{ $system }}

{{ end }}{{ $system = "" }}{{ .Content }}<|user_end|>{{ end }}{{ if eq .Role "assistant" }}\
<|assistant_start|>{{ .Content }}<|assistant_end|>{{ end }}{{ end }}<|assistant_start|>\"\"\"
PARAMETER stop <|assistant_end|>
PARAMETER stop <|bos|>
PARAMETER temperature 0.7
"""


def write_gguf(opened: TrainedModel, out: Path, outtype: str = "f32") -> None:
    """Write the directory `out`: model.gguf with matrices of `outtype` (a key of OUTTYPES), a Modelfile and the model card.

    Raises UsageError for a model that llama.cpp does not support, if `out` exists, and if the package gguf is missing.
    """
    gpt, tokenizer = opened.model.config, opened.tokenizer
    if not is_plain_qwen3(gpt) or tokenizer.pattern != QWEN2_PATTERN:
        raise UsageError(
            "GGUF does not support this model's architecture or its tokenizer's split",
            "train one with --architecture portable, or use --to hf",
        )
    gguf = needed("gguf", "gguf", "--to gguf")
    with new_folder(out) as folder:
        writer = gguf.GGUFWriter(folder / GGUF, "qwen3")
        writer.add_name(opened.run)
        writer.add_license(licence_of(opened))
        writer.add_file_type(gguf.LlamaFileType[OUTTYPES[outtype]])
        if outtype == "q8_0":
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_architecture(writer, gpt)
        _add_tokenizer(writer, tokenizer, gguf.TokenType)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, gpt.depth)
        for name, weight in hf_weights(opened.model).items():
            data, kind = _stored(gguf, name, weight, outtype)
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.atomic_write(folder / "Modelfile", MODELFILE)
        paths.atomic_write(folder / CARD, gguf_card(opened, outtype))


def _stored(gguf: Any, name: str, weight: Tensor, outtype: str) -> tuple[np.ndarray, Any]:
    """A weight as the file has it, and GGUF's type of it. Vectors stay in float32, as llama.cpp's own converter keeps them.

    Raises UsageError for a weight that float16 cannot hold.
    """
    data, types = weight.cpu().numpy(), gguf.GGMLQuantizationType
    if outtype == "f32" or data.ndim == 1:
        return data, types.F32
    if outtype == "q8_0" and data.shape[-1] % Q8_BLOCK == 0:
        return gguf.quants.quantize(data, types.Q8_0), types.Q8_0
    with np.errstate(over="ignore"):
        half = data.astype(np.float16)
    if not np.isfinite(half).all():
        raise UsageError(f"{name} has values beyond float16's range", "use --outtype f32")
    return half, types.F16


def _add_architecture(writer: Any, gpt: GPTConfig) -> None:
    """Write the model's shape."""
    writer.add_context_length(gpt.max_seq_len)
    writer.add_embedding_length(gpt.dim)
    writer.add_block_count(gpt.depth)
    writer.add_feed_forward_length(gpt.mlp_dim)
    writer.add_head_count(gpt.n_head)
    writer.add_head_count_kv(gpt.n_kv_head)
    writer.add_key_length(gpt.head_dim)
    writer.add_value_length(gpt.head_dim)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    writer.add_vocab_size(gpt.vocab_size)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, token_type: Any) -> None:
    """Write the vocabulary with its merges, the special tokens and the chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*map(written, tokenizer.tokens), *SPECIAL_TOKENS])
    writer.add_token_types([token_type.NORMAL] * len(tokenizer.tokens) + [token_type.CONTROL] * len(SPECIAL_TOKENS))
    writer.add_token_merges([" ".join(pair) for pair in merges(tokenizer.tokens)])
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.special("<|assistant_end|>"))
    writer.add_eot_token_id(tokenizer.bos)  # bos ends an answer as well
    writer.add_pad_token_id(tokenizer.bos)
    writer.add_add_bos_token(False)  # the template has it
    writer.add_chat_template(vocabulary.TEMPLATE.read_text(encoding="utf-8"))

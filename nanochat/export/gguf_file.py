"""Export of a portable model as a GGUF file, with chat template and stop tokens, and a Modelfile for `ollama create`."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nanochat import paths
from nanochat.errors import UsageError
from nanochat.export import vocabulary
from nanochat.export.card import CARD, gguf_card
from nanochat.export.foreign_folder import TURN_END
from nanochat.export.metadata import licence_of
from nanochat.export.output import new_folder
from nanochat.export.weights import hf_weights, is_plain_qwen3
from nanochat.hardware.extras import needed
from nanochat.model.scaling import GPTConfig
from nanochat.runs.record import TrainedModel
from nanochat.tokenizer.conversation import SPECIAL_TOKENS
from nanochat.tokenizer.foreign import ForeignTokenizer
from nanochat.tokenizer.foreign_file import PATTERNS
from nanochat.tokenizer.formats import merges, written
from nanochat.tokenizer.tokenizer import Tokenizer

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

CHATML_MODELFILE = """# ollama create NAME -f Modelfile, then ollama run NAME
FROM ./model.gguf
TEMPLATE \"\"\"{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
\"\"\"
PARAMETER stop <|im_end|>
"""


def write_gguf(opened: TrainedModel, out: Path, outtype: str = "f32") -> None:
    """Write the directory `out`: model.gguf with matrices of `outtype` (a key of OUTTYPES), a Modelfile and the model card.

    Raises UsageError for a model that llama.cpp does not support, if `out` exists, and if the package gguf is missing.
    """
    gpt, tokenizer = opened.model.config, opened.tokenizer
    if not is_plain_qwen3(gpt) or not PATTERNS.get(tokenizer.pattern):
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
        paths.atomic_write(folder / "Modelfile", _modelfile(tokenizer))
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
    writer.add_rope_freq_base(gpt.rope_base)
    writer.add_layer_norm_rms_eps(gpt.norm_eps)
    writer.add_vocab_size(gpt.vocab_size)


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, token_type: Any) -> None:
    """Write the vocabulary with its merges, the special tokens and the chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PATTERNS[tokenizer.pattern])
    if isinstance(tokenizer, ForeignTokenizer):
        words, types, pairs, template = _foreign_tokens(tokenizer, token_type)
    else:
        words = [*map(written, tokenizer.tokens), *SPECIAL_TOKENS]
        types = [token_type.NORMAL] * len(tokenizer.tokens) + [token_type.CONTROL] * len(SPECIAL_TOKENS)
        pairs, template = merges(tokenizer.tokens), vocabulary.plain_template()
    writer.add_token_list(words)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in pairs])
    end, *others = tokenizer.ends
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(others[0] if others else end)  # ends an answer as well
    writer.add_pad_token_id(tokenizer.bos)
    writer.add_add_bos_token(False)  # the template has it
    writer.add_chat_template(template)


def _foreign_tokens(tokenizer: ForeignTokenizer, token_type: Any) -> tuple[list[str], list[Any], list[tuple[str, str]], str]:
    """(the token of each id, their types, merges, chat template) of an imported model; ids without a token get a name."""
    found = tokenizer.vocabulary
    words = {id: (word, token_type.NORMAL) for word, id in found.vocab.items()}
    words |= {id: (name, token_type.CONTROL if name in found.special else token_type.USER_DEFINED) for name, id in found.added.items()}
    listed = [words.get(id, (f"[PAD{id}]", token_type.UNUSED)) for id in range(tokenizer.vocab_size)]
    return [word for word, _ in listed], [kind for _, kind in listed], [(a, b) for a, b in found.merges], tokenizer.manners.template


def _modelfile(tokenizer: Tokenizer) -> str:
    """Ollama's Modelfile, whose template is this project's or ChatML."""
    if not isinstance(tokenizer, ForeignTokenizer):
        return MODELFILE
    if TURN_END in tokenizer.manners.template:
        return CHATML_MODELFILE
    return f"{MODELFILE.partition('TEMPLATE')[0]}# Ollama reads the chat template of the file, if it knows that template.\n"

"""Export of a portable model as a GGUF file, with chat template and stop tokens, and a Modelfile for `ollama create`."""

from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.errors import UsageError
from nanochat.export import vocabulary
from nanochat.export.folder import hf_weights, is_plain_qwen3, licence_of
from nanochat.export.output import new_folder
from nanochat.hardware.extras import needed
from nanochat.kernels.operations import RMS_EPS
from nanochat.model.layers import ROPE_BASE
from nanochat.model.scaling import GPTConfig
from nanochat.runs.record import TrainedModel
from nanochat.tokenizer.conversation import SPECIAL_TOKENS
from nanochat.tokenizer.formats import merges, written
from nanochat.tokenizer.tokenizer import QWEN2_PATTERN, Tokenizer

GGUF = "model.gguf"
MODELFILE = """# ollama create NAME -f Modelfile, then ollama run NAME
FROM ./model.gguf
TEMPLATE \"\"\"<|bos|>{{ $system := .System }}{{ range .Messages }}{{ if eq .Role "user" }}<|user_start|>{{ if $system }}{{ $system }}

{{ end }}{{ $system = "" }}{{ .Content }}<|user_end|>{{ end }}{{ if eq .Role "assistant" }}\
<|assistant_start|>{{ .Content }}<|assistant_end|>{{ end }}{{ end }}<|assistant_start|>\"\"\"
PARAMETER stop <|assistant_end|>
PARAMETER stop <|bos|>
PARAMETER temperature 0.7
"""


def write_gguf(opened: TrainedModel, out: Path) -> None:
    """Write the directory `out`: model.gguf in float32 and a Modelfile.

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
        writer.add_license(licence_of(opened.run))
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        _add_architecture(writer, gpt)
        _add_tokenizer(writer, tokenizer, gguf.TokenType)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, gpt.depth)
        for name, weight in hf_weights(opened.model).items():
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.atomic_write(folder / "Modelfile", MODELFILE)


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

"""Export of a run as a directory for Hugging Face transformers.

The nanochat architecture is exported with its modelling code (trust_remote_code); a portable model is a plain Qwen3.
"""

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from nanochat import paths
from nanochat.export import card, foreign_folder, metadata, vocabulary
from nanochat.export.output import new_folder
from nanochat.export.weights import hf_weights, is_plain_qwen3
from nanochat.kernels.operations import RMS_EPS
from nanochat.model.layers import ROPE_BASE
from nanochat.model.scaling import ARCHITECTURES, GPTConfig
from nanochat.runs.record import TrainedModel
from nanochat.runs.step_files import saving
from nanochat.tokenizer.foreign import KIND, ForeignTokenizer
from nanochat.tokenizer.tokenizer import Tokenizer

ABOUT = "nanochat.json"  # in the directory: metadata for `import`, beside the weights and the tokenizer
FORMAT = 1
WEIGHTS = "model.safetensors"
MODELLING = Path(__file__).with_name("modeling_nanochat_appliance.py")


def config_json(gpt: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of config.json."""
    return _common_config(gpt, tokenizer) | (_qwen3_config(gpt) if is_plain_qwen3(gpt) else _nanochat_config(gpt))


def _common_config(gpt: GPTConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The part of config.json that both architectures share."""
    return {
        "vocab_size": gpt.vocab_size,
        "hidden_size": gpt.dim,
        "intermediate_size": gpt.mlp_dim,
        "num_hidden_layers": gpt.depth,
        "num_attention_heads": gpt.n_head,
        "num_key_value_heads": gpt.n_kv_head,
        "head_dim": gpt.head_dim,
        "max_position_embeddings": gpt.max_seq_len,
        "tie_word_embeddings": gpt.tied,
        "torch_dtype": "float32",
        "bos_token_id": tokenizer.bos,
        "eos_token_id": list(tokenizer.ends),
        "pad_token_id": tokenizer.bos,
        "use_cache": True,
    }


def _qwen3_config(gpt: GPTConfig) -> dict[str, Any]:
    """The part of config.json for transformers' Qwen3."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": gpt.norm_eps,
        "rope_theta": gpt.rope_base,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
    }


def _nanochat_config(gpt: GPTConfig) -> dict[str, Any]:
    """The part of config.json for the exported modelling code."""
    windows = [gpt.window(layer) for layer in range(gpt.depth)]
    module = MODELLING.stem
    return {
        "architectures": ["NanochatForCausalLM"],
        "model_type": "nanochat_appliance",
        "auto_map": {
            "AutoConfig": f"{module}.NanochatConfig",
            "AutoModel": f"{module}.NanochatModel",
            "AutoModelForCausalLM": f"{module}.NanochatForCausalLM",
        },
        "rope_base": ROPE_BASE,
        "norm_eps": RMS_EPS,
        "sliding_window": min(windows) if min(windows) < gpt.max_seq_len else None,
        "layer_types": ["sliding_attention" if window < gpt.max_seq_len else "full_attention" for window in windows],
        "value_embedding_layers": [layer for layer in range(gpt.depth) if gpt.has_value_embedding(layer)],
        **{name: ARCHITECTURES[gpt.architecture][name] for name in ("residual_scalars", "smear", "backout", "softcap")},
    }


def write_folder(opened: TrainedModel, out: Path) -> None:
    """Write the directory `out` atomically. Raises UsageError if it exists, PreflightError if it cannot be written."""
    gpt, tokenizer, meta = opened.model.config, opened.tokenizer, opened.checkpoint.meta
    licence = metadata.licence_of(opened)
    foreign = isinstance(tokenizer, ForeignTokenizer)
    about = {"format": FORMAT, "run": opened.run, "licence": licence, "meta": meta} | ({"tokenizer": KIND} if foreign else {})
    config = config_json(gpt, tokenizer)
    generation = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with new_folder(out) as folder:
        with saving(folder / WEIGHTS, out / WEIGHTS):
            save_file(hf_weights(opened.model), folder / WEIGHTS, metadata={"format": "pt"})
        paths.atomic_write_json(folder / "config.json", config)
        paths.atomic_write_json(folder / "generation_config.json", generation | {"do_sample": True, "temperature": 0.8, "top_k": 50})
        if isinstance(tokenizer, ForeignTokenizer):
            foreign_folder.write_tokenizer(folder, tokenizer, gpt.max_seq_len)
        else:
            vocabulary.write_tokenizer(folder, tokenizer, gpt.max_seq_len)
        paths.atomic_write(folder / card.CARD, card.folder_card(opened))
        paths.atomic_write_json(folder / ABOUT, about)
        if not is_plain_qwen3(gpt):
            shutil.copyfile(MODELLING, folder / MODELLING.name)

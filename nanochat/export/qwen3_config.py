"""A received Qwen3's config.json as a shape; what this project's forward pass does not compute is refused with its reason."""

import dataclasses
from pathlib import Path
from typing import Any

from nanochat import untrusted
from nanochat.errors import DataError
from nanochat.model.scaling import ARCHITECTURES, LARGEST, GPTConfig

CONFIG = "config.json"
SUPPORTED = "import supports Qwen3 models with full attention, in float32, float16 or bfloat16"


def read_config(folder: Path) -> tuple[dict[str, Any], GPTConfig]:
    """(config.json, the shape that it describes). Raises DataError if it is damaged or of a model that is not supported."""
    try:
        config = untrusted.table(untrusted.read_json(untrusted.inside(folder, CONFIG), 1 << 20), CONFIG)
        if wrong := _unsupported(config):
            raise DataError(f"{folder} cannot be imported: {wrong}", SUPPORTED)
        return config, _shape(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / CONFIG} cannot be used: {untrusted.reason(error)}", SUPPORTED) from error


def _unsupported(config: dict[str, Any]) -> str:
    """Why the model is not supported; "" if it is."""
    kind = config.get("model_type")
    if kind != "qwen3":
        return f"its model_type is {untrusted.shown(kind)}, not 'qwen3'"
    if config.get("architectures") not in (None, ["Qwen3ForCausalLM"]):
        return f"its architecture is {untrusted.shown(config['architectures'])}, not Qwen3ForCausalLM"
    rope = _rope(config)
    if scaled := next((rope[name] for name in ("rope_type", "type") if rope.get(name, "default") != "default"), None):
        return f"rope scaling ({untrusted.shown(scaled)}) is not supported"
    for name, what in (
        ("quantization_config", "quantized weights are"),
        ("auto_map", "modelling code of its own is"),
        ("num_experts", "a mixture of experts is"),
        ("attention_bias", "a bias in attention is"),
        ("mlp_bias", "a bias in the MLP is"),
        ("attn_logit_softcapping", "capped attention scores are"),
        ("final_logit_softcapping", "capped logits are"),
        ("use_sliding_window", "sliding windows are"),
    ):
        if config.get(name):
            return f"{what} not supported ({name})"
    layers = config.get("layer_types")
    if layers is not None and (not isinstance(layers, list) or any(one != "full_attention" for one in layers)):
        return "sliding windows are not supported (layer_types)"
    if config.get("partial_rotary_factor", 1) != 1:
        return "rotation of a part of each head is not supported (partial_rotary_factor)"
    if config.get("hidden_act", "silu") != "silu":
        return f"its activation is {untrusted.shown(config['hidden_act'])}, not 'silu'"
    return ""


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of the rotary embedding: rope_scaling, or rope_parameters, which newer versions of transformers write."""
    found: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        if config.get(name) is not None:
            found |= untrusted.table(config[name], name)
    return found


def _shape(config: dict[str, Any]) -> GPTConfig:
    """The shape. Raises ValueError, KeyError for a missing or impossible value."""
    heads = config["num_attention_heads"]
    values = {
        "depth": config["num_hidden_layers"],
        "dim": config["hidden_size"],
        "n_head": heads,
        "n_kv_head": config.get("num_key_value_heads", heads),
        "head_dim": config.get("head_dim", 128),  # Qwen3Config's default, which does not follow from the width
        "vocab_size": config["vocab_size"],
        "max_seq_len": config["max_position_embeddings"],
        "mlp_width": config["intermediate_size"],
    }
    for name, value in values.items():
        untrusted.integer(value, name, 1, LARGEST[name])
    rope = _rope(config)
    gpt = GPTConfig.from_dict(
        values
        | ARCHITECTURES["qwen3"]
        | {"rope_base": rope.get("rope_theta", config.get("rope_theta", 10_000.0)), "norm_eps": config.get("rms_norm_eps", 1e-6)}
        | {"tied": config.get("tie_word_embeddings", False)}
    )
    own = dataclasses.replace(gpt, mlp_width=0)  # the width of this project's own models, if it is that
    return own if own.mlp_dim == gpt.mlp_dim else gpt

"""A model's weights under Hugging Face's names, out and in: names, shapes, the rotary embedding's halves."""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from nanochat.model.build import describe_model
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer

# This project's names of the weights -> Hugging Face's; {} is a layer's number.
_HF_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.gain": "model.norm.weight",
    "blocks.{}.attn.q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blocks.{}.attn.k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blocks.{}.attn.v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blocks.{}.attn.o.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blocks.{}.attn.ve_gate.weight": "model.layers.{}.self_attn.ve_gate.weight",
    "blocks.{}.attn.q_norm.gain": "model.layers.{}.self_attn.q_norm.weight",
    "blocks.{}.attn.k_norm.gain": "model.layers.{}.self_attn.k_norm.weight",
    "blocks.{}.attn_norm.gain": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.mlp_norm.gain": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.mlp.fc.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.mlp.proj.weight": "model.layers.{}.mlp.down_proj.weight",
    "blocks.{}.mlp.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blocks.{}.mlp.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blocks.{}.mlp.down.weight": "model.layers.{}.mlp.down_proj.weight",
    "value_embeds.{}.weight": "model.value_embeds.{}.weight",
    "smear_gate.weight": "model.smear_gate.weight",
    **{name: f"model.{name}" for name in ("resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda")},
}
_VOCABULARY = re.compile(r"(embed|head|value_embeds\.\d+)\.weight")  # tensors with a row per id
_ROTATED = re.compile(r"blocks\.\d+\.attn\.(q|k)(\.weight|_norm\.gain)")


def is_plain_qwen3(gpt: GPTConfig) -> bool:
    """Whether other inference engines can run the model: a Qwen3 with full attention in all layers."""
    return gpt.architecture == "qwen3" and all(gpt.window(layer) == gpt.max_seq_len for layer in range(gpt.depth))


def hf_name(name: str) -> str:
    """Hugging Face's name of a weight."""
    numbered = re.sub(r"\.(\d+)\.", ".{}.", name)
    return _HF_NAMES[numbered].format(*re.findall(r"\.(\d+)\.", name))


def _swap_rotary_halves(name: str, weight: Tensor, gpt: GPTConfig) -> Tensor:
    """Convert a weight to or from transformers' Qwen3, whose rotary embedding has the halves of each head swapped."""
    if not (gpt.architecture == "qwen3" and _ROTATED.fullmatch(name)):
        return weight
    return weight.unflatten(0, (-1, 2, gpt.head_dim // 2)).flip(1).flatten(0, 2)


def hf_weights(model: Transformer) -> dict[str, Tensor]:
    """The model's weights in float32 under Hugging Face's names, without the vocabulary's padding."""
    found = {}
    for name, weight in model.named_parameters():
        kept = weight.detach()[: model.config.vocab_size] if _VOCABULARY.fullmatch(name) else weight.detach()
        found[hf_name(name)] = _swap_rotary_halves(name, kept, model.config).contiguous()
    return found


def fill(model: Transformer, read: Callable[[str], Tensor]) -> None:
    """Fill the weights of `model` with what `read` returns for Hugging Face's names; the vocabulary's padding becomes 0."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            value = _swap_rotary_halves(name, read(hf_name(name)).to(weight.dtype), model.config)
            if weight.dim():
                weight[len(value) :] = 0
                weight[: len(value)] = value
            else:
                weight.copy_(value)


def hf_shapes(gpt: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each weight as `hf_weights` returns it, by Hugging Face's name."""
    return {
        hf_name(name): (gpt.vocab_size if _VOCABULARY.fullmatch(name) else len(weight), *weight.shape[1:]) if weight.dim() else ()
        for name, weight in describe_model(gpt).named_parameters()
    }

"""Build a model from its config."""

import torch

from nanochat.model.gpt import GPT
from nanochat.model.qwen3 import Qwen3
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer

_MODELS: dict[str, type[GPT] | type[Qwen3]] = {"nanochat": GPT, "qwen3": Qwen3}


def build_model(config: GPTConfig, device: torch.device | str = "cpu", seed: int = 42) -> Transformer:
    """A float32 model with initial weights on `device`; the same seed gives the same weights everywhere."""
    model = allocate_model(config, device)
    model.init_weights(seed)
    return model


def allocate_model(config: GPTConfig, device: torch.device | str = "cpu") -> Transformer:
    """A float32 model on `device` with uninitialised weights, allocated once."""
    model = describe_model(config)
    model.to_empty(device=device)
    model.tie()  # to_empty makes each module's weight anew
    model.init_buffers()
    model.use(torch.float32)
    return model


def describe_model(config: GPTConfig) -> Transformer:
    """A model on the meta device: weights with names and shapes but no memory."""
    with torch.device("meta"):
        return _MODELS[config.architecture](config)

"""Scaling rules: a model's shape, parameters, FLOPs and memory from its depth, and the defaults that follow from its size.

Pure arithmetic without torch, so that `plan` is immediate. The shape and the rules are karpathy/nanochat's;
the batch rule is from arXiv 2505.13738, the weight decay rule from arXiv 2405.13698.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from nanochat import untrusted
from nanochat.config import ModelConfig
from nanochat.errors import UsageError

SOFTCAP = 15.0  # of nanochat's logits
ROPE_BASE = 100_000.0  # of the rotary embedding
NORM_EPS = 2.0**-23  # of the norms: float32's machine epsilon

# The parts of each architecture, as a checkpoint's JSON names them. qwen3: norms with gains (before the rotation, none after the
# embedding) and SwiGLU, exactly as Qwen3, so that other inference engines run it unchanged.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "nanochat": {
        "value_embeddings": True,
        "residual_scalars": True,
        "smear": True,
        "backout": True,
        "softcap": SOFTCAP,
        "qwen3": False,
    },
    "qwen3": {
        "value_embeddings": False,
        "residual_scalars": False,
        "smear": False,
        "backout": False,
        "softcap": 0.0,
        "qwen3": True,
    },
}

VALUE_GATE_CHANNELS = 12  # channels of x that decide how much of a value embedding is added
SMEAR_GATE_CHANNELS = 24  # channels of x that decide how much of the previous token is added

# The reference run of all rules: d12 with a vocabulary of 32,768 and 12 tokens per scaling parameter.
REFERENCE_TOKENS = 12 * (12 * 12 * 768**2 + 32768 * 768)
REFERENCE_BATCH = 2**19
REFERENCE_WEIGHT_DECAY = 0.28
REFERENCE_DIM = 768
MINIMUM_STEPS = 500  # the automatic batch size leaves at least so many steps; d4's 528 are the fewest of the measured table

# Limits for a checkpoint's JSON, far above any model that can be trained, so that a hostile one cannot make us allocate more.
LARGEST = {
    "depth": 1024,
    "dim": 2**16,
    "n_head": 2**12,
    "n_kv_head": 2**12,
    "head_dim": 2**13,
    "mlp_width": 2**18,
    "vocab_size": 2**22,
    "max_seq_len": 2**20,
}
NUMBERS = {"rope_base": (1.0, 1e12), "norm_eps": (1e-12, 0.1)}  # least and most
LARGEST_TABLE = 2**25  # max_seq_len x head_dim: the table of the rotary embedding, which no weight's shape bounds


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The model's shape; a checkpoint is loaded only into an equal one."""

    depth: int
    dim: int
    n_head: int
    n_kv_head: int
    head_dim: int
    vocab_size: int  # number of the tokenizer's ids
    max_seq_len: int
    window_pattern: str = "L"
    architecture: str = "nanochat"  # a key of ARCHITECTURES
    # Only an imported Qwen3 differs in these, and in dim, which need not be n_head x head_dim.
    mlp_width: int = 0  # inside the MLP; 0: chosen from the model's width
    rope_base: float = ROPE_BASE
    norm_eps: float = NORM_EPS
    tied: bool = False  # the head is the embedding

    def __post_init__(self) -> None:
        if self.architecture != "qwen3":
            assert self.dim == self.n_head * self.head_dim, (self.dim, self.n_head, self.head_dim)
            assert all(getattr(self, name) == default for name, default in _OPTIONAL.items()), self
        assert self.n_head % self.n_kv_head == 0, (self.n_head, self.n_kv_head)
        assert self.architecture in ARCHITECTURES, self.architecture
        assert self.window_pattern
        assert not set(self.window_pattern) - set("SL"), self.window_pattern

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding and the head: vocab_size rounded up to a multiple of 64, for speed."""
        return round_up(self.vocab_size, 64)

    @property
    def mlp_dim(self) -> int:
        """Width inside the MLP, chosen so that SwiGLU's three matrices have about as many parameters as the other's two."""
        return self.mlp_width or round_up(8 * self.dim // 3, 64) if self.architecture == "qwen3" else 4 * self.dim

    @property
    def q_dim(self) -> int:
        """Width of the queries."""
        return self.n_head * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of the keys, the values and each value embedding."""
        return self.n_kv_head * self.head_dim

    def window(self, layer: int) -> int:
        """Tokens that `layer` attends to: the whole context, or a quarter of it (a multiple of 128). The last layer has the whole."""
        short = self.window_pattern[layer % len(self.window_pattern)] == "S" and layer < self.depth - 1
        return min(round_up(math.ceil(self.max_seq_len / 4), 128), self.max_seq_len) if short else self.max_seq_len

    def has_value_embedding(self, layer: int) -> bool:
        """Whether `layer` adds a value embedding: in nanochat's models every other layer, always including the last."""
        return self.architecture == "nanochat" and (self.depth - 1 - layer) % 2 == 0

    def to_dict(self) -> dict[str, Any]:
        """The shape and the architecture's parts, for a checkpoint's JSON; what only imported models have, where it is not the default."""
        shape = {name: value for name, value in dataclasses.asdict(self).items() if name not in _OPTIONAL or value != _OPTIONAL[name]}
        parts = ARCHITECTURES[shape.pop("architecture")]
        return shape | parts

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GPTConfig":
        """The inverse of `to_dict`; a missing part is nanochat's.

        Raises TypeError for a missing or unknown field, ValueError for unknown parts or an impossible shape.
        """
        shape = dict(values)
        for name in LARGEST.keys() & shape.keys():
            untrusted.integer(shape[name], name, 1, LARGEST[name])
        for name in ("rope_base", "norm_eps"):
            shape[name] = untrusted.number(shape.get(name, _OPTIONAL[name]), name, *NUMBERS[name])
        if type(shape.get("tied", False)) is not bool:
            raise ValueError(f"tied is {untrusted.shown(shape['tied'])}, not true or false")
        untrusted.text(shape.get("window_pattern", "L"), "window_pattern", LARGEST["depth"])
        parts = {name: shape.pop(name, default) for name, default in ARCHITECTURES["nanochat"].items()}
        for architecture, known in ARCHITECTURES.items():
            if parts == known:
                try:
                    gpt = cls(**shape, architecture=architecture)
                except AssertionError as error:
                    raise ValueError(f"the model shape {untrusted.shown(shape, 300)} is impossible") from error
                if gpt.max_seq_len * gpt.head_dim > LARGEST_TABLE or gpt.head_dim % 2:
                    raise ValueError(f"max_seq_len {gpt.max_seq_len} with head_dim {gpt.head_dim} is too large")
                return gpt
        raise ValueError(f"unknown architecture {untrusted.shown(parts, 300)}")


_OPTIONAL = {name: GPTConfig.__dataclass_fields__[name].default for name in ("mlp_width", "rope_base", "norm_eps", "tied")}


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def gpt_config(config: ModelConfig) -> GPTConfig:
    """The shape for `config`, whose vocab_size must be resolved (not -1). A portable model attends to its whole context."""
    assert config.vocab_size > 0, "vocab_size must be resolved first (planning/rules.py)"
    if config.shape:  # of an imported model, whose context may be shortened
        try:
            return dataclasses.replace(GPTConfig.from_dict(json.loads(config.shape)), max_seq_len=config.max_seq_len)
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"the shape {untrusted.shown(config.shape)} is not a model's", "use --from, which sets it") from error
    dim = round_up(config.aspect_ratio * config.depth, config.head_dim)
    portable = config.architecture == "portable"  # the flag's value for a Qwen3
    return GPTConfig(
        depth=config.depth,
        dim=dim,
        n_head=dim // config.head_dim,
        n_kv_head=dim // config.head_dim,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_seq_len,
        window_pattern="L" if portable else config.window_pattern.upper(),
        architecture="qwen3" if portable else "nanochat",
    )


def count_parameters(gpt: GPTConfig) -> dict[str, int]:
    """Parameters of each part, exactly as in the model, and their `total`.

    `matrices` are the blocks' (12 x depth x dim^2 if n_kv_head = n_head, and the small value gates), which Muon updates. `scalars`
    are the residual's and the norms' gains.
    """
    qwen3 = gpt.architecture == "qwen3"
    tables = sum(gpt.has_value_embedding(layer) for layer in range(gpt.depth))
    mlp = (3 if qwen3 else 2) * gpt.dim * gpt.mlp_dim
    block = 2 * gpt.dim * gpt.q_dim + 2 * gpt.dim * gpt.kv_dim + mlp  # q and o, k and v, the MLP's
    gains = (2 * gpt.dim + 2 * gpt.head_dim) * gpt.depth + gpt.dim
    residual = 2 * gpt.depth + SMEAR_GATE_CHANNELS + 1 + 1  # two per layer, the smear's gate and factor, the backout's
    parts = {
        "embedding": gpt.padded_vocab * gpt.dim,
        "head": 0 if gpt.tied else gpt.padded_vocab * gpt.dim,
        "value_embeddings": tables * gpt.padded_vocab * gpt.kv_dim,
        "matrices": gpt.depth * block + tables * VALUE_GATE_CHANNELS * gpt.n_kv_head,
        "scalars": gains if qwen3 else residual,
    }
    return parts | {"total": sum(parts.values())}


def scaling_parameters(gpt: GPTConfig) -> int:
    """The parameters that decide the number of training tokens: the matrices and the head."""
    parts = count_parameters(gpt)
    return parts["matrices"] + (parts["head"] or parts["embedding"])


def flops_per_token(gpt: GPTConfig) -> int:
    """Floating-point operations of one training token, forward and backward.

    6 per matrix or head parameter, and 12 x head_dim x heads per token in a layer's window.
    """
    attention = sum(12 * gpt.head_dim * gpt.n_head * gpt.window(layer) for layer in range(gpt.depth))
    return 6 * scaling_parameters(gpt) + attention


# ---- rules ----------------------------------------------------------------------------------------------------

MAXIMUM_EPOCHS = 4  # text repeated up to four times is nearly as good as new (arXiv 2305.16264)
BEST_RATIO = 10.5  # compute-optimal tokens per scaling parameter, from published runs of about 1e18 FLOPs


def bytes_per_token(vocab_size: int) -> float:
    """Approximate bytes of English per token: 2.0 at a vocabulary of 512, 3.3 at 4,096, 4.6 at 32,768."""
    return max(0.43 * math.log2(vocab_size) - 1.85, 1.0)


def target_tokens(gpt: GPTConfig, ratio: float) -> int:
    """Training tokens of a run: `ratio` per scaling parameter."""
    return int(ratio * scaling_parameters(gpt))


def total_batch_rule(tokens: float, group: int = 1) -> int:
    """Tokens of one step for a run of `tokens`: 2^19 x (tokens / d12's)^0.383, to the nearest power of two.

    For runs shorter than d4's the power of two is lowered until MINIMUM_STEPS remain. `group` is the tokens of a micro-batch over all
    devices (device_batch_size x max_seq_len x processes); the result is the nearest multiple of it, at least one.
    """
    assert tokens > 0, tokens
    assert group > 0, group
    exponent = round(math.log2(REFERENCE_BATCH * (tokens / REFERENCE_TOKENS) ** 0.383))
    exponent = max(min(exponent, int(math.log2(max(tokens / MINIMUM_STEPS, 1)))), 0)
    return max(round(2**exponent / group), 1) * group


def weight_decay_rule(batch: int, tokens: float) -> float:
    """Muon's weight decay: 0.28 x sqrt(batch / 2^19) x (d12's tokens / tokens).

    At most 2, about the largest measured value (d4's 1.89): for much smaller models the decay would outweigh the updates.
    """
    return min(REFERENCE_WEIGHT_DECAY * math.sqrt(batch / REFERENCE_BATCH) * REFERENCE_TOKENS / tokens, 2.0)


def steps_rule(tokens: float, batch: int) -> int:
    """Whole steps of `batch` tokens in `tokens`, at least one."""
    return max(int(tokens // batch), 1)


def sft_steps_rule(pretraining_steps: int) -> int:
    """Steps of fine-tuning after so many steps of pretraining: an eighth."""
    return max(pretraining_steps // 8, 1)


def batch_lr_scale(batch: int) -> float:
    """Factor of the learning rates (but the smear's and backout's): square root of the batch over 2^19 tokens."""
    return math.sqrt(batch / REFERENCE_BATCH)


def width_lr_scale(dim: int) -> float:
    """Factor of AdamW's learning rates of the head and the embeddings: square root of 768 over the width."""
    return (dim / REFERENCE_DIM) ** -0.5


# ---- the loss's chunks ------------------------------------------------------------------------------------------

# Logits of a chunk of the loss: on a CPU they fit in its cache; the fused operation reads them only once.
LOSS_CHUNK = {"cpu": 2 * 2**20, "cpu, fused": 8 * 2**20, "cuda": 16 * 2**20}
LOSS_PARTS = 16  # most chunks on a GPU, which smaller ones would not keep busy
LOSS_ROWS = 256  # least tokens of a chunk
CHEAP_BUDGET = 0.9  # from this activation_memory_budget to below 1, only what is cheap is recomputed


def loss_rows(tokens: int, vocab: int, device: str, fused: bool = False) -> int:
    """Tokens of one chunk of the loss of `tokens`."""
    if device == "cuda":
        return max(LOSS_ROWS, LOSS_CHUNK[device] // vocab, tokens // LOSS_PARTS)
    return max(LOSS_ROWS, LOSS_CHUNK["cpu, fused" if fused else "cpu"] // vocab)

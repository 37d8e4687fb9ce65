"""The NanoChat Appliance model for Hugging Face transformers (4.56 and newer), loaded with trust_remote_code=True.

`export` copies this file into the exported directory. It needs torch and transformers and nothing of the project. It computes the same
as nanochat/model/gpt.py, and `export --check` compares the two.

Shapes: B rows, T positions, D width, H query heads, G key/value heads, K width of a head, V vocabulary.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

QK_SCALE = 1.2
VALUE_GATE_CHANNELS = 12
SMEAR_GATE_CHANNELS = 24
# transformers' name of the cache in a model's outputs, which differs between versions.
_CACHE = "cache" if "cache" in inspect.signature(CausalLMOutputWithPast).parameters else "past_key_values"


class NanochatConfig(PretrainedConfig):
    """The model's shape and switches: the fields of config.json."""

    model_type = "nanochat_appliance"

    def __init__(
        self,
        vocab_size: int = 32768,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 6,
        num_key_value_heads: int = 6,
        head_dim: int = 128,
        max_position_embeddings: int = 2048,
        rope_base: float = 100_000.0,
        norm_eps: float = 1.1920928955078125e-07,
        sliding_window: int | None = None,
        layer_types: list[str] | None = None,
        value_embedding_layers: list[int] | None = None,
        residual_scalars: bool = True,
        smear: bool = True,
        backout: bool = True,
        softcap: float = 15.0,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ):
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads, self.head_dim = num_key_value_heads, head_dim
        self.max_position_embeddings, self.rope_base, self.norm_eps = max_position_embeddings, rope_base, norm_eps
        self.sliding_window = sliding_window
        self.layer_types = layer_types or ["full_attention"] * num_hidden_layers
        self.value_embedding_layers = value_embedding_layers or []
        self.residual_scalars, self.smear, self.backout, self.softcap = residual_scalars, smear, backout, softcap
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


def _norm(x: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.size(-1),), eps=eps)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, K), cos and sin (B, T, 1, K/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def _eager_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """query (B, H, T, K), key and value (B, G, S, K) -> (B, T, H, K) and the weights."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (key, value))
    scores = query @ key.mT * scaling
    weights = (scores if attention_mask is None else scores + attention_mask).softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class NanochatAttention(nn.Module):
    """Causal attention with QK norm, the user's choice of kernel, and in some layers a gated value embedding."""

    is_causal = True

    def __init__(self, config: NanochatConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.head_dim = config, layer_idx, config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None
        width, kv_width = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        if layer_idx in config.value_embedding_layers:
            self.ve_gate = nn.Linear(VALUE_GATE_CHANNELS, config.num_key_value_heads, bias=False)

    def forward(
        self, x: Tensor, ve: Tensor | None, rotary: tuple[Tensor, Tensor], attention_mask: Any, cache: Cache | None, **kwargs: Any
    ) -> Tensor:
        """x (B, T, D), ve (B, T, G * K) or None -> (B, T, D)."""
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)) for f in (self.q_proj, self.k_proj, self.v_proj))
        if ve is not None:
            gate = 3 * torch.sigmoid(self.ve_gate(x[..., :VALUE_GATE_CHANNELS]))
            v = v + gate.unsqueeze(-1) * ve.unflatten(-1, (-1, self.head_dim))
        q, k = (_norm(_rotate(y, *rotary), self.config.norm_eps) * QK_SCALE for y in (q, k))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        chosen = self.config._attn_implementation
        attend = _eager_attention if chosen == "eager" else ALL_ATTENTION_FUNCTIONS[chosen]
        out, _ = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, sliding_window=self.sliding_window, **kwargs)
        return self.o_proj(out.flatten(2).contiguous())


class NanochatMLP(nn.Module):
    """MLP with squared ReLU."""

    def __init__(self, config: NanochatConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(x)).square())


class NanochatBlock(nn.Module):
    """Pre-norm residual block: attention, then the MLP."""

    def __init__(self, config: NanochatConfig, layer_idx: int):
        super().__init__()
        self.eps = config.norm_eps
        self.self_attn = NanochatAttention(config, layer_idx)
        self.mlp = NanochatMLP(config)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = x + self.self_attn(_norm(x, self.eps), *args, **kwargs)
        return x + self.mlp(_norm(x, self.eps))


class NanochatPreTrainedModel(PreTrainedModel):
    """Settings that transformers needs for all models here."""

    config_class = NanochatConfig
    base_model_prefix = "model"
    _no_split_modules = ("NanochatBlock",)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def _init_weights(self, module: nn.Module) -> None:
        """Initial weights, used only for a model built from its config without saved weights."""
        super()._init_weights(module)
        if isinstance(module, NanochatModel):
            for name in ("resid_lambdas", "x0_lambdas", "smear_lambda", "backout_lambda"):
                if isinstance(scalars := getattr(module, name, None), nn.Parameter):
                    nn.init.constant_(scalars, 1.0 if name == "resid_lambdas" else 0.0)


class NanochatModel(NanochatPreTrainedModel):
    """Ids to hidden states."""

    def __init__(self, config: NanochatConfig):
        super().__init__(config)
        depth = config.num_hidden_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(NanochatBlock(config, i) for i in range(depth))
        kv_width = config.num_key_value_heads * config.head_dim
        self.value_embeds = nn.ModuleDict({str(i): nn.Embedding(config.vocab_size, kv_width) for i in config.value_embedding_layers})
        if config.residual_scalars:
            self.resid_lambdas = nn.Parameter(torch.ones(depth))
            self.x0_lambdas = nn.Parameter(torch.zeros(depth))
        if config.smear:
            self.smear_gate = nn.Linear(SMEAR_GATE_CHANNELS, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids (B, T), appended to the cached tokens -> hidden states (B, T, D)."""
        config = self.config
        for name in ("inputs_embeds", "output_attentions", "output_hidden_states", "return_dict", "logits_to_keep"):
            if kwargs.pop(name, None) is not None and name == "inputs_embeds":
                raise ValueError("this model needs input_ids, because its value embeddings are looked up by id")
        if config.smear and "attention_instances" in kwargs:
            raise ValueError("vLLM cannot run this model, because it needs the previous token: use a model with --architecture portable")
        cache = cache if cache is not None else past_key_values
        if cache is None and (use_cache if use_cache is not None else getattr(config, "use_cache", True)) and not self.training:
            cache = DynamicCache(config=config)
        x = _norm(self.embed_tokens(input_ids), config.norm_eps)
        if position_ids is None:
            held = cache.get_seq_length() if cache is not None else 0
            position_ids = (torch.arange(x.size(1), device=x.device) + held).unsqueeze(0)
        masks = attention_mask if isinstance(attention_mask, dict) else self._masks(x, attention_mask, position_ids, cache)
        steps = torch.arange(0, config.head_dim, 2, device=x.device, dtype=torch.float32)
        angles = (position_ids.float().unsqueeze(-1) * config.rope_base ** (-steps / config.head_dim)).unsqueeze(-2)  # (B, T, 1, K/2)
        rotary = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        if config.smear:
            x = self._smear(x, attention_mask, cache)
        first = middle = x
        halfway = min(config.num_hidden_layers // 2, config.num_hidden_layers - 2)
        for i, layer in enumerate(self.layers):
            if config.residual_scalars:
                x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * first
            ve = self.value_embeds[str(i)](input_ids) if i in config.value_embedding_layers else None
            x = layer(x, ve, rotary, masks[config.layer_types[i]], cache, position_ids=position_ids, **kwargs)
            if i == halfway:
                middle = x
        if config.backout:
            x = x - self.backout_lambda * middle
        return BaseModelOutputWithPast(last_hidden_state=_norm(x, config.norm_eps), **{_CACHE: cache})

    def _masks(self, x: Tensor, attention_mask: Tensor | None, position_ids: Tensor, cache: Cache | None) -> dict[str, Any]:
        """The mask of each kind of layer, in the format of the chosen kernel."""
        held = cache.get_seq_length() if cache is not None else 0
        values = {"attention_mask": attention_mask, "position_ids": position_ids, "cache": cache, "past_key_values": cache}
        values |= {"inputs_embeds": x, "input_embeds": x, "cache_position": torch.arange(x.size(1), device=x.device) + held}
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        masks = {}
        for kind in set(self.config.layer_types):
            taken = inspect.signature(makers[kind]).parameters  # their names differ between versions of transformers
            masks[kind] = makers[kind](config=self.config, **{name: value for name, value in values.items() if name in taken})
        return masks

    def _smear(self, x: Tensor, attention_mask: Any, cache: Cache | None) -> Tensor:
        """Add the previous position's embedding: x (B, T, D) -> (B, T, D).

        The embeddings are one more layer of the cache, so that they are reordered, repeated or cropped with it.
        """
        if isinstance(attention_mask, dict):
            raise ValueError("this model needs an attention mask (B, S): use the default cache, not a static one")
        tokens = x.size(1)
        seen = x
        if cache is not None:
            while len(cache.layers) <= self.config.num_hidden_layers:
                cache.layers.append(DynamicLayer())
            kept, _ = cache.update(x.unsqueeze(1), x.unsqueeze(1)[..., :0], self.config.num_hidden_layers)
            seen = kept[:, 0]  # (B, S, D)
        if attention_mask is not None and attention_mask.dim() == 2:
            seen = seen * attention_mask[:, : seen.size(1), None].to(x.dtype)  # ignore padding on the left
        before = F.pad(seen, (0, 0, 1, 0))[:, -tokens - 1 : -1]
        return x + self.smear_lambda * torch.sigmoid(self.smear_gate(x[..., :SMEAR_GATE_CHANNELS])) * before


class NanochatForCausalLM(NanochatPreTrainedModel, GenerationMixin):
    """Ids to logits."""

    def __init__(self, config: NanochatConfig):
        super().__init__(config)
        self.model = NanochatModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, logits_to_keep: int | Tensor = 0, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) -> logits (B, T, V) in float32, or of the last `logits_to_keep` positions."""
        outputs = self.model(input_ids, **kwargs)
        kept = slice(-logits_to_keep if logits_to_keep else 0, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept]).float()
        if self.config.softcap:
            logits = self.config.softcap * torch.tanh(logits / self.config.softcap)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{_CACHE: outputs.get(_CACHE)})

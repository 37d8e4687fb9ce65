"""One token a row: what `GPT.forward` computes with a KV cache, in a third of the operations.

A small model's step is not arithmetic but the calling of operations, some hundred a layer in the general forward pass. Here q, k, v
and the value gate come from one product, q and k are rotated and normalised together, sums are part of products, the norms' gains
part of the weights that read them. The general pass is the reference (tests/model/test_decode.py).

Shapes: B rows, D width, H query heads, G key/value heads, K width of a head, S cached positions, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.attention import QK_SCALE, RMS_EPS, KVCache, RMSNorm
from nanochat.model.gpt import GPT, Block, SwiGLU, softcap
from nanochat.model.scaling import SMEAR_GATE_CHANNELS

TINY = 1e-20  # keeps a vector of zeros from being divided by zero


@dataclass(frozen=True)
class _Layer:
    """One block's weights, in the activations' type."""

    qkvg: Tensor  # (D, H * K + 2 * G * K + G) the gate's rows last; without them where there is no value embedding
    o: Tensor  # (H * K, D)
    fc: Tensor  # (D, 4 * D), or SwiGLU's gate and up side by side
    proj: Tensor  # (4 * D, D)
    table: Tensor | None  # (V, G * K) value embeddings
    window: int
    resid: float
    first: float
    gains: Tensor | None  # (H + G, K) of the QK norm, where it has some


def _scaled(weight: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """A weight (out, D) that reads what `norm` has normalised, with the norm's gains, if any, in it."""
    return weight * norm.gain if isinstance(norm, RMSNorm) else weight


class Decoder:
    """Decodes with the weights that `model` has when this is made."""

    @torch.inference_mode()
    def __init__(self, model: GPT):
        self._config, dtype = model.config, model.compute_dtype
        config = model.config
        self._dtype = dtype
        self._embed = model.embed.weight
        self._head = _scaled(model.head.weight[: config.vocab_size], model.norm).to(dtype).t()
        self._layers = [self._layer(model, i, block) for i, block in enumerate(model.blocks) if isinstance(block, Block)]
        cos, sin = model.cos.to(dtype), model.sin.to(dtype)
        self._cos, self._sin = torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1)  # (T, K)
        self._backout = float(model.backout_lambda) if config.backout else 0.0
        if config.smear:
            self._smear = model.smear_gate.weight.to(dtype).t(), float(model.smear_lambda)

    def _layer(self, model: GPT, index: int, block: Block) -> _Layer:
        config, dtype, attn = self._config, self._dtype, block.attn
        parts = [_scaled(weight, block.attn_norm) for weight in (attn.q.weight, attn.k.weight, attn.v.weight)]
        if attn.ve_gate is not None:
            gate = attn.ve_gate.weight
            parts.append(F.pad(gate, (0, config.dim - gate.size(1))))  # it reads the first channels alone
        gains = None
        if attn.q_norm is not None and attn.k_norm is not None:
            both = ((attn.q_norm, config.n_head), (attn.k_norm, config.n_kv_head))
            gains = torch.cat([norm.gain.to(dtype).expand(heads, -1) for norm, heads in both])
        if isinstance(block.mlp, SwiGLU):
            fc, proj = torch.cat((block.mlp.gate.weight, block.mlp.up.weight)), block.mlp.down.weight
        else:
            fc, proj = block.mlp.fc.weight, block.mlp.proj.weight
        return _Layer(
            qkvg=torch.cat([part.to(dtype) for part in parts]).t(),
            o=attn.o.weight.to(dtype).t(),
            fc=_scaled(fc, block.mlp_norm).to(dtype).t(),
            proj=proj.to(dtype).t(),
            table=model.get_parameter(f"value_embeds.{index}.weight") if config.has_value_embedding(index) else None,
            window=config.window(index),
            resid=float(model.resid_lambdas[index]) if config.residual_scalars else 1.0,
            first=float(model.x0_lambdas[index]) if config.residual_scalars else 0.0,
            gains=gains,
        )

    @torch.inference_mode()
    def __call__(self, ids: list[int], lengths: list[int], cache: KVCache) -> Tensor:
        """Append one token to each row of `cache`, row b holding `lengths[b]` of them; the softcapped logits after it, (B, V)."""
        config, device = self._config, cache.lengths.device
        rows, heads, groups, width = len(ids), config.n_head, config.n_kv_head, config.head_dim
        tokens = torch.tensor(ids, device=device)
        positions = torch.tensor(lengths, device=device)
        span = max(lengths) + 1
        cos, sin = self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)  # (B, 1, K)
        behind = positions.unsqueeze(1) - torch.arange(span, device=device)  # (B, S)
        biases = {layer.window: self._bias(behind, layer.window) for layer in {layer.window: layer for layer in self._layers}.values()}
        numbers = torch.arange(rows, device=device)
        x = self._embed[tokens].to(self._dtype)
        if not config.qwen3:
            x = self._norm(x)
        if config.smear:
            gate, scale = self._smear
            smeared = torch.addcmul(x, torch.mm(x[:, :SMEAR_GATE_CHANNELS], gate).sigmoid_(), cache.previous, value=scale)
            cache.previous.copy_(x)
            x = smeared
        first = middle = x
        halfway = min(config.depth // 2, config.depth - 2)
        for index, layer in enumerate(self._layers):
            if config.residual_scalars:
                x = torch.add(x * layer.resid, first, alpha=layer.first)
            qkvg = torch.mm(self._norm(x), layer.qkvg)
            qk = qkvg[:, : (heads + groups) * width].view(rows, heads + groups, width)
            v = qkvg[:, (heads + groups) * width : (heads + 2 * groups) * width].view(rows, groups, width)
            if layer.table is not None:
                ve = layer.table[tokens].to(self._dtype).view(rows, groups, width)
                v = torch.addcmul(v, ve, qkvg[:, -groups:].sigmoid().unsqueeze(-1), value=3)
            if layer.gains is not None:
                qk = self._norm(qk) * layer.gains
            qk = torch.addcmul(qk * cos, qk.roll(width // 2, -1), sin)
            if layer.gains is None:
                qk = self._norm(qk, QK_SCALE)
            keys, values = cache.keys[index], cache.values[index]  # (B, G, length + 1, K)
            keys[numbers, :, positions] = qk[:, heads:].to(keys.dtype)
            values[numbers, :, positions] = v.to(values.dtype)
            out = self._attend(qk[:, :heads], keys[:, :, :span], values[:, :, :span], biases[layer.window])
            x = torch.addmm(x, out.reshape(rows, heads * width), layer.o)
            inner = torch.mm(self._norm(x), layer.fc)
            if config.qwen3:
                gate, up = inner.chunk(2, -1)
                inner = F.silu(gate) * up
            else:
                inner = inner.relu_().square_()
            x = torch.addmm(x, inner, layer.proj)
            if index == halfway:
                middle = x
        if config.backout:
            x = torch.sub(x, middle, alpha=self._backout)
        cache.lengths += 1
        return softcap(torch.mm(self._norm(x), self._head).float(), config.softcap)

    def _norm(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """RMSNorm over the last axis, times `gain`."""
        width = x.size(-1)
        if x.device.type == "cuda":
            return F.rms_norm(x, (width,), None, RMS_EPS) * gain
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).add_(TINY)  # a CPU's rms_norm is seven operations
        return x.div(length).mul_(gain * width**0.5)

    def _bias(self, behind: Tensor, window: int) -> Tensor:
        """0 where a row sees a position, -inf elsewhere: how far behind it is (B, S) -> (B, 1, S)."""
        hidden = (behind < 0) | (behind >= window)
        return torch.zeros(behind.shape, dtype=self._dtype, device=behind.device).masked_fill_(hidden, -torch.inf).unsqueeze(1)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        """q (B, H, K), keys and values (B, G, S, K), bias (B, 1, S) -> (B, H, K)."""
        rows, heads, width = q.shape
        groups = keys.size(1)
        q = q.reshape(rows * groups, heads // groups, width)
        keys, values = keys.flatten(0, 1).to(q.dtype), values.flatten(0, 1).to(q.dtype)  # (B * G, S, K), views
        bias = bias.expand(-1, groups, -1).reshape(rows * groups, 1, -1)
        scores = torch.baddbmm(bias, q, keys.transpose(1, 2), alpha=width**-0.5)
        return torch.bmm(scores.softmax(-1), values).view(rows, heads, width)

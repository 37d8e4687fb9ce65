"""Decoding step: one token per row with a KV cache, in a third of the operations of the general forward pass.

A small model's decoding time is dominated by the overhead of calling operations, about a hundred per layer in the general forward pass.
Here q, k, v and the value gate come from one product, q and k are rotated and normalised together, sums are fused into products, and
the norms' gains into the weights that follow. The general pass is the reference (tests/model/test_decode.py).

Shapes: B rows, D width, H query heads, G key/value heads, K width of a head, M inside the MLP, S cached positions, V vocabulary.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.operations import RMS_EPS
from nanochat.kernels.transfer import to_device
from nanochat.model.attention import KVCache
from nanochat.model.gpt import GPT, QK_SCALE, GPTBlock
from nanochat.model.qwen3 import Qwen3, Qwen3Block
from nanochat.model.scaling import SMEAR_GATE_CHANNELS
from nanochat.model.transformer import Transformer, softcapped

TINY = 1e-20  # avoids a division by zero for a vector of zeros


class _Step:
    """One token for each of B rows: `tokens` and `positions` (B,), their rotary angles, and the cached positions that each attends to.

    Nothing of a row whose `live` (B,) is false is kept in the cache.
    """

    def __init__(self, tokens: Tensor, positions: Tensor, span: int, live: Tensor | None, cache: KVCache, cos: Tensor, sin: Tensor):
        device = cache.lengths.device
        self.cache, self.tokens, self.span, self._live = cache, tokens, span, live
        self.rows = torch.arange(len(tokens), device=device)
        self.positions = positions if live is None else torch.where(live, positions, cache.length)  # the scratch position
        self._cos, self._sin = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)  # (B, 1, K)
        self._behind = positions.unsqueeze(1) - torch.arange(span, device=device)  # (B, S)
        self._biases: dict[int, Tensor] = {}

    def end(self) -> None:
        """Count the tokens in the cache."""
        self.cache.lengths += 1 if self._live is None else self._live

    def keep(self, x: Tensor) -> None:
        """Store the embeddings x (B, D) for the next step's smear."""
        self.cache.previous.copy_(x if self._live is None else torch.where(self._live.unsqueeze(1), x, self.cache.previous))

    def rotate(self, x: Tensor) -> Tensor:
        """x (B, H, K) at the rows' positions -> (B, H, K)."""
        return torch.addcmul(x * self._cos, x.roll(x.size(-1) // 2, -1), self._sin)

    def attend(self, layer: int, qk: Tensor, v: Tensor, window: int) -> Tensor:
        """Store the keys and values, and attend to all tokens of the rows: qk (B, H + G, K), v (B, G, K) -> (B, H * K)."""
        rows, groups, width = v.shape
        heads = qk.size(1) - groups
        keys, values = self.cache.keys[layer], self.cache.values[layer]  # (B, G, length + 1, K)
        keys[self.rows, :, self.positions] = qk[:, heads:].to(keys.dtype)
        values[self.rows, :, self.positions] = v.to(values.dtype)
        keys, values = (x[:, :, : self.span].flatten(0, 1).to(qk.dtype) for x in (keys, values))  # (B * G, S, K), views
        q = qk[:, :heads].reshape(rows * groups, heads // groups, width)
        bias = self._bias(window, qk.dtype).expand(-1, groups, -1).reshape(rows * groups, 1, -1)
        scores = torch.baddbmm(bias, q, keys.transpose(1, 2), alpha=width**-0.5)
        return torch.bmm(scores.softmax(-1), values).view(rows, heads * width)

    def _bias(self, window: int, dtype: torch.dtype) -> Tensor:
        """0 where a row attends to a position, -inf elsewhere: (B, 1, S)."""
        if window not in self._biases:
            hidden = (self._behind < 0) | (self._behind >= window)
            self._biases[window] = torch.zeros_like(self._behind, dtype=dtype).masked_fill_(hidden, -torch.inf).unsqueeze(1)
        return self._biases[window]


class Decoder:
    """Decoder with a copy of `model`'s current weights; `head` (V or more, D) is applied after the last norm."""

    def __init__(self, model: Transformer, head: Tensor):
        self._config, self._dtype, self._softcap = model.config, model.compute_dtype, model.softcap
        self._embed = model.embed.weight
        self._head = self._prepared(head[: model.config.vocab_size])
        cos, sin = model.cos.to(self._dtype), model.sin.to(self._dtype)
        self._cos, self._sin = torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1)  # (T, K)

    @torch.inference_mode()
    def __call__(self, ids: list[int], lengths: list[int], cache: KVCache) -> Tensor:
        """Append one token to each row of `cache`, row b having `lengths[b]` tokens, and return the logits after it (B, V)."""
        tokens, positions = to_device(torch.tensor([ids, lengths]), cache.lengths.device)
        return self.logits(tokens, positions, max(lengths) + 1, cache)

    def logits(self, tokens: Tensor, positions: Tensor, span: int, cache: KVCache, live: Tensor | None = None) -> Tensor:
        """As a call, with the ids and lengths in tensors (B,), so that a CUDA graph can hold the step: every length is below `span`.

        Rows whose `live` (B,) is false change nothing in the cache but its scratch position; their logits mean nothing.
        """
        step = _Step(tokens, positions, span, live, cache, self._cos, self._sin)
        x = self._hidden(self._embed[tokens].to(self._dtype), step)
        step.end()
        return softcapped(torch.mm(_norm(x, eps=self._config.norm_eps), self._head).float(), self._softcap)

    def _hidden(self, x: Tensor, step: _Step) -> Tensor:
        """Hidden states before the last norm, from the tokens' embeddings: (B, D) -> (B, D)."""
        raise NotImplementedError

    def _prepared(self, *weights: Tensor) -> Tensor:
        """Weights (out, in) of one product, concatenated, in the activations' type: (in, sum of the outs)."""
        cast = [weight.to(self._dtype) for weight in weights]
        return (cast[0] if len(cast) == 1 else torch.cat(cast)).t()  # not copied if it has that type already

    def _split(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """qk (B, H + G, K) and v (B, G, K) of a product (B, H * K + 2 * G * K, or more)."""
        heads, groups, width = self._config.n_head, self._config.n_kv_head, self._config.head_dim
        qk, v = product[:, : (heads + groups) * width], product[:, (heads + groups) * width : (heads + 2 * groups) * width]
        return qk.view(-1, heads + groups, width), v.view(-1, groups, width)


@dataclass(frozen=True)
class _GPTLayer:
    qkvg: Tensor  # (D, H * K + 2 * G * K + G), the gate's columns last; without them if there is no value embedding
    o: Tensor  # (H * K, D)
    fc: Tensor  # (D, M)
    proj: Tensor  # (M, D)
    table: Tensor | None  # (V, G * K) value embeddings
    window: int
    resid: float
    first: float


class GPTDecoder(Decoder):
    """Decoder for nanochat's architecture (gpt.py)."""

    @torch.inference_mode()
    def __init__(self, model: GPT):
        super().__init__(model, model.head.weight)
        scales = zip(model.resid_lambdas.tolist(), model.x0_lambdas.tolist(), strict=True)  # two copies from a GPU, not two a layer
        blocks = (block for block in model.blocks if isinstance(block, GPTBlock))
        self._layers = [self._layer(model, index, *both) for index, both in enumerate(zip(blocks, scales, strict=True))]
        self._smear = self._prepared(model.smear_gate.weight), float(model.smear_lambda)
        self._backout, self._halfway = float(model.backout_lambda), model.halfway

    def _layer(self, model: GPT, index: int, block: GPTBlock, scales: tuple[float, float]) -> _GPTLayer:
        attn, table = block.attn, None
        parts = [attn.q.weight, attn.k.weight, attn.v.weight]
        if attn.ve_gate is not None:
            gate, table = attn.ve_gate.weight, model.value_table(index)
            parts.append(F.pad(gate, (0, model.config.dim - gate.size(1))))  # the gate reads the first channels only
        return _GPTLayer(
            qkvg=self._prepared(*parts),
            o=self._prepared(attn.o.weight),
            fc=self._prepared(block.mlp.fc.weight),
            proj=self._prepared(block.mlp.proj.weight),
            table=table,
            window=attn.window,
            resid=scales[0],
            first=scales[1],
        )

    def _hidden(self, x: Tensor, step: _Step) -> Tensor:
        first = middle = x = self._smeared(_norm(x), step)
        groups = self._config.n_kv_head
        for index, layer in enumerate(self._layers):
            x = torch.add(x * layer.resid, first, alpha=layer.first)
            qkvg = torch.mm(_norm(x), layer.qkvg)
            qk, v = self._split(qkvg)
            if layer.table is not None:
                ve = layer.table[step.tokens].to(self._dtype).view_as(v)
                v = torch.addcmul(v, ve, qkvg[:, -groups:].sigmoid().unsqueeze(-1), value=3)
            qk = _norm(step.rotate(qk), QK_SCALE)
            x = torch.addmm(x, step.attend(index, qk, v, layer.window), layer.o)
            x = torch.addmm(x, torch.mm(_norm(x), layer.fc).relu_().square_(), layer.proj)
            if index == self._halfway:
                middle = x
        return torch.sub(x, middle, alpha=self._backout)

    def _smeared(self, x: Tensor, step: _Step) -> Tensor:
        """x (B, D) with the smear of the previous embedding, which is in the cache -> (B, D)."""
        gate, scale = self._smear
        smeared = torch.addcmul(x, torch.mm(x[:, :SMEAR_GATE_CHANNELS], gate).sigmoid_(), step.cache.previous, value=scale)
        step.keep(x)
        return smeared


@dataclass(frozen=True)
class _Qwen3Layer:
    qkv: Tensor  # (D, H * K + 2 * G * K)
    gains: Tensor  # (H + G, K) of the QK norm
    o: Tensor  # (H * K, D)
    gate_up: Tensor  # (D, 2 * M)
    down: Tensor  # (M, D)
    window: int


class Qwen3Decoder(Decoder):
    """Decoder for Qwen3's architecture (qwen3.py)."""

    @torch.inference_mode()
    def __init__(self, model: Qwen3):
        super().__init__(model, model.head.weight * model.norm.gain)
        self._layers = [self._layer(block) for block in model.blocks if isinstance(block, Qwen3Block)]

    def _layer(self, block: Qwen3Block) -> _Qwen3Layer:
        attn, mlp = block.attn, block.mlp
        norms = ((attn.q_norm, self._config.n_head), (attn.k_norm, self._config.n_kv_head))
        return _Qwen3Layer(
            qkv=self._prepared(*(weight * block.attn_norm.gain for weight in (attn.q.weight, attn.k.weight, attn.v.weight))),
            gains=torch.cat([norm.gain.to(self._dtype).expand(heads, -1) for norm, heads in norms]),
            o=self._prepared(attn.o.weight),
            gate_up=self._prepared(*(weight * block.mlp_norm.gain for weight in (mlp.gate.weight, mlp.up.weight))),
            down=self._prepared(mlp.down.weight),
            window=attn.window,
        )

    def _hidden(self, x: Tensor, step: _Step) -> Tensor:
        eps = self._config.norm_eps
        for index, layer in enumerate(self._layers):
            qk, v = self._split(torch.mm(_norm(x, eps=eps), layer.qkv))
            qk = step.rotate(_norm(qk, eps=eps) * layer.gains)
            x = torch.addmm(x, step.attend(index, qk, v, layer.window), layer.o)
            gate, up = torch.mm(_norm(x, eps=eps), layer.gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate) * up, layer.down)
        return x


def decoder_for(model: Transformer) -> Decoder | None:
    """A decoder with `model`'s current weights; None for a class with another forward pass."""
    if type(model) is GPT:
        return GPTDecoder(model)
    if type(model) is Qwen3:
        return Qwen3Decoder(model)
    return None


def _norm(x: Tensor, gain: float = 1.0, eps: float = RMS_EPS) -> Tensor:
    """RMSNorm over the last axis, times `gain`. An imported model's larger `eps` matters; the default is below any rounding."""
    width = x.size(-1)
    if x.device.type == "cuda" or eps != RMS_EPS:
        return F.rms_norm(x, (width,), None, eps) * gain
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).add_(TINY)  # faster: torch's rms_norm is seven operations on a CPU
    return x.div(length).mul_(gain * width**0.5)

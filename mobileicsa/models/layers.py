"""The modules a decoder is built of: linear, norm, attention, MLP, each with its edges.

Fused: a norm and a softmax are one float region between encoded borders (host CPU).
Primitive: they are sums, products, exp, rsqrt, reciprocal whose every border has an edge (integer-only compilers).
Both compute the same function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.edge import Edge
from mobileicsa.models.product import linear

# Below this distance from the row's maximum, exp is under half a step of a 16-bit probability (e**-20 < 2**-28).
SOFTMAX_FLOOR = -20.0


class Linear(nn.Module):
    """y = x W^T + b, x (..., in), W (out, in). `role` is that of the output; None leaves it to the caller's edge."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, role: str | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        if role is not None:
            self.out = Edge(role)
        self.has_out = role is not None

    def effective_weight(self) -> Tensor:
        """The real-valued weight used by forward; a frozen linear dequantises its integers here."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.effective_weight(), self.bias)
        return self.out(y) if self.has_out else y


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension with gain (and bias); `heads` gives each head its own gain."""

    inverse_size: Tensor
    epsilon: Tensor

    def __init__(
        self, spec: ModelSpec, size: int, role: str, *, primitive: bool, bias: bool = False, heads: int | None = None
    ) -> None:
        super().__init__()
        self.kind = spec.norm
        self.eps = spec.norm_eps
        self.size = size
        self.primitive = primitive
        shape = (size,) if heads is None else (heads, size)
        self.weight = nn.Parameter(torch.empty(shape), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(size), requires_grad=False) if bias else None
        self.gain = Edge("constant")
        if bias:
            self.shift = Edge("constant")
        if primitive:
            self.register_buffer("inverse_size", torch.tensor(1.0 / size), persistent=False)
            self.register_buffer("epsilon", torch.tensor(float(self.eps)), persistent=False)
            self.inverse_size_edge, self.epsilon_edge = Edge("constant"), Edge("constant")
            self.square, self.total, self.mean_square = Edge("internal"), Edge("internal"), Edge("internal")
            self.shifted, self.root, self.rsqrt = Edge("internal"), Edge("internal"), Edge("internal")
            self.normed = Edge("internal")
            if self.kind == "layer":
                self.sum, self.mean, self.centered = Edge("internal"), Edge("internal"), Edge("internal")
            if bias:
                self.scaled = Edge("internal")
        self.out = Edge(role)

    def _mean(self, x: Tensor, total: Edge) -> Tensor:
        # A sum times a quantised constant: `mean` would leave a float constant inside a decomposition.
        return total(x.sum(-1, keepdim=True)) * self.inverse_size_edge(self.inverse_size)

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain(self.weight)
        if self.primitive:
            if self.kind == "layer":
                x = self.centered(x - self.mean(self._mean(x, self.sum)))
            mean_square = self.mean_square(self._mean(self.square(x * x), self.total))
            # Not `rsqrt`, which ONNX has only as two operators without an encoding between them.
            root = self.root(torch.sqrt(self.shifted(mean_square + self.epsilon_edge(self.epsilon))))
            y = self.normed(x * self.rsqrt(torch.reciprocal(root))) * gain
            if self.bias is not None:
                y = self.scaled(y)
        else:
            if self.kind == "layer":
                x = x - x.mean(-1, keepdim=True)
            y = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * gain
        if self.bias is not None:
            y = y + self.shift(self.bias)
        return self.out(y)


class SoftCap(nn.Module):
    """c * tanh(x / c) (Gemma 2)."""

    inverse_cap: Tensor
    cap_value: Tensor

    def __init__(self, cap: float, *, primitive: bool) -> None:
        super().__init__()
        self.cap = cap
        self.primitive = primitive
        if primitive:
            self.register_buffer("inverse_cap", torch.tensor(1.0 / cap), persistent=False)
            self.register_buffer("cap_value", torch.tensor(float(cap)), persistent=False)
            self.inverse_cap_edge, self.cap_edge = Edge("constant"), Edge("constant")
            self.raw, self.scaled = Edge("internal"), Edge("internal")
            self.tanh = Edge("internal", fixed=(-1.0, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        if not self.primitive:
            return torch.tanh(x / self.cap) * self.cap
        scaled = self.scaled(self.raw(x) * self.inverse_cap_edge(self.inverse_cap))
        return self.tanh(torch.tanh(scaled)) * self.cap_edge(self.cap_value)


class Rope(nn.Module):
    """Rotate the first 2n dimensions of each head by position; x (B, heads, T, head_dim).

    `cos`, `sin` are (T, 2n) or (B, 1, T, 2n); the sign of rotate_half is folded in the first half of `sin`.
    """

    def __init__(self, *, primitive: bool) -> None:
        super().__init__()
        self.primitive = primitive
        if primitive:
            self.cos_product, self.sin_product = Edge("internal"), Edge("internal")

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = rope
        rotated = cos.shape[-1]
        head = x[..., :rotated]
        swapped = torch.cat((head[..., rotated // 2 :], head[..., : rotated // 2]), dim=-1)
        a, b = head * cos, swapped * sin
        if self.primitive:
            a, b = self.cos_product(a), self.sin_product(b)
        y = a + b
        return y if rotated == x.shape[-1] else torch.cat((y, x[..., rotated:]), dim=-1)


class Softmax(nn.Module):
    """Softmax over the last dimension of scores + mask."""

    def __init__(self, *, primitive: bool) -> None:
        super().__init__()
        self.primitive = primitive
        if primitive:
            # Masked scores saturate SOFTMAX_FLOOR below every score; saturation at the floor then makes them exactly 0.
            self.masked, self.maximum = Edge("derived"), Edge("derived")
            self.shifted = Edge("internal", fixed=(SOFTMAX_FLOOR, 0.0))
            self.exp = Edge("internal", fixed=(0.0, 1.0))
            self.sum = Edge("internal")
            self.reciprocal = Edge("internal", fixed=(0.0, 1.0))
        self.out = Edge("probs", fixed=(0.0, 1.0))

    def forward(self, scores: Tensor, mask: Tensor) -> Tensor:
        if not self.primitive:
            return self.out(torch.softmax(scores + mask, dim=-1))
        x = self.masked(scores + mask)
        e = self.exp(torch.exp(self.shifted(x - self.maximum(x.amax(dim=-1, keepdim=True)))))
        return self.out(e * self.reciprocal(torch.reciprocal(self.sum(e.sum(dim=-1, keepdim=True)))))


class Attention(nn.Module):
    """Grouped-query attention over an optional static cache.

    x (B, T, hidden); past keys and values (B, kv_heads, C, head_dim) as `store` made them.
    Weights hold the attention scale already (see `fold_attention_scale`).
    """

    def __init__(self, spec: ModelSpec, rope: int | None, *, primitive: bool) -> None:
        super().__init__()
        self.spec, self.rope_index, self.primitive = spec, rope, primitive
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        rotates, normed = rope is not None, spec.qk_norm is not None
        self.q_proj = Linear(spec.hidden_size, q_size, bias=spec.qkv_bias, role="qkv" if rotates or normed else None)
        self.k_proj = Linear(spec.hidden_size, kv_size, bias=spec.qkv_bias, role="qkv" if rotates or normed else None)
        self.v_proj = Linear(spec.hidden_size, kv_size, bias=spec.qkv_bias, role=None)
        self.o_proj = Linear(q_size, spec.hidden_size, bias=spec.o_bias, role="branch")
        if normed:
            q_width, k_width = (q_size, kv_size) if spec.qk_norm == "full" else (spec.head_dim, spec.head_dim)
            own = spec.qk_norm == "per_head"
            self.q_norm = Norm(spec, q_width, "qkv", primitive=primitive, heads=spec.num_heads if own else None)
            self.k_norm = Norm(spec, k_width, "qkv", primitive=primitive, heads=spec.num_kv_heads if own else None)
        if rotates:
            self.q_rope, self.k_rope = Rope(primitive=primitive), Rope(primitive=primitive)
        self.q_out, self.k_out, self.v_out = Edge("qkv"), Edge("kv"), Edge("kv")
        self.softcap = SoftCap(spec.attention_softcap, primitive=primitive) if spec.attention_softcap else None
        self.scores = Edge("scores")
        self.softmax = Softmax(primitive=primitive)
        self.out = Edge("attention_out")

    def _heads(self, x: Tensor, projection: nn.Module, norm: str, heads: int) -> Tensor:
        y: Tensor = projection(x)
        if self.spec.qk_norm == "full":
            y = getattr(self, norm)(y)
        y = y.view(x.shape[0], x.shape[1], heads, self.spec.head_dim)
        if self.spec.qk_norm in ("head", "per_head"):
            y = getattr(self, norm)(y)
        return y.transpose(1, 2)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output (B, T, hidden) and this call's stored keys and values (B, kv_heads, T, head_dim).

        mask (T, S) or (B, 1, T, S); where not primitive also once for each query head of a group: (group * T, S).
        `rope`: tables (T, 2n) or (B, 1, T, 2n).
        """
        spec, batch, length = self.spec, x.shape[0], x.shape[1]
        q = self._heads(x, self.q_proj, "q_norm", spec.num_heads)
        k = self._heads(x, self.k_proj, "k_norm", spec.num_kv_heads)
        v = self.v_proj(x).view(batch, length, spec.num_kv_heads, spec.head_dim).transpose(1, 2)
        if rope is not None:
            q, k = self.q_rope(q, rope), self.k_rope(k, rope)
        q = self.q_out(q)
        new_k, new_v = self.k_out.store(k), self.v_out.store(v)
        all_k = new_k if past is None else torch.cat((past[0], new_k), dim=2)
        all_v = new_v if past is None else torch.cat((past[1], new_v), dim=2)
        keys, values = self.k_out.load(all_k), self.v_out.load(all_v)
        # Query heads of one group share their keys: fold them in the row dimension instead of repeating keys.
        group = spec.num_heads // spec.num_kv_heads
        folded = q.reshape(batch, spec.num_kv_heads, group * length, spec.head_dim)
        scores = torch.matmul(folded, keys.transpose(2, 3))
        if self.primitive:
            # Compilers for NPUs know attention by its heads; elsewhere a reshape would only fix the number of keys.
            scores = scores.view(batch, spec.num_heads, length, keys.shape[2])
        elif length > 1 and mask.shape[-2] == length:
            mask = mask.repeat(*[1] * (mask.dim() - 2), group, 1)
        probs = self.softmax(self.scores(scores if self.softcap is None else self.softcap(scores)), mask)
        if self.primitive:
            probs = probs.reshape(batch, spec.num_kv_heads, group * length, keys.shape[2])
        mixed = torch.matmul(probs, values)
        mixed = mixed.view(batch, spec.num_heads, length, spec.head_dim).transpose(1, 2)
        return self.o_proj(self.out(mixed.reshape(batch, length, -1))), new_k, new_v


class Activation(nn.Module):
    """SiLU as x * sigmoid(x) (primitive: sigmoid has its own edge), or GELU."""

    def __init__(self, kind: str, *, primitive: bool) -> None:
        super().__init__()
        self.kind, self.primitive = kind, primitive
        if primitive and kind == "silu":
            self.sigmoid = Edge("sigmoid", fixed=(0.0, 1.0))
        self.out = Edge("mlp")

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "silu":
            gate = torch.sigmoid(x)
            return self.out(x * (self.sigmoid(gate) if self.primitive else gate))
        return self.out(F.gelu(x, approximate="tanh" if self.kind == "gelu_tanh" else "none"))


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, spec: ModelSpec, *, primitive: bool) -> None:
        super().__init__()
        hidden, inner = spec.hidden_size, spec.intermediate_size
        self.gate_proj = Linear(hidden, inner, bias=spec.mlp_bias, role="mlp")
        self.up_proj = Linear(hidden, inner, bias=spec.mlp_bias, role="mlp")
        self.activation = Activation(spec.activation, primitive=primitive)
        self.product = Edge("down_in")
        self.down_proj = Linear(inner, hidden, bias=spec.mlp_bias, role="branch")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self.product(self.activation(self.gate_proj(x)) * self.up_proj(x)))
        return y

"""The student's modules: edges, gains and linears that round in their forward pass exactly as they will be exported.

Passes with gradients are cheaper: products in bfloat16 where that is fast, and no rounding of 16-bit edges.
"""

from __future__ import annotations

from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobileicsa.core.encoding import MIN_SCALE, TensorEncoding, activation
from mobileicsa.core.errors import SchemeError
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.models.edge import Edge
from mobileicsa.models.layers import Linear
from mobileicsa.models.product import linear
from mobileicsa.quantize.equivalent_math import SCALE_CEILING, SCALE_FLOOR
from mobileicsa.quantize.grid_math import Grid, activation_grid
from mobileicsa.quantize.learn_math import (
    exported_scale,
    immediate,
    on_grid,
    product_dtype,
    round_codes,
    scaled_product,
)
from mobileicsa.quantize.rounding import Rounded, least_scale

# sigmoid(4) = 0.982: where MobileQuant's weight clipping starts.
CLIP_START = 4.0
# A latent weight starts at most so many steps from its code's middle: nearer to a border, noise alone would undo
# what error feedback chose (0.49 was worse on held-out text than no learning at all).
LATENT_OFFSET = 0.25


class ChannelScale(nn.Module):
    """exp(log)[index] ** sign: one positive factor per channel; tied channels share an entry of `log`."""

    index: Tensor

    def __init__(self, log: nn.Parameter, index: Tensor, *, sign: float = 1.0) -> None:
        super().__init__()
        self.log, self.sign = log, sign
        self.register_buffer("index", index, persistent=False)

    def forward(self) -> Tensor:
        return (self.log.exp().clamp(SCALE_FLOOR, SCALE_CEILING) ** self.sign)[self.index]


class NoiseMeter:
    """Energy of an edge's values, and of what rounding adds to them."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, x: Tensor, rounded: Tensor) -> None:
        values = x.double()
        self.signal += float(values.square().sum())
        self.noise += float((rounded.double() - values).square().sum())


class RangeEdge(Edge):
    """Edge that rounds to the grid of a range whose ends move in proportion: low * exp(a), high * exp(b)."""

    def __init__(self, edge: Edge, encoding: TensorEncoding, mantissa_bits: int | None, *, learns: bool) -> None:
        super().__init__(edge.role, edge.fixed)
        self.start, self.mantissa_bits, self.learns = encoding, mantissa_bits, learns
        self.log = nn.Parameter(torch.zeros(2), requires_grad=learns)
        self.meter: NoiseMeter | None = None

    def encoding(self) -> TensorEncoding:
        if not self.learns:
            return self.start
        (low, high), (a, b) = self.start.real_range(), self.log.detach().exp().tolist()
        return activation(low * a, high * b, self.start.bits, self.mantissa_bits)

    def grid(self, factors: Tensor) -> Grid:
        """That of `encoding`, made where the ends are; not finite where an end is not."""
        if not self.learns:
            return Grid.of(self.start)
        if immediate(factors.device):  # scalars as tensors take far longer
            with suppress(SchemeError):
                return Grid.of(self.encoding())
        low, high = (end * factor for end, factor in zip(self.start.real_range(), factors.double(), strict=True))
        return activation_grid(low, high, self.start.bits, self.mantissa_bits)

    def store(self, x: Tensor) -> Tensor:
        if self.start.bits == 16 and torch.is_grad_enabled():
            return x  # its rounding is lost in that of 8 bits; what is judged has it
        low, high = self.start.real_range()
        factors = self.log.exp()
        y = on_grid(x, factors[0] * low, factors[1] * high, self.grid(factors.detach()))
        if self.meter is not None:
            self.meter.add(x, y)
        return y


class GainEdge(Edge):
    """Edge of a norm's gain or bias: divided by the norm's equivalent scaling, on the grid of its own extremes."""

    def __init__(self, edge: Edge) -> None:
        super().__init__(edge.role, edge.fixed)
        self.scaling: ChannelScale | None = None

    def value(self, x: Tensor) -> Tensor:
        return x if self.scaling is None else x / self.scaling()

    def encoding(self, x: Tensor) -> TensorEncoding:
        return activation(float(x.min()), float(x.max()), 16)

    def store(self, x: Tensor) -> Tensor:
        value = self.value(x)
        low, high = torch.aminmax(value.detach())
        return on_grid(value, low, high, activation_grid(low.double(), high.double(), 16))


class StudentLinear(Linear):
    """Linear with a weight that is rounded in the forward pass, in one of three ways (see `Learning.weights`).

    `weight` (out, in) is real-valued for "clip"; for "scale" and "latent" it is in steps of its grid, whose scale is
    start * exp(log_scale). Whole steps ("scale") are kept as a CPU's products take them: bfloat16 holds 8 bits exactly.
    """

    start: Tensor

    def __init__(self, linear: Linear, rounded: Rounded, real: Tensor, encoding: WeightEncoding, mode: str) -> None:
        nn.Module.__init__(self)
        self.has_out, self.bias, self.encoding, self.mode = linear.has_out, linear.bias, encoding, mode
        if linear.has_out:
            self.out = linear.out
        self.columns: ChannelScale | None = None
        self.rows: ChannelScale | None = None
        integers, scale = rounded
        if mode == "clip":
            self.weight = nn.Parameter(real.clone(), requires_grad=False)
            self.clip = nn.Parameter(torch.full_like(scale, CLIP_START))
            return
        self.register_buffer("start", scale, persistent=False)
        self.log_scale = nn.Parameter(torch.zeros_like(scale))
        codes = integers.to(real.dtype)
        if mode == "latent":
            # Inside of the code that rounding chose, as near to the real weight as that allows.
            codes += (real / scale[:, None] - codes).clamp_(-LATENT_OFFSET, LATENT_OFFSET)
        elif real.is_floating_point():  # else nothing learns, and the integers are the plan's own
            codes = codes.to(product_dtype(codes.device))
        self.weight = nn.Parameter(codes, requires_grad=mode == "latent")

    def rounded(self) -> Rounded:
        """Codes (out, in) and scales (out,) as they will be stored, differentiable."""
        w: Tensor = self.weight if self.columns is None else self.weight * self.columns()
        limits = (self.encoding.qmin, self.encoding.qmax)
        if self.mode == "clip":
            w = w if self.rows is None else w / self.rows()[:, None]
            full = least_scale(w, self.encoding).clamp(min=MIN_SCALE)
            scale = exported_scale(torch.sigmoid(self.clip) * full)
            return round_codes(w / scale[:, None], *limits, clips=True), scale
        scale = self.start * self.log_scale.exp()
        scale = exported_scale(scale if self.rows is None else scale / self.rows())
        return (w if self.mode == "scale" else round_codes(w, *limits, clips=False)), scale

    @torch.no_grad()
    def real(self) -> Tensor:
        """The real-valued weight (out, in) behind the codes, equivalent scalings applied."""
        w = self.weight if self.columns is None else self.weight * self.columns()
        if self.mode != "clip":
            return w * self.rounded()[1][:, None]
        return w.clone() if self.rows is None else w / self.rows()[:, None]

    @torch.no_grad()
    def factors(self) -> dict[str, Tensor]:
        """What the equivalent scalings multiply the weight by: its columns `in`, its rows `out`."""
        found = {} if self.columns is None else {"in": self.columns()}
        return found if self.rows is None else {**found, "out": 1.0 / self.rows()}

    def effective_bias(self) -> Tensor | None:
        bias: Tensor | None = self.bias
        if bias is None or self.rows is None:
            return bias
        divided: Tensor = bias / self.rows()
        return divided

    def forward(self, x: Tensor) -> Tensor:
        codes, scale = self.rounded()
        if torch.is_grad_enabled():
            y = scaled_product(x, codes, scale, product_dtype(x.device))
        else:  # what is judged, or goes on to the next block, is computed in full
            y = linear(x, codes * scale[:, None])
        bias = self.effective_bias()
        y = y if bias is None else y + bias
        return self.out(y) if self.has_out else y


class FixedLinear(Linear):
    """Linear of the student whose weight (out, in), in real values, does not learn."""

    def __init__(self, linear: Linear, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)
        self.has_out, self.weight, self.bias = linear.has_out, weight, bias
        if linear.has_out:
            self.out = linear.out

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        dtype = product_dtype(x.device)
        y = F.linear(x.to(dtype), self.weight.to(dtype)).to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return self.out(y) if self.has_out else y

"""Programs of one operator between integer borders, with the encodings that the frozen program gives such operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mobileicsa.core.encoding import TensorEncoding, activation, symmetric
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.models.edge import Edge
from mobileicsa.models.layers import Linear
from mobileicsa.program.qdq import INTEGER_DTYPES, ExactProduct, QdqEdge, QuantLinear

ROWS, WIDTH, OUTPUTS = 16, 64, 48
SEED = 29


@dataclass(frozen=True)
class Operand:
    """A real-valued input: its range, bits and shape. 16 bits have scales that are powers of two."""

    bits: int
    low: float = -4.0
    high: float = 3.0
    shape: tuple[int, ...] = (1, ROWS, WIDTH)

    @property
    def encoding(self) -> TensorEncoding:
        return activation(self.low, self.high, self.bits, 0 if self.bits == 16 else 6)

    def codes(self, generator: torch.Generator) -> Tensor:
        """Every real value of the range as likely as another, both ends among them."""
        e = self.encoding
        ends = [round(end / e.scale[0]) + e.zero_point[0] for end in (self.low, self.high)]
        low, high = (min(max(end, e.qmin), e.qmax) for end in ends)
        codes = torch.randint(low, high + 1, self.shape, generator=generator)
        codes.view(-1)[0], codes.view(-1)[1] = low, high
        return codes.to(INTEGER_DTYPES[self.bits])


Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Operator:
    """`function` of the dequantised operands, or a linear of `weight_bits`; the output gets `bits`."""

    name: str
    operands: tuple[Operand, ...]
    bits: int
    function: Function | None = None
    weight_bits: int = 0


def _heads(bits: int, width: int = WIDTH, rows: int = ROWS, low: float = -4.0, high: float = 3.0) -> Operand:
    return Operand(bits, low, high, (1, 4, rows, width))


A8, A16 = Operand(8), Operand(16)
POSITIVE = Operand(16, 0.01, 4.0)
OPERATORS = (
    *(
        Operator(f"linear a{a}w{w} → {out}", (Operand(a),), out, weight_bits=w)
        for a, w, out in ((8, 8, 8), (8, 8, 16), (8, 4, 8), (8, 4, 16), (16, 8, 16), (16, 4, 16))
    ),
    Operator("product q·k → 16", (_heads(8), _heads(8, rows=WIDTH // 2)), 16, lambda q, k: q @ k.transpose(-1, -2)),
    Operator("product probs·v → 8", (_heads(16, low=0.0, high=1.0), _heads(8, rows=WIDTH)), 8, torch.matmul),
    Operator("add 16", (A16, A16), 16, torch.add),
    Operator("subtract 16", (A16, Operand(16, 0.0, 4.0, (1, ROWS, 1))), 16, torch.sub),
    Operator("multiply 16", (A16, A16), 16, torch.mul),
    Operator("multiply 8 → 8", (A8, A8), 8, torch.mul),
    Operator("multiply 8·16 → 16", (A8, Operand(16, -1.0, 1.0)), 16, torch.mul),
    Operator("square 16", (A16,), 16, lambda x: x * x),
    Operator("sum 16", (A16,), 16, lambda x: x.sum(-1, keepdim=True)),
    Operator("maximum 16", (A16,), 16, lambda x: x.amax(-1, keepdim=True)),
    Operator("exp 16", (Operand(16, -20.0, 0.0),), 16, torch.exp),
    Operator("square root 16", (POSITIVE,), 16, torch.sqrt),
    Operator("reciprocal 16", (POSITIVE,), 16, torch.reciprocal),
    Operator("sigmoid 8", (Operand(8, -8.0, 7.0),), 8, torch.sigmoid),
    Operator("tanh 16", (A16,), 16, torch.tanh),
    Operator("requantise 16 → 8", (A16,), 8, lambda x: x),
    Operator("requantise 8 → 16", (A8,), 16, lambda x: x),
    Operator("transpose, slice, join 8", (_heads(8),), 8, lambda x: _rotate(x).transpose(1, 2)),
)


def _rotate(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((x[..., half:], x[..., :half]), dim=-1)


class OneOperator(nn.Module):
    """Integers in, integers out; calibrated on its own seeded inputs."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(SEED)
        self.operator = operator
        self.codes = tuple(operand.codes(generator) for operand in operator.operands)
        self.edges = [QdqEdge(Edge("internal"), operand.encoding) for operand in operator.operands]
        self.inputs = nn.ModuleList(self.edges)
        if operator.function is None:
            self.linear = _linear(operator.weight_bits, generator)
        real = self._compute([edge.load(codes) for edge, codes in zip(self.edges, self.codes, strict=True)])
        encoding = activation(float(real.min()), float(real.max()), operator.bits, 0 if operator.bits == 16 else 6)
        self.out = QdqEdge(Edge("internal"), encoding)

    def _compute(self, values: Sequence[Tensor]) -> Tensor:
        if self.operator.function is None:
            y: Tensor = self.linear(values[0])
            return y
        return self.operator.function(*values)

    def forward(self, *codes: Tensor) -> Tensor:
        return self.out.store(self._compute([edge.load(c) for edge, c in zip(self.edges, codes, strict=True)]))

    @torch.no_grad()
    def simulated(self) -> Tensor:
        """As the simulator computes: integer sums, float64 between edges."""
        edges = (*self.edges, self.out)
        for edge in edges:
            edge.eager = True
        if self.operator.function is None:
            self.linear.exact = ExactProduct(self.linear, self.edges[0].encoding.scale[0])
        found: Tensor = self(*self.codes)
        for edge in edges:
            edge.eager = False
        if self.operator.function is None:
            self.linear.exact = None
        return found


def _linear(bits: int, generator: torch.Generator) -> QuantLinear:
    kind = WeightEncoding(bits=bits)
    real = torch.randn((OUTPUTS, WIDTH), generator=generator)
    encoding = symmetric(real.abs().amax(1).tolist(), bits, axis=0)
    scale = torch.tensor(encoding.scale)
    codes = (real / scale[:, None]).round().clamp(kind.qmin, kind.qmax).to(torch.int8)
    linear = QuantLinear(Linear(WIDTH, OUTPUTS, bias=False, role="branch"), codes, scale, kind)
    linear.has_out = False
    del linear.out
    return linear

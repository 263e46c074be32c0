"""Edges: the named places of a decoder where a tensor gets an encoding.

The decoder is written once. An `Edge` passes its tensor through; calibration, learning and freezing
replace edges by modules that observe, fake-quantise or quantise (see `replace_edges`), so the float
model, the calibrator, the simulator and the exported program are one definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

# role -> what the tensor is; a scheme gives each role its bits (core/scheme.py).
ROLES = (
    "residual",  # the stream between blocks = norm input
    "branch",  # o_proj and down_proj outputs, summands of the residual
    "norm_out",  # input of q/k/v and gate/up
    "head_in",  # final norm's output
    "qkv",  # q, k, v projections, before and after RoPE
    "kv",  # what the cache keeps
    "scores",  # softmax input
    "probs",  # softmax output
    "attention_out",  # o_proj input
    "mlp",  # gate, up, activation outputs
    "down_in",  # gate * up product
    "logits",
    "sigmoid",  # fixed range [0, 1]
    "internal",  # inside norm, softmax, RoPE: encoded only where the target wants primitive ops
    "constant",  # norm gains and other numbers of the graph
    "derived",  # follows from other edges, weights or the spec (quantize/derived.py); primitive programs only
)


class Edge(nn.Module):
    """Identity on a tensor of any shape; `role` picks its bits, `fixed` its range if known beforehand.

    `store` gives what a cache keeps (integers once quantised), `load` the real values back;
    calling the edge is `load(store(x))`.
    """

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, role: str, fixed: tuple[float, float] | None = None) -> None:
        super().__init__()
        if role not in ROLES:
            raise ValueError(f"unknown edge role {role!r}")
        self.role = role
        self.fixed = fixed

    def forward(self, x: Tensor) -> Tensor:
        return self.load(self.store(x))

    def store(self, x: Tensor) -> Tensor:
        return x

    def load(self, x: Tensor) -> Tensor:
        return x


def named_edges(model: nn.Module) -> Iterator[tuple[str, Edge]]:
    """Every edge with its dotted path, in the order of definition."""
    for name, module in model.named_modules():
        if isinstance(module, Edge):
            yield name, module


def replace_edges(model: nn.Module, make: Callable[[str, Edge], Edge]) -> None:
    """Put `make(path, edge)` in the place of every edge, in place."""
    for name, edge in list(named_edges(model)):
        parent_path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent_path), attribute, make(name, edge))

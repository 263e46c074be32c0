"""The simulator: the eager run of the frozen program, the reference that every back end is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobileicsa.core.target import Target
from mobileicsa.models.branches import branch_logits
from mobileicsa.models.decoder import Decoder, LayerCache
from mobileicsa.program.adapters import PlanAdapter, padded, use
from mobileicsa.program.backend import Array, IntArray
from mobileicsa.program.methods import Method, method_lengths
from mobileicsa.program.qdq import ExactProduct, QdqEdge, QuantLinear
from mobileicsa.program.reads import input_scale

# Tokens of one pass over a sequence: attention scores and logits of a long one are never whole in memory.
PASS_TOKENS = 256


def prepare_for_eager(decoder: Decoder) -> None:
    """Integer sums in every linear, as integer kernels have them, and edges rounded without integer tensors."""
    for block in (*decoder.layers, decoder.head):
        for name, module in block.named_modules():
            if isinstance(module, QuantLinear):
                module.exact = ExactProduct(module, input_scale(block, name))
    for module in decoder.modules():
        if isinstance(module, QdqEdge):
            module.eager = True


class SimulatorSession:
    """A `Session` over a frozen (or float) decoder in eager mode."""

    any_rows = True

    def __init__(self, decoder: Decoder, target: Target) -> None:
        if any(isinstance(module, QuantLinear) for module in decoder.modules()):
            prepare_for_eager(decoder)
        self.decoder = decoder
        self.methods = {
            name: Method(decoder, length=length, context=target.context).eval()
            for name, length in method_lengths(target).items()
        }

    @torch.no_grad()
    def run(
        self, method: str, token_ids: IntArray, position: int, cache: Sequence[Array]
    ) -> tuple[NDArray[np.float32], list[Array]]:
        past = [torch.from_numpy(rows) for rows in cache]
        logits, *rows = self.methods[method](torch.from_numpy(token_ids), torch.tensor([position]), *past)
        return logits.to(torch.float32).numpy(), [row.numpy() for row in rows]

    @torch.no_grad()
    def branch_logits(
        self, context: Sequence[int], branches: Sequence[Sequence[int]], prefix: list[LayerCache] | None
    ) -> list[Tensor]:
        """As `models.branches.branch_logits`, float32: what `sequence_logits` gives for each branch."""
        return [rows.to(torch.float32) for rows in branch_logits(self.decoder, context, branches, prefix)]

    def use_adapter(self, adapter: PlanAdapter | None) -> None:
        use(self.decoder, None if adapter is None else padded(adapter, self.decoder))

    def close(self) -> None:
        self.methods = {}


@torch.no_grad()
def sequence_logits(decoder: Decoder, ids: Sequence[int], past: list[LayerCache] | None) -> Iterator[Tensor]:
    """Logits (n, vocab) float32 behind each of `ids`, which follow `past`, in pieces of PASS_TOKENS rows.

    Not through the methods' static cache: its length is no limit, and short windows take one pass.
    """
    for start in range(0, len(ids), PASS_TOKENS):
        logits, new = decoder(torch.tensor([ids[start : start + PASS_TOKENS]]), past)
        past = new if past is None else [_joined(*layers) for layers in zip(past, new, strict=True)]
        yield logits[0].to(torch.float32)


def _joined(past: LayerCache, new: LayerCache) -> LayerCache:
    return torch.cat((past[0], new[0]), dim=2), torch.cat((past[1], new[1]), dim=2)

"""What rounding activations costs, before anything is rounded: expected KL to the float model by gradients.

With a rounding error e added to a tensor, KL is about half of sum_i E[(g_i e_i)^2], where g is the gradient of log
p(token) for tokens drawn from the model's own prediction: the diagonal of the Fisher information, of outputs (as K-FAC,
arXiv 1503.05671). Error and gradient are multiplied element by element: most elements of a heavy-tailed tensor lie
within half a step of 0, where their error is no more than they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mobileicsa.calibrate.statistics import EdgeStatistics, fake_quantize
from mobileicsa.calibrate.stream import BATCH
from mobileicsa.core.encoding import activation
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.models.decoder import Decoder, LayerCache
from mobileicsa.models.edge import Edge, replace_edges
from mobileicsa.quantize.learn_math import next_token_loss

SHRINKS = (1.0, 0.8, 0.65, 0.5)


class _SensedEdge(Edge):
    """Passes its tensor through; `loss` sums (g e)^2 over the elements of a backward pass, 0 where `bits` is None."""

    def __init__(self, name: str, edge: Edge, bits: int | None) -> None:
        super().__init__(edge.role, edge.fixed)
        self.name, self.bits = name, bits
        self.loss = 0.0

    def store(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return x
        # A tensor of its own: the gradient of what reads this edge alone. The first edge is where gradients end.
        y = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        if self.bits is not None:
            error = self._error(y.detach(), self.bits)
            y.register_hook(lambda gradient: self._add(gradient, error))  # type: ignore[no-untyped-call]
        return y

    def _error(self, x: Tensor, bits: int) -> Tensor:
        """Of rounding to a grid over the range, shrunk to the least squared error unless it is known beforehand."""
        if self.fixed is not None:
            return fake_quantize(x, activation(*self.fixed, bits)) - x
        statistics = EdgeStatistics()
        statistics.update(x, 1, self.name)
        return fake_quantize(x, statistics.least_error(bits, None, SHRINKS)) - x

    def _add(self, gradient: Tensor, error: Tensor) -> None:
        self.loss += float((gradient * error).square().sum())


class SensedModel:
    """The float model with every 8-bit edge of a scheme sensed; windows and generators are of its `device`.

    Memory: the model and one window's backward pass.
    """

    def __init__(self, model: Decoder, scheme: QuantScheme) -> None:
        self.model = model
        self._edges: list[_SensedEdge] = []

        def sense(name: str, edge: Edge) -> Edge:
            eight = scheme.bits(edge.role) == 8
            if name != "embed.out" and not eight:
                return edge
            self._edges.append(_SensedEdge(name, edge, 8 if eight else None))
            return self._edges[-1]

        replace_edges(model, sense)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def past(self, prefix: tuple[int, ...]) -> list[LayerCache] | None:
        """The prefix's K/V, a layer each; None without a prefix."""
        return self.model(torch.tensor([prefix]).to(self.device))[1] if prefix else None

    @torch.no_grad()
    def next_losses(self, windows: Tensor, past: list[LayerCache] | None) -> list[float]:
        """Loss of the next token, nats, mean over each window of token ids (N, T) behind a prefix's K/V; 0 where T is
        1."""
        if windows.shape[1] == 1:
            return [0.0] * len(windows)
        losses = list[float]()
        for batch in torch.split(windows, BATCH):
            rows = (len(batch), -1, -1, -1)
            expanded = None if past is None else [(k.expand(rows), v.expand(rows)) for k, v in past]
            logits, _ = self.model(batch, expanded)
            losses += [next_token_loss(*pair) for pair in zip(logits, batch, strict=True)]
        return losses

    def edge_loss(self, window: Tensor, past: list[LayerCache] | None, generator: torch.Generator) -> float:
        """Expected KL, nats a token, of rounding every 8-bit edge to a grid over its least-error range in a window
        (T,) of token ids behind a prefix's K/V."""
        return sum(self.edge_losses(window, past, generator).values())

    def edge_losses(
        self, window: Tensor, past: list[LayerCache] | None, generator: torch.Generator
    ) -> dict[str, float]:
        """The parts of `edge_loss`, by edge."""
        for edge in self._edges:
            edge.loss = 0.0
        draw_backward(self.model, window, past, generator)
        return {edge.name: 0.5 * edge.loss / len(window) for edge in self._edges if edge.bits is not None}


def draw_backward(model: Decoder, window: Tensor, past: list[LayerCache] | None, generator: torch.Generator) -> None:
    """A window (T,) of token ids behind a prefix's K/V forward, and the gradient of log p(token) back: summed over
    positions, tokens drawn from the model's own prediction."""
    with torch.enable_grad():
        logits = model(window[None], past)[0][0]
    probabilities = torch.softmax(logits.detach(), dim=-1)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    logits.backward(probabilities.neg_().scatter_add_(1, drawn, torch.ones_like(drawn, dtype=logits.dtype)))

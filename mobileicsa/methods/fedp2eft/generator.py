"""The personalisation-strategy generator: statistics of a client's data become one scale for each LoRA rank.

After FedP2EFT (arXiv 2502.04387): an MLP in → 2·in → out with PReLU, its output clamped to `SCALE_RANGE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mobileicsa.calibrate.inputs import InputMoments

SCALE_RANGE = (1e-4, 1000.0)
START_GAIN, START_BIAS = 1e-6, 1e-4
# Clients of texts unlike any seen one lie far outside; a feature is cut off at so many deviations.
MOST_DEVIATIONS = 5.0
VARIANCE_EPSILON, LEAST_SPREAD = 1e-5, 1e-6


def clamp_through(x: Tensor, low: float = SCALE_RANGE[0], high: float = SCALE_RANGE[1]) -> Tensor:
    """x clamped, its gradient as if it were not: what lies outside may still come back."""
    return x + (x.clamp(low, high) - x).detach()


def features(moments: Sequence[InputMoments]) -> Tensor:
    """(2 · linears,) float32: the mean and the deviation of what every linear of the base reads.

    Compressed by asinh, unlike in the paper: the down projections of some decoders read thousands at one token.
    """
    means = [moment.mean for moment in moments]
    deviations = [moment.deviation(VARIANCE_EPSILON) for moment in moments]
    return torch.asinh(torch.tensor([*means, *deviations], dtype=torch.float32))


class Generator(nn.Module):
    """Features (inputs,) → scales (modules, rank) within `SCALE_RANGE`; all scales are `start` at the start.

    `center` and `spread` (inputs,) are the features' mean and deviation over the seen clients, averaged once before the
    first round: raw, as in the paper, clients' features differ by a few per cent, which so few rounds do not resolve.
    The mean is put at 1, not at 0: what all clients share then comes through the features as fast as what tells them
    apart, and not through the biases alone.
    Float32 throughout: in bfloat16 steps of its learning rate would vanish.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, inputs: int, modules: int, rank: int, start: float, draw: torch.Generator) -> None:
        super().__init__()
        self.modules_ranks = (modules, rank)
        self.register_buffer("center", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        self.first, self.activation = nn.Linear(inputs, 2 * inputs), nn.PReLU()
        self.last = nn.Linear(2 * inputs, modules * rank)
        for linear, bias in ((self.first, START_BIAS), (self.last, start)):
            nn.init.xavier_normal_(linear.weight, gain=START_GAIN, generator=draw)
            nn.init.constant_(linear.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = 1 + ((x - self.center) / self.spread).clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)
        y = self.last(self.activation(self.first(x)))
        return clamp_through(y).view(self.modules_ranks)


def standardise(generator: Generator, clients: Sequence[Tensor]) -> None:
    """Set `center` and `spread` from the seen clients' features, in place."""
    table = torch.stack(list(clients))
    generator.center.copy_(table.mean(dim=0))
    # Where all clients agree a feature says nothing, and is left as it is.
    deviation = table.std(dim=0, correction=0)
    generator.spread.copy_(torch.where(deviation > LEAST_SPREAD, deviation, 1.0))


def from_state(state: Mapping[str, Tensor], rank: int) -> Generator:
    """The generator whose `state_dict` this is."""
    outputs, inputs = state["last.weight"].shape[0], state["first.weight"].shape[1]
    generator = Generator(inputs, outputs // rank, rank, 0.0, torch.Generator())
    generator.load_state_dict(dict(state))
    return generator


def follow(generator: Generator, x: Tensor, wanted: Tensor, *, rate: float, steps: int) -> float:
    """Stage 2 on a client: Adam on Σ |generator(x) - wanted|, in place; returns the last distance a scale."""
    optimizer = torch.optim.Adam(generator.parameters(), lr=rate)
    distance = torch.tensor(0.0)
    for _ in range(steps):
        distance = (generator(x) - wanted).abs().sum()
        optimizer.zero_grad(set_to_none=True)
        distance.backward()
        optimizer.step()
    return distance.item() / wanted.numel()

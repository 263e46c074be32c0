"""AdaLoRA as peft does it, on the same blocks, texts, steps and number of ranks."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.methods.fedp2eft.client import Factors, training_batches
from mobileicsa.methods.fedp2eft.config import Config
from mobileicsa.methods.fedp2eft.tail import Tail
from mobileicsa.methods.fedp2eft.world import Client, World

# Ranks at the start over those at the end, and the weight of the orthogonality loss: as in the paper.
START_RATIO, ORTHOGONAL = 1.5, 0.1


class _WithLoss(nn.Module):
    """A tail whose output carries its loss, which peft adds its regulariser to."""

    def __init__(self, world: World, tail: Tail) -> None:
        super().__init__()
        self.tail, self._world = tail, [world]  # in a list, for a World is no part of the module

    def forward(self, batch: object) -> SimpleNamespace:
        return SimpleNamespace(loss=self._world[0].loss(batch, self.tail))  # type: ignore[arg-type]


def check_available() -> None:
    """EnvironmentFault where peft is not installed."""
    if find_spec("peft") is None:
        raise EnvironmentFault(
            "fedp2eft: AdaLoRA, one of its baselines, needs peft", hint="pip install 'mobileicsa[peft]'"
        )


def tune(
    world: World, client: Client, factors: Factors, config: Config, budget: int, factor: float, rate: float, seed: int
) -> tuple[Tail, int]:
    """The adapted tail, and the number of parameters of the ranks that are left; needs peft.

    A starts with the first rows of `factors`, as every variant's does; peft draws B, by `seed`.
    """
    from peft import AdaLoraConfig, AdaLoraModel

    torch.manual_seed(seed)
    tail = world.new_tail(config.adapted_layers)
    start = max(budget + 1, int(START_RATIO * budget))
    settings = AdaLoraConfig(
        init_r=start,
        target_r=budget,
        tinit=config.steps // 6,
        tfinal=config.steps // 3,
        deltaT=1,
        total_step=config.steps,
        orth_reg_weight=ORTHOGONAL,
        lora_alpha=factor * start,
        lora_dropout=0.0,
        target_modules=[f"tail.{path}" for path, _ in tail.linears()],
    )
    model = AdaLoraModel(_WithLoss(world, tail), {"default": settings}, "default").to(world.device)
    for (path, _), a in zip(tail.linears(), factors, strict=True):
        tail.get_parameter(f"{path}.lora_A.default").data[: len(a)].copy_(a[:start])
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    for step, batch in enumerate(training_batches(client, config.batch, config.steps, seed)):
        loss: Tensor = model(batch).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.update_and_allocate(step)
    return tail, _parameters(tail)


def _parameters(tail: Tail) -> int:
    """Ranks whose singular value is not 0, times what one costs."""
    total = 0
    for name, value in tail.named_parameters():
        if ".lora_E." in name:
            a = tail.get_parameter(name.replace(".lora_E.", ".lora_A."))
            b = tail.get_parameter(name.replace(".lora_E.", ".lora_B."))
            total += int((value != 0).sum()) * (a.shape[1] + b.shape[0])
    return total

"""The training loop of the figure's model: all exits at once, deeper ones weighing more, in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from benchmarks.early_exits.start import mimic_trained
from mobileicsa.methods.loop import batches, cosine, fit
from mobileicsa.methods.reefl.models import seeded
from mobileicsa.methods.tasks import Examples
from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec

BATCH = 64
LEARNING_RATE, LAST_RATE = 2e-3, 0.01  # the second as a part of the first
WARM_UP_STEPS = 100
WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0
SHIFT = 4  # pixels


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A step is BATCH images. The defaults take about seven minutes of one core with AVX-512 bfloat16 products."""

    steps: int = 3000
    seed: int = 0
    dim: int = 64
    blocks: int = 8
    heads: int = 4
    exits: tuple[int, ...] = (1, 2, 4, 8)
    patch: int = 4

    def spec(self, examples: Examples, classes: int) -> ExitVitSpec:
        _, channels, height, width = examples.inputs.shape
        return ExitVitSpec(
            channels=channels,
            height=height,
            width=width,
            patch=self.patch,
            dim=self.dim,
            blocks=self.blocks,
            heads=self.heads,
            head_dim=self.dim // self.heads,
            classes=classes,
            exits=self.exits,
        )


def augmented(images: Tensor, draw: torch.Generator) -> Tensor:
    """Images (n, channels, height, width) mirrored or not, and shifted by up to SHIFT pixels over a mirrored edge."""
    count, _, height, width = images.shape
    flip = torch.rand(count, generator=draw) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    padded = nn.functional.pad(images, (SHIFT,) * 4, mode="reflect")
    down, right = torch.randint(0, 2 * SHIFT + 1, (2, count), generator=draw)
    rows = (down[:, None] + torch.arange(height))[:, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, :]
    return padded.permute(0, 2, 3, 1)[torch.arange(count)[:, None, None], rows, columns].permute(0, 3, 1, 2)


def train(
    spec: ExitVitSpec, examples: Examples, settings: Settings, after: Callable[[int, float], None] | None = None
) -> ExitVit:
    """A model whose exits all learned from `examples`; `after(step, loss)` is called behind each step.

    Products are in bfloat16. Raises Diverged.
    """
    with seeded(settings.seed):
        model = ExitVit(spec)
        mimic_trained(model)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    gains = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    draw = torch.Generator().manual_seed(settings.seed)

    def loss_of(indices: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            exits = model(augmented(examples.inputs[indices], draw))
        losses = [nn.functional.cross_entropy(logits.float(), examples.labels[indices]) for logits in exits]
        return torch.stack([(exit + 1) / len(exits) * loss for exit, loss in enumerate(losses)]).sum()

    fit(
        list(model.parameters()),
        torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True),
        islice(batches(len(examples), BATCH, settings.seed), settings.steps),
        loss_of,
        clip_norm=CLIP_NORM,
        rate=lambda at: min(1.0, (at + 1) / WARM_UP_STEPS) * cosine(at, settings.steps, 1.0, LAST_RATE),
        after=after,
    )
    return model.eval()

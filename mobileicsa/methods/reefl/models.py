"""Models of a run: built from arrays, cut to a client's budget, adapted by LoRA; their backbone's training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from mobileicsa.methods.loop import batches, cosine, fit
from mobileicsa.methods.lora import put_adapters
from mobileicsa.methods.reefl.config import ReeflConfig
from mobileicsa.methods.reefl.data import SOURCES, START_SEED, Federation
from mobileicsa.methods.tasks import Examples
from mobileicsa.methods.updates import Array, Arrays, corner
from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec

LORA_TARGETS = ("q", "v")
START_BATCH, START_DECAY = 64, 0.05


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's own draws repeat for a seed, and leave no trace outside."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def whole_spec(task: str, config: ReeflConfig, federation: Federation) -> ExitVitSpec:
    """The full model's shapes for a task's inputs, exits evenly spaced."""
    _, channels, height, width = federation.scored.inputs.shape
    patch = config.patch or SOURCES[task].patch
    return ExitVitSpec(
        channels=channels,
        height=config.side or height,
        width=config.side or width,
        patch=patch,
        dim=config.dim,
        blocks=config.blocks,
        heads=config.heads,
        head_dim=config.dim // config.heads,
        classes=federation.classes,
        exits=tuple(round(config.blocks * (exit + 1) / config.exits) for exit in range(config.exits)),
    )


def resized(inputs: Tensor, spec: ExitVitSpec) -> Tensor:
    """A batch on the device, at the model's size."""
    inputs = inputs.to(device())
    if inputs.shape[-2:] == (spec.height, spec.width):
        return inputs
    return nn.functional.interpolate(inputs, (spec.height, spec.width), mode="bilinear", antialias=True)


def build(
    spec: ExitVitSpec, start: Mapping[str, Tensor], config: ReeflConfig, seed: int
) -> tuple[ExitVit, dict[str, nn.Parameter]]:
    """A model on the backbone `start` (corners of it, where `spec` is narrower), and what of it learns, by name."""
    with seeded(seed):
        model = ExitVit(spec)
        own = model.state_dict()
        model.load_state_dict({**own, **{name: corner_of(start[name], own[name]) for name in own if name in start}})
        if config.regime == "lora":
            for block in model.blocks:
                put_adapters(block, LORA_TARGETS, config.lora_rank, config.lora_alpha)
    learned = {}
    for name, parameter in model.named_parameters():
        learns = config.regime == "full" or name.startswith("exits.") or ".adapter." in name
        parameter.requires_grad_(learns)
        if learns:
            learned[name] = parameter
    return model.to(device()), learned


def corner_of(whole: Tensor, part: Tensor) -> Tensor:
    return whole[tuple(slice(0, size) for size in part.shape)]


def read(parameters: Mapping[str, nn.Parameter]) -> dict[str, Array]:
    """Copies as float32 arrays."""
    return {name: parameter.detach().cpu().numpy().astype(np.float32) for name, parameter in parameters.items()}


def write(arrays: Arrays, parameters: Mapping[str, nn.Parameter]) -> None:
    """Set each parameter to its array, or to the corner of it that fits."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(corner(arrays[name], tuple(parameter.shape)))))


def train_backbone(spec: ExitVitSpec, examples: Examples, config: ReeflConfig) -> dict[str, Tensor]:
    """A ViT with one exit behind its last block, trained in one place; returns everything but its head."""
    alone = replace(spec, kind="own", exits=(spec.blocks,))
    with seeded(START_SEED):
        model = ExitVit(alone).to(device())
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.start_lr, weight_decay=START_DECAY)

    def loss_of(indices: Tensor) -> Tensor:
        logits = model(resized(examples.inputs[indices], spec))[-1]
        return nn.functional.cross_entropy(logits, examples.labels[indices].to(device()))

    fit(
        list(model.parameters()),
        optimizer,
        islice(batches(len(examples), START_BATCH, START_SEED), config.start_steps),
        loss_of,
        clip_norm=1.0,
        rate=lambda step: min(1.0, (step + 1) / 20) * cosine(step, config.start_steps, 1.0, 0.05),
    )
    return {name: value.cpu() for name, value in model.state_dict().items() if not name.startswith("exits.")}


@torch.no_grad()
def accuracies(model: ExitVit, examples: Examples, *, exits: int | None = None, batch: int = 250) -> list[float]:
    """Share of right answers at each exit."""
    model.eval()
    right = None
    for first in range(0, len(examples), batch):
        labels = examples.labels[first : first + batch].to(device())
        logits = model(resized(examples.inputs[first : first + batch], model.spec), exits)
        hits = torch.stack([(exit.argmax(-1) == labels).sum() for exit in logits])
        right = hits if right is None else right + hits
    assert right is not None
    return [float(count) / len(examples) for count in right]

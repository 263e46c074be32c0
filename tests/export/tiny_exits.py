"""A tiny early-exit model, its inputs and its folder, as `methods run reefl` hands one over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec
from mobileicsa.program.backend import find_backend
from mobileicsa.program.targets import find_target

SPEC = ExitVitSpec(
    channels=1,
    height=8,
    width=8,
    patch=4,
    dim=16,
    blocks=2,
    heads=2,
    head_dim=8,
    classes=4,
    exits=(1, 2),
    exit_heads=2,
    exit_head_dim=4,
)
SAMPLES = 12
MACS = (1000, 2000)


def make_model() -> ExitVit:
    torch.manual_seed(0)
    model = ExitVit(SPEC).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def make_inputs() -> torch.Tensor:
    return torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def write_folder(folder: Path) -> Path:
    """The model's folder, and beside it inputs.npz, labelled by the float model; returns the folder."""
    model, inputs = make_model(), make_inputs()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**SPEC.to_json(), "task": "toy"}))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors")
    rows = [{"exit": e, "blocks": e, "macs": macs, "parameters": 1, "accuracy": 0.5} for e, macs in enumerate(MACS, 1)]
    (folder / "exits.json").write_text(json.dumps({"exits": rows}))
    np.savez(folder.parent / "inputs.npz", inputs=inputs.numpy(), labels=model(inputs)[-1].argmax(-1).numpy())
    return folder


def missing(target: str) -> str | None:
    """Why the back ends of a target cannot work here."""
    reasons = (find_backend(name).unavailable() for name in find_target(target).backends)
    return next((reason for reason in reasons if reason is not None), None)

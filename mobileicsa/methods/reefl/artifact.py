"""The early-exit model's folder: config.json, model.safetensors, and exits.json with cost and accuracy of each exit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mobileicsa.io.staging import Staging
from mobileicsa.methods.base import Trial
from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec
from mobileicsa.models.exit_files import CONFIG, EXITS, WEIGHTS


def write_model(staging: Staging, folder: str, task: str, trial: Trial) -> None:
    """The trained model of a task; `trial` has its parameters as `task/name`, its spec in the notes."""
    spec = ExitVitSpec.from_json(trial.notes["specs"][task])
    tensors = {name.partition("/")[2]: value for name, value in trial.tensors.items() if name.startswith(f"{task}/")}
    staging.write_json(f"{folder}/{CONFIG}", {**spec.to_json(), "task": task})
    staging.write_tensors(f"{folder}/{WEIGHTS}", tensors)
    accuracies = [trial.metrics[f"{task}_accuracy_exit_{exit}"] for exit in range(1, len(spec.exits) + 1)]
    staging.write_json(f"{folder}/{EXITS}", {"exits": exit_table(spec, accuracies)})


def exit_table(spec: ExitVitSpec, accuracies: list[float]) -> list[dict[str, Any]]:
    """For each exit: blocks run, multiply-accumulates and parameters up to it, accuracy where it is always taken."""
    from torch.utils.flop_counter import FlopCounterMode

    model = ExitVit(spec)
    state: Tensor = torch.zeros(1, spec.channels, spec.height, spec.width)
    history, macs, rows = None, 0, []
    parameters: set[torch.nn.Parameter] = set()
    for exit, accuracy in enumerate(accuracies):
        stage = model.stage(exit)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            _, state, history = stage(state, history)
        macs += counter.get_total_flops() // 2
        parameters |= set(stage.parameters())
        rows.append(
            {
                "exit": exit + 1,
                "blocks": spec.exits[exit],
                "macs": macs,
                "parameters": sum(parameter.numel() for parameter in parameters),
                "accuracy": accuracy,
            }
        )
    return rows

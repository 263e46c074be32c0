"""How far a training run is: weights, optimizer, the best step so far; one file, written whole or not at all."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.io.atomic import write_through


@dataclass
class State:
    """`history`: one entry for each look at the validation text; `best_weights`: those of the entry `best`."""

    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer
    steps: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best(self) -> dict[str, Any]:
        return min(self.history, key=lambda entry: entry["validation_loss"])

    def look(self, loss: float, validation_loss: float) -> None:
        """Enter the mean training loss since the last entry and the validation loss (nats a token)."""
        entry = {"step": self.steps, "seconds": self.seconds, "loss": loss, "validation_loss": validation_loss}
        self.history.append(entry)
        if self.best is entry:
            self.best_weights = {name: weight.clone() for name, weight in self.model.state_dict().items()}


def save(state: State, path: Path, run: dict[str, Any], tokenizer: str) -> None:
    """`run`: what the run was asked for; `tokenizer`: its JSON form."""
    kept = {
        "run": run,
        "tokenizer": tokenizer,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "steps": state.steps,
        "seconds": state.seconds,
        "history": state.history,
        "best_weights": state.best_weights,
    }
    write_through(path, lambda temporary: torch.save(kept, temporary))


def load(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """What `save` wrote. Raises InputError for a damaged file, UsageError where another run wrote it."""
    try:
        kept: dict[str, Any] = torch.load(path, weights_only=True)
        found = kept["run"]
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: cannot be read: {error}", hint="remove the folder and begin again") from error
    for name, value in run.items():
        if found.get(name) != value:
            raise UsageError(
                f"{path}: was begun with {name} {found.get(name)}, not {value}",
                hint="repeat the command that began it, or name a new folder with --output",
            )
    return kept


def restore(state: State, kept: dict[str, Any]) -> None:
    """Bring a new state to where the kept one was."""
    state.model.load_state_dict(kept["model"])
    state.optimizer.load_state_dict(kept["optimizer"])
    state.steps, state.seconds = kept["steps"], kept["seconds"]
    state.history, state.best_weights = kept["history"], kept["best_weights"]

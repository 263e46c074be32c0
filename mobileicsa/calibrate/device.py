"""Where a build computes with floating point: a GPU if PyTorch has one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def compute_device() -> torch.device:
    """A GPU if PyTorch has one (hide it with CUDA_VISIBLE_DEVICES= for the CPU)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computed_on() -> list[str]:
    """What tells a run's results from those of another kind of device, which rounds otherwise; the CPU adds nothing."""
    kind = compute_device().type
    return [] if kind == "cpu" else [kind]


@contextmanager
def naming_memory() -> Iterator[None]:
    """Where a device's memory runs out, say that it was not the machine's."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        name = compute_device().type
        error.add_note(f"it was {name}'s memory; CUDA_VISIBLE_DEVICES= hides it, all steps then use the CPU")
        raise

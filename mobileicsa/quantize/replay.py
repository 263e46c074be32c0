"""A training step as one CUDA graph: its thousands of small kernels are sent once, not at every step.

A student's kernels are so small that a GPU waits for Python between them: 0.14 s a step where the kernels need a few
milliseconds (6 layers of 256, H200).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Passes before recording, in which libraries set up what they keep (PyTorch's documentation asks for three or more).
WARM_UPS = 3


class Replay:
    """`work` computes a loss from tensors of fixed shapes and adds its gradients; what it computes with stays in place.

    It must wait for nothing on the device (no `.item()`, no shapes that depend on values). Each replay overwrites the
    gradients, which therefore must not be dropped between.
    """

    def __init__(
        self, work: Callable[..., Tensor], batch: Sequence[Tensor], drop_gradients: Callable[[], None]
    ) -> None:
        self.batch = [tensor.clone() for tensor in batch]
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                work(*self.batch)
                drop_gradients()
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = work(*self.batch)

    def __call__(self, batch: Sequence[Tensor]) -> Tensor:
        """The loss of a batch of the same shapes; gradients are in place afterwards."""
        for mine, given in zip(self.batch, batch, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.loss

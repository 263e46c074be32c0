"""The float32 model in PyTorch: what everybody starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mobileicsa.artifact.model import FloatModel


class TorchFloat:
    """A checkpoint, eager."""

    name, backend = "torch float32", "torch"

    def __init__(self, *, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = FloatModel.from_pretrained(model)
        self.tokenizer, self.bos_id, self.max_window = self._model.tokenizer, self._model.bos_id, self._model.max_window

    @torch.no_grad()
    def start(self, ids: Sequence[int]) -> int:
        self._model.runner.reset()
        return int(self._model.runner.prefill(ids, last_only=True)[0].argmax())

    @torch.no_grad()
    def step(self, token: int) -> int:
        return int(self._model.runner.decode(token).argmax())

    @torch.no_grad()
    def logit_chunks(self, ids: Sequence[int]) -> Iterator[Tensor]:
        yield from self._model.logit_chunks(ids)

    def close(self) -> None:
        return None

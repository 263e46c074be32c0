"""`FloatModel`: the unquantised checkpoint, for comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mobileicsa.artifact.generates import Generates
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.core.target import Target
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.models.branches import branch_logits
from mobileicsa.models.load import load_decoder, read_spec
from mobileicsa.program.generate import TokenRunner
from mobileicsa.program.methods import empty_cache
from mobileicsa.program.simulator import SimulatorSession, sequence_logits

FLOAT = "float"


class FloatModel(Generates):
    """The unquantised checkpoint in float32, for comparison."""

    backend = FLOAT
    prefixed = False

    def __init__(self, name: str, folder_with_tokenizer: Path) -> None:
        checkpoint = open_checkpoint(name)
        self.name = name
        self.identity = checkpoint.identity
        self.spec = read_spec(checkpoint)
        self.tokenizer = Tokenizer(folder_with_tokenizer)
        self.bos_id = self.spec.bos_id
        self.first = () if self.bos_id is None else (self.bos_id,)
        self.decoder = load_decoder(checkpoint)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> FloatModel:
        """Load a checkpoint folder, GGUF file, bundled name or hub id."""
        with tempfile.TemporaryDirectory() as scratch:
            open_checkpoint(str(name)).write_tokenizer(Path(scratch))
            model = cls(str(name), Path(scratch))
        target = Target(name=FLOAT, description="", backends=(), context=min(2048, model.spec.max_context))
        rows = [r.numpy() for pair in empty_cache(model.spec, 0, torch.float32) for r in pair]
        model.runner = TokenRunner(SimulatorSession(model.decoder, target), target, rows, None)
        return model

    def start_behind(self, prefix: Sequence[int]) -> None:
        """Predict every text behind these tokens (BOS among them), as the artifact does whose prefix they are."""
        self.first = tuple(prefix)

    @property
    def max_window(self) -> int:
        return self.spec.max_context - max(len(self.first), 1)

    def logit_chunks(self, ids: Sequence[int]) -> Iterator[Tensor]:
        unasked = len(self.first) - (self.bos_id is not None)
        for rows in sequence_logits(self.decoder, self._fed(ids), None):
            yield rows[unasked:]
            unasked = max(unasked - len(rows), 0)

    @torch.no_grad()
    def branch_logits(self, context: Sequence[int], branches: Sequence[Sequence[int]]) -> list[Tensor]:
        """Per branch, predictions (len(branch), vocab) of its tokens; `context` may be empty behind BOS only."""
        return branch_logits(self.decoder, self._behind_bos(context), branches, None)

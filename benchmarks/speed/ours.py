"""An exported program on one of our back ends; a float one (a peer's form of the model) too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.engine import Fed
from mobileicsa.artifact import layout
from mobileicsa.artifact.exported import TARGET_FILE
from mobileicsa.artifact.model import read_frozen
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target
from mobileicsa.io.json_file import read_json
from mobileicsa.program.backend import find_backend
from mobileicsa.program.generate import TokenRunner


class Ours(Fed):
    """`artifact` gives plan and tokenizer, `exported` (of `mobileicsa export`) the files.

    dtype: of the cache; int8 for ours, whose prefix then stands before every conversation, float32 without one.
    """

    name = "mobileicsa"

    def __init__(self, *, artifact: str, exported: str, backend: str, threads: int, dtype: str = "int8") -> None:
        self._artifact, self.backend, self._dtype = Path(artifact), backend, dtype
        plan = QuantPlan.from_json(read_json(self._artifact / layout.PLAN, max_bytes=layout.MAX_JSON_BYTES), "plan")
        self._prefix = len(plan.prefix_ids) if dtype == "int8" else 0
        self._spec = plan.spec
        self._target = Target.from_mapping(read_json(Path(exported) / TARGET_FILE), TARGET_FILE)
        self.bos_id = plan.spec.bos_id
        self.max_window = self._target.context - max(self._prefix, 1)
        self._session = find_backend(backend).open(Path(exported) / backend, self._spec, self._target, threads=threads)
        # Speed does not depend on what the prefix rows hold, and reading them would take the weights' memory.
        rows = np.zeros((1, self._spec.num_kv_heads, self._prefix, self._spec.head_dim), dtype=dtype)
        self._timed = TokenRunner(self._session, self._target, [rows] * (2 * self._spec.num_layers), None)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read where texts are scored: a random model has none."""
        return Tokenizer(self._artifact)

    def start(self, ids: Sequence[int]) -> int:
        self._timed.reset()
        return int(self._timed.prefill(ids, last_only=True)[0].argmax())

    def step(self, token: int) -> int:
        return int(self._timed.decode(token).argmax())

    @cached_property
    def _exact(self) -> TokenRunner:
        """With the prefix's own rows, and what they predict."""
        if not self._prefix:
            return self._timed
        frozen = read_frozen(self._artifact)
        rows = [tensor.numpy() for pair in frozen.prefix_cache() for tensor in pair]
        return TokenRunner(self._session, self._target, rows, frozen.tensors["prefix.logits"].numpy())

    def logit_chunks(self, ids: Sequence[int]) -> Iterator[Tensor]:
        runner = self._exact
        fed = self.fed(ids)
        if self._prefix:
            assert runner.prefix_logits is not None
            yield torch.from_numpy(runner.prefix_logits)[None]
            fed = list(ids)[:-1]
        if fed:
            runner.reset()
            yield from (torch.from_numpy(rows.copy()) for rows in runner.prefill_chunks(fed))

    def close(self) -> None:
        self._session.close()

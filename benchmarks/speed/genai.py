"""onnxruntime-genai: a folder with genai_config.json, of our own export or of its model builder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.engine import Fed
from mobileicsa.artifact.tokenizer import Tokenizer


class Genai(Fed):
    """Not to be scored where the graph holds a prefix: BOS would stand twice before the text."""

    name, backend = "onnxruntime-genai", "genai"

    def __init__(self, *, folder: str, tokenizer: str, bos_id: int | None, context: int, threads: int) -> None:
        import onnxruntime_genai as genai

        self._genai = genai
        self.tokenizer, self.bos_id = Tokenizer(Path(tokenizer)), bos_id
        self.max_window = context - 1
        config = genai.Config(folder)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._model = genai.Model(config)
        self._settings = genai.GeneratorParams(self._model)
        self._settings.set_search_options(max_length=context, do_sample=False)
        self._generator: Any = None

    def start(self, ids: Sequence[int]) -> int:
        self._generator = self._genai.Generator(self._model, self._settings)
        return self._feed(ids)

    def step(self, token: int) -> int:
        return self._feed([token])

    def logit_chunks(self, ids: Sequence[int]) -> Iterator[Tensor]:
        fed = self.fed(ids)
        if fed:
            self._generator = self._genai.Generator(self._model, self._settings)
            self._generator.append_tokens(np.array([fed], dtype=np.int32))
            logits = np.asarray(self._generator.get_output("logits"), dtype=np.float32)
            yield torch.from_numpy(logits[0].copy())

    def close(self) -> None:
        self._generator = self._settings = self._model = None

    def _feed(self, ids: Sequence[int]) -> int:
        self._generator.append_tokens(np.array([ids], dtype=np.int32))
        return int(np.asarray(self._generator.get_logits()).reshape(-1).argmax())

"""The `mobileicsa` command run on the tiny model of `tiny_artifact`, for a target that exports nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_artifact import TEXT, write_checkpoint
from torch import Tensor

from mobileicsa.cli.main import execute

LAYER = "model.layers.0."


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, the JSON document of stdout, the text of stderr."""

    code: int
    document: dict[str, Any]
    notes: str

    @property
    def message(self) -> str:
        return str(self.document["error"]["message"])


class Tiny:
    """A folder with the tiny checkpoint and a calibration text, and commands run on them."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capture = folder, capture
        self.checkpoint = write_checkpoint(folder / "checkpoint")
        self.text = folder / "calibration.txt"
        self.text.write_text(TEXT)
        self.output = folder / "out"

    def run(self, *arguments: str) -> Ran:
        self._capture.readouterr()
        code = execute([*arguments, "--json"])
        printed = self._capture.readouterr()
        return Ran(code, json.loads(printed.out), printed.err)

    def quantize(self, *more: str, recipe: str = "minmax", calibration: bool = True) -> Ran:
        """Two windows of 32 tokens; `more` are further arguments."""
        arguments = ["--model", str(self.checkpoint), "--scheme", "w8a8", "--output", str(self.output)]
        arguments += ["--recipe", recipe, "calibration.samples=2", "calibration.length=32"]
        if recipe == "prefix":
            arguments += ["prefix_tokens=1", "alphas=[0.5]"]
        if calibration:
            arguments += ["--calibration", str(self.text)]
        return self.run("quantize", *arguments, *more)

    def perplexity(self, *more: str, text: str = TEXT[:300]) -> Ran:
        path = self.folder / "evaluation.txt"
        path.write_text(text)
        return self.run("eval", "--model", str(self.output), "--text", str(path), "--window", "40", *more)

    def change(self, tensor: str, edit: Callable[[Tensor], object]) -> None:
        """Edit one weight of the checkpoint in place."""
        path = self.checkpoint / "model.safetensors"
        tensors = {name: value.clone() for name, value in load_file(path).items()}
        edit(tensors[tensor])
        save_file(tensors, path, metadata={"format": "pt"})

    def artifact(self, name: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.output / name).read_text())
        return data

    def left_behind(self) -> Sequence[str]:
        """Names beside the checkpoint and the texts."""
        return sorted(p.name for p in self.folder.iterdir() if p != self.checkpoint and p.suffix != ".txt")

"""What the exits of a model answer, float and integer, and what it costs to stop at the first that is sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mobileicsa.artifact.exit_model import ExitModel
from mobileicsa.artifact.exits import THRESHOLDS
from mobileicsa.bench.exits import FLOAT
from mobileicsa.methods.tasks import Examples
from mobileicsa.models.early_exit_vit import ExitVit
from mobileicsa.program.early_exit import Floats, curve, softmax, walk


@dataclass(frozen=True, kw_only=True)
class Answers:
    """`confidence` (samples, E), `classes` (samples, E) int64: of every exit."""

    confidence: Floats
    classes: NDArray[np.int64]

    @classmethod
    def of(cls, logits: Floats) -> Answers:
        """From logits (samples, E, classes)."""
        return cls(confidence=softmax(logits).max(-1), classes=logits.argmax(-1))

    def by_exit(self, labels: NDArray[np.int64]) -> list[float]:
        """Accuracy of each exit where it is always taken."""
        found: list[float] = (self.classes == labels[:, None]).mean(axis=0).tolist()
        return found

    def curve(
        self, labels: NDArray[np.int64], macs: Sequence[int], thresholds: Sequence[Floats]
    ) -> list[dict[str, Any]]:
        """Accuracy, mean MACs and exits taken, at thresholds (E,) for each of THRESHOLDS."""
        return curve(self.confidence, self.classes == labels[:, None], macs, thresholds)


@torch.no_grad()
def float_answers(model: ExitVit, examples: Examples, batch: int = 250) -> Answers:
    parts = [torch.stack(model(inputs), dim=1) for inputs in torch.split(examples.inputs, batch)]
    return Answers.of(torch.cat(parts).double().numpy())


def runtime_answers(model: ExitModel, examples: Examples) -> Answers:
    """Of the artifact's stages on the runtime that it is opened on, one input at a time."""
    logits = [[given[0][0] for given in walk(model.session, model.names, each.numpy())] for each in examples.inputs]
    return Answers.of(np.array(logits, np.float64))


def plain(exits: int) -> list[Floats]:
    """THRESHOLDS as the float model takes them, the same at every exit."""
    return [np.full(exits, threshold) for threshold in THRESHOLDS]


def scheme_answers(folder: Path, backends: Sequence[str], test: Examples) -> dict[str, dict[str, Any]]:
    """Of an artifact on each of its back ends: {"by_exit", "curve", "answers"}, thresholds refitted as `run` does."""
    labels = test.labels.numpy()
    found = {}
    for name in backends:
        model = ExitModel.from_pretrained(folder, backend=name, threads=1)
        answers = runtime_answers(model, test)
        thresholds = [model.table.refitted(threshold) for threshold in THRESHOLDS]
        found[name] = {
            "by_exit": answers.by_exit(labels),
            "curve": answers.curve(labels, model.table.macs, thresholds),
            "answers": answers,
        }
        model.close()
    return found


def points(rows: Sequence[Mapping[str, Any]], exits_ms: Sequence[float]) -> list[dict[str, Any]]:
    """A curve with its thresholds and `mean_ms`: what an input takes on average by the medians up to each exit."""
    return [
        {"threshold": threshold, **row, "mean_ms": float(np.dot(row["taken"], exits_ms))}
        for threshold, row in zip(THRESHOLDS, rows, strict=True)
    ]


def same_classes(one: Answers, other: Answers) -> float:
    """Share of all exits of all samples at which both choose the same class."""
    return float((one.classes == other.classes).mean())


def joined(
    float_curve: Sequence[Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, Mapping[str, Any]]],
    benches: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """{back end: {kind: points}} of `measured` {scheme: {back end: {"curve"}}} and `benches` {scheme: rows by back
    end}; float32's milliseconds are those of the first scheme's bench."""
    first = next(iter(benches.values()))
    return {
        name: {
            FLOAT: points(float_curve, row[FLOAT]["exits_ms"]),
            **{
                scheme: points(found[name]["curve"], benches[scheme][name]["exits_ms"])
                for scheme, found in measured.items()
            },
        }
        for name, row in first.items()
    }

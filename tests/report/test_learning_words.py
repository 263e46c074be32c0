"""The learning section: rotations stand before the recipe's stages, each with its own measure."""

from __future__ import annotations

from typing import Any

from mobileicsa.report.learning import learning_figure, learning_rows, stages_of

HISTORY: dict[str, Any] = {
    "steps": 64,
    "steps_seen": [0, 32, 64],
    "held_out": [0.2, 0.1, 0.15],
    "training": [0.0, 0.12, 0.08],
    "best_step": 32,
    "stopped": None,
}
MODEL = {**HISTORY, "scope": "model", "loss": "logits"}


def test_learned_rotations_come_first() -> None:
    rows = learning_rows(stages_of({"rotation": HISTORY, "learning": [MODEL]}))
    assert [row["scope"] for row in rows] == ["rotations, before rounding", "end to end"]
    assert [row["measure"] for row in rows] == ["expected KL of rounding", "KL to float"]
    assert {(row["before"], row["after"]) for row in rows} == {("0.2000", "0.1000")}


def test_rotations_alone_have_a_figure() -> None:
    figure = learning_figure(stages_of({"rotation": HISTORY}))
    assert figure is not None
    assert figure.startswith("<svg")


def test_nothing_learned_is_nothing_shown() -> None:
    assert stages_of({}) == []
    assert learning_rows([]) == []
    assert learning_figure([]) is None

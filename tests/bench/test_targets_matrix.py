"""The agreement matrix: one-operator programs stand on integer borders, the table tells equal from nearly so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.tables import agreement
from benchmarks.tables import engines as engines_table
from benchmarks.targets import engines
from benchmarks.targets.operators import OPERATORS, OneOperator, Operator


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_an_operator_uses_the_range_of_its_output(operator: Operator) -> None:
    program = OneOperator(operator)
    found = program.simulated()
    assert not found.is_floating_point()
    # A step of a result that used a fraction of its range would hide what an engine does to it.
    assert int(found.long().abs().max()) >= (1 << operator.bits) // 4
    assert torch.equal(found, program.simulated())


@pytest.mark.parametrize("name", ["linear a8w4 → 8", "multiply 16", "exp 16"])
def test_onnx_runtime_computes_what_the_simulator_does(name: str) -> None:
    (operator,) = (one for one in OPERATORS if one.name == name)
    assert engines.measure(OneOperator(operator), "ONNX Runtime") == {"equal_share": 1.0, "max_steps": 0}


def test_an_engine_that_computes_something_else_is_told_from_one_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    program = OneOperator(OPERATORS[0])
    right = program.simulated().numpy()

    def wrong(operator: OneOperator, folder: Any) -> Any:
        changed = right.copy()
        changed[0, 0, :3] ^= 1
        return changed

    def refuse(operator: OneOperator, folder: Any) -> Any:
        raise RuntimeError("no kernel\nand more")

    monkeypatch.setitem(engines.ENGINES, "wrong", ("onnx", wrong))
    monkeypatch.setitem(engines.ENGINES, "refuses", ("onnx", refuse))
    assert engines.measure(program, "wrong") == {"equal_share": 1 - 3 / right.size, "max_steps": 1}
    assert engines.measure(program, "refuses") == {"unsupported": "RuntimeError: no kernel"}


def test_the_table_names_each_reason_once() -> None:
    refused = {"unsupported": "no kernel"}
    rows = {
        "a": {"one": {"equal_share": 1.0, "max_steps": 0}, "two": refused},
        "b": {"one": {"equal_share": 0.5, "max_steps": 1}, "two": refused},
        "c": {"one": {"equal_share": 0.25, "max_steps": 1200}, "two": {"absent": "not installed"}},
    }
    assert agreement({"operators": rows}) == [
        "| operator | one | two |",
        "|---|---|---|",
        "| a | equal | unsupported (1) |",
        "| b | ≤ 1 step, 50.0 % equal | unsupported (1) |",
        "| c | ≤ 1,200 steps, 25.0 % equal | not run (2) |",
        "",
        "1. no kernel",
        "2. not installed",
    ]


def test_a_whole_model_stands_beside_the_simulator_or_with_the_reason() -> None:
    found = {
        "equal_share": 0.5,
        "first_layer_equal": 1.0,
        "max_steps": 3,
        "top1_agreement": 0.975,
        "perplexity": 20.123,
        "simulator_perplexity": 20.0,
    }
    result = {"artifacts": {"tiny": {"engines": {"tosa": found, "vgf": {"reason": "compiles only"}}}}}
    *_, first, second = engines_table(result)
    assert first == "| tiny | tosa | 100.0 % | 50.0 % | 3 | 98 % | 20.12 | 20.00 |"
    assert second == "| tiny | vgf | compiles only |  |  |  |  |  |"

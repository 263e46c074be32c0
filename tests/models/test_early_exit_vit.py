"""The early-exit vision transformer: stages equal the whole, what a budget holds, export without in-place writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec, held

SPEC = ExitVitSpec(
    channels=3, height=8, width=8, patch=4, dim=16, blocks=4, heads=2, head_dim=8, classes=5, exits=(1, 2, 4)
)
KINDS = {
    "recurrent": SPEC,
    "no-modulation": replace(SPEC, modulation=False),
    "own": replace(SPEC, kind="own", modulation=False),
}


def build(spec: ExitVitSpec) -> ExitVit:
    torch.manual_seed(0)
    return ExitVit(spec).eval()


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_stages_one_after_another_give_the_whole_models_logits(spec: ExitVitSpec, inputs: torch.Tensor) -> None:
    model = build(spec)
    state, history = inputs, None
    for exit, expected in enumerate(model(inputs)):
        logits, state, history = model.stage(exit)(state, history)
        assert torch.equal(logits, expected)
        assert history.shape == (2, spec.exits[exit], spec.dim)
        assert state.shape == (2, 1 + spec.patches, spec.dim)


@pytest.mark.parametrize("kind", ["own", "no-modulation"])
@pytest.mark.parametrize("exits", [None, 2])
def test_exits_answer_from_cls_rows_alone_where_nothing_modulates(
    kind: str, exits: int | None, inputs: torch.Tensor
) -> None:
    model = build(KINDS[kind])
    history = model.history(inputs, exits)
    assert history.shape == (2, KINDS[kind].exits[exits - 1 if exits else -1], KINDS[kind].dim)
    for answer, expected in zip(model.answers(history, exits), model(inputs, exits), strict=True):
        assert torch.equal(answer, expected)


@pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)
def test_a_budget_holds_all_that_its_exits_need_and_no_more(spec: ExitVitSpec, inputs: torch.Tensor) -> None:
    model = build(spec)
    before = model(inputs, 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not held(name, spec, 2):
                parameter.fill_(float("nan"))
    assert all(torch.equal(a, b) for a, b in zip(before, model(inputs, 2), strict=True))
    assert not torch.isfinite(model(inputs)[-1]).all()


def test_every_parameter_of_a_recurrent_model_learns_from_its_exits(inputs: torch.Tensor) -> None:
    model = build(SPEC)
    sum(logits.square().sum() for logits in model(inputs)).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set()


def test_modulation_changes_later_exits_only(inputs: torch.Tensor) -> None:
    with_it, without = build(SPEC), build(KINDS["no-modulation"])
    with_it.load_state_dict(without.state_dict())
    changed = [not torch.equal(a, b) for a, b in zip(with_it(inputs), without(inputs), strict=True)]
    assert changed == [False, True, True]


def test_a_stage_exports_without_in_place_index_writes(inputs: torch.Tensor) -> None:
    model = build(SPEC)
    _, state, history = model.stage(0)(inputs)
    for exit, arguments in ((0, (inputs,)), (1, (state, history))):
        program = torch.export.export(model.stage(exit).eval(), arguments).run_decompositions()
        names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        assert not [name for name in names if "index_put" in name or "select_scatter" in name or "copy_" in name]


def test_a_spec_survives_its_json_and_wrong_ones_are_refused() -> None:
    assert ExitVitSpec.from_json(SPEC.to_json()) == SPEC
    for wrong in ({"exits": (2, 1, 4)}, {"exits": (1, 2)}, {"exits": ()}, {"patch": 3}):
        with pytest.raises(ValueError, match=r"exits|patches"):
            replace(SPEC, **wrong)  # type: ignore[arg-type]

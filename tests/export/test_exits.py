"""Early exits as Q/DQ stages: borders, encodings, the primitive form, both made again from a plan."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tiny_exits import SPEC, make_inputs, make_model

from mobileicsa.core.errors import SchemeError
from mobileicsa.core.scheme import find_scheme
from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec
from mobileicsa.models.primitive_vit import primitive_form
from mobileicsa.program.exact import DEQUANTIZE, DEQUANTIZE_CHANNEL
from mobileicsa.program.exit_frozen import StagePlan, frozen_exits
from mobileicsa.program.exit_stages import ExitProgram, edges_of, quantize_exits, weights_of

pytest.importorskip("torchao", reason="torchao is not installed: pip install 'mobileicsa[executorch]'")

aten = torch.ops.aten
MOVES = (aten.select.int, aten.slice.Tensor, aten.view.default, aten.expand.default)
DEQUANTIZES = (DEQUANTIZE, DEQUANTIZE_CHANNEL)
FLOAT_OPERATORS = ("layer_norm", "softmax", "native_layer_norm", "mean")


@pytest.fixture(scope="module")
def model() -> ExitVit:
    return make_model()


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return make_inputs()


@cache
def quantized(scheme: str, form: str) -> ExitProgram:
    return quantize_exits(make_model(), make_inputs(), find_scheme(scheme), primitive=form == "primitive")


@pytest.fixture(scope="module", params=["w8a8", "w4a8"])
def program(request: pytest.FixtureRequest) -> ExitProgram:
    return quantized(request.param, "fused")


@pytest.fixture(scope="module")
def primitive() -> ExitProgram:
    return quantized("w8a8", "primitive")


def logits_of(program: ExitProgram, inputs: torch.Tensor) -> torch.Tensor:
    """(samples, exits, classes) over whole chains."""
    found = []
    for sample in inputs:
        first, *handed = program.run(0, (sample[None],))
        found.append(torch.cat([first, *program.run(1, tuple(handed))]))
    return torch.stack(found)


def border_calls(stage: torch.fx.GraphModule) -> tuple[set[tuple[object, ...]], set[tuple[object, ...]]]:
    """Arguments of the dequantises of inputs and of the quantises of outputs."""
    users = (u for n in stage.graph.nodes if n.op == "placeholder" for u in n.users if u.op == "call_function")
    read = {tuple(user.args[1:]) for user in users}
    (output,) = (n for n in stage.graph.nodes if n.op == "output")
    return read, {tuple(n.args[1:]) for n in output.args[0][1:]}


def test_a_border_has_one_encoding_on_both_sides(program: ExitProgram) -> None:
    written, read = border_calls(program.stages[0])[1], border_calls(program.stages[1])[0]
    assert written == read
    scales = {program.borders[name].scale[0] for name in ("stage_0.state", "history")}
    assert {arguments[0] for arguments in written} == scales


def test_only_integers_cross_a_border_and_the_history_stays_as_it_is(model: ExitVit, inputs: torch.Tensor) -> None:
    spec = ExitVitSpec(**{**vars(SPEC), "blocks": 3, "exits": (1, 2, 3)})
    torch.manual_seed(0)
    deeper = quantize_exits(ExitVit(spec).eval().requires_grad_(False), inputs[:2], find_scheme("w8a8"))
    first = deeper.run(0, (inputs[:1],))[1:]
    second = deeper.run(1, first)[1:]
    assert {value.dtype for value in (*first, *second)} == {torch.int16}
    assert torch.equal(second[1][:, :1], first[1])


@pytest.mark.parametrize("form", ["fused", "primitive"])
def test_integers_come_near_the_float_logits(form: str, model: ExitVit, inputs: torch.Tensor) -> None:
    program = quantized("w8a8", form)
    wanted = torch.stack(model(inputs), dim=1)
    error = (logits_of(program, inputs) - wanted).abs().mean()
    assert error < 0.1 * wanted.std()


def test_plan_names_every_weight_once(program: ExitProgram, model: ExitVit) -> None:
    encodings, integers = weights_of(program)
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(encodings) == {f"{name}.weight" for name in linears} | {"embed.patch.weight"}
    for name, encoding in encodings.items():
        assert int(integers[name].abs().max()) <= encoding.qmax
    assert {"history", "stage_0.state"} < set(edges_of(program))


def test_the_primitive_form_computes_the_same_function(model: ExitVit, inputs: torch.Tensor) -> None:
    wanted, found = (torch.stack(form(inputs)) for form in (model, primitive_form(model)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_primitive_form_has_an_encoding_on_every_edge(primitive: ExitProgram) -> None:
    """Each operator that computes is read through a Q/DQ pair, but for those a linear map passes through."""
    for stage in primitive.stages:
        names = [str(node.target) for node in stage.graph.nodes if node.op == "call_function"]
        assert not [name for name in names if any(f"aten.{op}." in name for op in FLOAT_OPERATORS)]
        for node in stage.graph.nodes:
            if node.target in (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor):
                for source in node.all_input_nodes:
                    while source.target in MOVES:
                        source = source.all_input_nodes[0]
                    assert source.target in (*DEQUANTIZES, aten.matmul.default, aten.amax.default), (node, source)


def test_both_forms_share_weights_and_borders(primitive: ExitProgram) -> None:
    fused = quantized("w8a8", "fused")
    assert fused.borders == primitive.borders
    (encodings, integers), (others, same) = weights_of(fused), weights_of(primitive)
    assert encodings == others
    assert all(torch.equal(tensor, same[name]) for name, tensor in integers.items())


@pytest.mark.parametrize(("name", "form"), [("w4a8", "fused"), ("w8a8", "primitive")])
def test_stages_are_made_again_from_plan_and_integers(
    name: str, form: str, model: ExitVit, inputs: torch.Tensor
) -> None:
    scheme, made = find_scheme(name), quantized(name, form)
    encodings, integers = weights_of(made)
    edges = edges_of(made)
    plan = StagePlan(
        spec=SPEC, scheme=scheme, edges=edges, inner_edges=edges, borders=tuple(made.borders), weights=encodings
    )
    tensors = {**{n: v for n, v in model.state_dict().items() if n not in encodings}, **integers}
    again = frozen_exits(StagePlan.from_json(plan.to_json()), tensors, primitive=form == "primitive")
    assert torch.equal(logits_of(again, inputs[:4]), logits_of(made, inputs[:4]))
    lacking = {name: encoding for name, encoding in edges.items() if not name.endswith("/linear_2")}
    broken = StagePlan(**{**vars(plan), "edges": lacking, "inner_edges": lacking})
    with pytest.raises(SchemeError, match="linear_2"):
        frozen_exits(broken, tensors, primitive=form == "primitive")

"""Where each operator of a model.pte runs, read from the file: in which kernel of the delegate, or outside of it."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileicsa.core.errors import VerificationError
from mobileicsa.program.placement import placement_facts
from mobileicsa_export.executorch import stored_name
from mobileicsa_export.executorch_segments import read_program, read_segment

if TYPE_CHECKING:
    from executorch.exir._serialize.generated.executorch_flatbuffer.ExecutionPlan import ExecutionPlan
    from executorch.exir._serialize.generated.executorch_flatbuffer.Program import Program

DELEGATE = "XnnpackBackend"
INTEGER_TYPES = frozenset(f"xnn_datatype_{name}" for name in ("qint8", "qcint8", "qcint4", "qdint8"))
INPUTS = ("input_id", "input1_id", "input2_id", "input3_id", "input4_id", "input5_id", "filter_id")
# What runs outside of the delegate by design: rows gathered from tables, arithmetic on positions, the mask.
ADDRESSING = frozenset(
    [
        "add",
        "bitwise_and",
        "clamp",
        "embedding",
        "expand_copy",
        "logical_and",
        "lt",
        "mul",
        "slice_copy",
        "sub",
        "sym_size",
        "unsqueeze_copy",
        "where",
        "_to_dim_order_copy",
    ]
)


def placement(path: Path, method: str = "decode") -> dict[str, Any]:
    """Kernels of one step by kind: `integer`, `float`, `boundary` (conversions), `outside` of every delegate.

    `by_op` counts each operator by kind; `products` are matrix products with a weight or between activations, by
    the kind of their kernel; `fallbacks` lists what was meant for an integer kernel, or for the delegate, and is not.
    """
    data = path.read_bytes()
    program = read_program(data)
    plan = _plan(path, program, method)
    kernels, products, fallbacks = [], [], []
    for graph in _graphs(path, data, program, plan):
        for op, types, channels in _kernels(graph):
            kind = _kind(op, types)
            kernels.append((op, kind))
            weighted = op == "FullyConnected" and channels > 1  # one channel is a mean (see executorch_graph)
            if weighted or op == "BatchMatrixMultiply":
                products.append(kind)
            if weighted and kind == "float":
                fallbacks.append({"node": f"{op} of {channels} channels", "reason": "its weight is in float"})
    outside = Counter(_called(plan))
    kernels += [(op, "outside") for op in outside.elements()]
    fallbacks += [
        {"node": op, "reason": "runs outside of the delegate"} for op in sorted(outside) if op not in ADDRESSING
    ]
    return placement_facts(kernels, products, fallbacks)


def delegate_graphs(path: Path, method: str) -> list[dict[str, Any]]:
    """What XNNPACK is given for one method: nodes, values and constants as its schema.fbs names them."""
    data = path.read_bytes()
    program = read_program(data)
    return list(_graphs(path, data, program, _plan(path, program, method)))


def _plan(path: Path, program: Program, method: str) -> ExecutionPlan:
    plans = [program.ExecutionPlan(index) for index in range(program.ExecutionPlanLength())]
    named = {plan.Name().decode(): plan for plan in plans}
    name = stored_name(method, named)
    if name in named:
        return named[name]
    raise VerificationError(f"{path}: no method {method}")


def _graphs(path: Path, data: bytes, program: Program, plan: ExecutionPlan) -> Iterator[dict[str, Any]]:
    for index in range(plan.DelegatesLength()):
        delegate = plan.Delegates(index)
        name = delegate.Id().decode()
        if name != DELEGATE:
            raise VerificationError(f"{path}: holds a delegate {name}, expected {DELEGATE}")
        yield _delegate_graph(read_segment(data, program, delegate.Processed().Index()))


def _kind(op: str, types: list[str]) -> str:
    if op == "Convert":
        return "boundary"
    return "integer" if INTEGER_TYPES.issuperset(types) else "float"


def _kernels(graph: dict[str, Any]) -> Iterator[tuple[str, list[str], int]]:
    """Operator, input types and first dimension of the last input (a weight's channels) of each node."""
    values = {}
    for entry in graph["xvalues"]:
        value = entry["xvalue_union"]
        value = value.get("tensor_value", value)
        values[value["id_out"]] = value
    for node in graph["xnodes"]:
        fields = node["xnode_union"]
        inputs = [values[fields[name]] for name in INPUTS if fields.get(name) in values]
        yield (
            node["xnode_union_type"].removeprefix("XNN"),
            [v["datatype"] for v in inputs],
            (inputs[-1]["dims"] or [1])[0],
        )


def _delegate_graph(payload: bytes) -> dict[str, Any]:
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    schema = files("executorch.backends.xnnpack.serialization") / "schema.fbs"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "schema.fbs").write_bytes(schema.read_bytes())
        start = header.flatbuffer_offset
        (folder / "graph.bin").write_bytes(payload[start : start + header.flatbuffer_size])
        _flatc_decompile(scratch, str(folder / "schema.fbs"), str(folder / "graph.bin"), ["--raw-binary"])
        graph: dict[str, Any] = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    return graph


def _called(plan: ExecutionPlan) -> Iterator[str]:
    """Base name of the operator of every kernel call."""
    from executorch.exir._serialize.generated.executorch_flatbuffer.InstructionArguments import InstructionArguments
    from executorch.exir._serialize.generated.executorch_flatbuffer.KernelCall import KernelCall

    chain = plan.Chains(0)
    for index in range(chain.InstructionsLength()):
        instruction = chain.Instructions(index)
        if instruction.InstrArgsType() == InstructionArguments.KernelCall:
            call = KernelCall()
            call.Init(instruction.InstrArgs().Bytes, instruction.InstrArgs().Pos)
            yield plan.Operators(call.OpIndex()).Name().decode().rpartition("::")[2]

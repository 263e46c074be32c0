"""Where each operator of a written model runs in ONNX Runtime: counted from a profiled step, not from the file."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mobileicsa.program.placement import placement_facts
from mobileicsa_export.onnx import MODEL_FILES
from mobileicsa_export.onnx_load import load_graph
from mobileicsa_export.onnx_session import start
from mobileicsa_export.onnx_unencoded import unencoded

INTEGER_PRODUCTS = ("QLinearMatMul", "MatMulIntegerToFloat")
FLOAT_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
BOUNDARIES = ("QuantizeLinear", "DequantizeLinear", "Cast")
KERNEL_EVENT = "_kernel_time"
TYPES = {"tensor(int64)": np.int64, "tensor(int8)": np.int8, "tensor(float)": np.float32}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One executed operator: its node's name, which fusions keep, and its input types."""

    op: str
    node: str
    types: tuple[str, ...]


def placement(folder: Path, method: str = "decode", *, primitive: bool = False) -> dict[str, Any]:
    """Kernels of one step by kind: `integer` (arithmetic or movement of integers), `float`, `boundary` (Q, DQ).

    `by_op` counts each operator as {"integer": n, "float": n, "boundary": n}; `products` are matrix products
    with a weight or between activations, in integer and in float kernels; `fallbacks` are products with a weight
    that ran in float here, and, in a `primitive` graph, whatever the file leaves without an encoding.
    """
    kernels = _executed(folder / MODEL_FILES[method])
    graph = load_graph(folder / MODEL_FILES[method]).graph
    fallbacks = unencoded(graph) if primitive else []
    in_integers = {kernel.node for kernel in kernels if kernel.op in INTEGER_PRODUCTS}
    fallbacks += [
        {"node": node.name or "", "reason": "ONNX Runtime multiplies its weight in float on this CPU"}
        for node in weight_products(graph)
        if node.name not in in_integers
    ]
    products = [
        "integer" if kernel.op in INTEGER_PRODUCTS else "float"
        for kernel in kernels
        if kernel.op in INTEGER_PRODUCTS or kernel.op in FLOAT_PRODUCTS
    ]
    return placement_facts([(kernel.op, _kind(kernel)) for kernel in kernels], products, fallbacks)


def weight_products(graph: ir.Graph) -> list[ir.Node]:
    """Matrix products of the file with a constant, dequantised or not."""
    return [node for node in graph if node.op_type in FLOAT_PRODUCTS and _is_weight(node.inputs[1])]


def _is_weight(value: ir.Value | None) -> bool:
    while (
        value is not None
        and (producer := value.producer()) is not None
        and producer.op_type in (*BOUNDARIES, "Transpose")
    ):
        value = producer.inputs[0]
    # An optional input is an adapter's factor: the zeros that it starts as are no weight.
    return value is not None and value.is_initializer() and not value.is_graph_input()


def _kind(kernel: Kernel) -> str:
    if kernel.op in BOUNDARIES:
        return "boundary"
    # MatMulIntegerToFloat sums integers and scales the sum once; its scales are float inputs.
    if kernel.op in INTEGER_PRODUCTS or "float" not in kernel.types:
        return "integer"
    return "float"


def _executed(path: Path) -> list[Kernel]:
    """Every kernel of one step."""
    with tempfile.TemporaryDirectory() as scratch:
        session = start(path, threads=1, numerics="fast", profile=Path(scratch) / "step")
        session.run(None, {i.name: np.zeros(i.shape, TYPES[i.type]) for i in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [
        Kernel(
            op=event["args"]["op_name"],
            node=event["name"].removesuffix(KERNEL_EVENT),
            types=tuple(t for entry in event["args"]["input_type_shape"] for t in entry),
        )
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL_EVENT)
    ]

"""Where each operator of a written model runs in OpenVINO: read from the compiled decode step, not from the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from mobileicsa.program.placement import placement_facts
from mobileicsa_export.onnx import MODEL_FILES
from mobileicsa_export.onnx_graph import QDQ_OPS
from mobileicsa_export.onnx_load import load_graph
from mobileicsa_export.onnx_placement import weight_products
from mobileicsa_export.onnx_unencoded import unencoded
from mobileicsa_export.openvino_reading import SCALED
from mobileicsa_export.openvino_session import compile_method

PRODUCTS = ("FullyConnected", "MatMul")
BOUNDARIES = ("Convert", "FakeQuantize")
NO_KERNELS = ("Const", "Input", "Output")
FLOATS = frozenset({"f32", "f16", "bf16"})
EIGHT_BIT = frozenset({"i8", "u8"})
# What follows an operator's name in the names of what stands in its place: OpenVINO's low-precision passes' and ours.
ENDINGS = ("/Dequantization", SCALED)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One compiled kernel: OpenVINO's type of it, the file's nodes in it, its types of data and the code it runs."""

    op: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    code: str


def placement(folder: Path, *, primitive: bool) -> dict[str, Any]:
    """As `Backend.placement`. A product is an integer one where both factors reach its kernel as 8-bit integers:
    OpenVINO's own `runtimePrecision` says i8 of float kernels too that unpack 8-bit weights.
    """
    path = folder / MODEL_FILES["decode"]
    graph = load_graph(path).graph
    kernels = list(_kernels(path))
    products = {node: kernel for kernel in kernels if kernel.op in PRODUCTS for node in kernel.nodes}
    fallbacks = unencoded(graph) if primitive else []
    fallbacks += [
        {"node": name, "reason": _why(products.get(name))}
        for name in (node.name or "" for node in weight_products(graph))
        if name not in products or _kind(products[name]) != "integer"
    ]
    return placement_facts(
        [(kernel.op, _kind(kernel)) for kernel in kernels],
        [_kind(kernel) for kernel in kernels if kernel.op in PRODUCTS],
        fallbacks,
    )


def operators(graph: ir.Graph) -> int:
    """Number of operators of a file that are not Q or DQ."""
    return sum(node.op_type not in QDQ_OPS for node in graph)


def unsupported(graph: ir.Graph, fallbacks: list[dict[str, str]]) -> list[dict[str, str]]:
    """{"op", "reason"} of fallbacks, each pair once with the number of its nodes."""
    op_of = {node.name: node.op_type for node in graph}
    counts = Counter((op_of[f["node"]], f["reason"]) for f in fallbacks)
    return [{"op": op, "reason": f"{reason} ({n} nodes)"} for (op, reason), n in sorted(counts.items())]


def _kernels(path: Path) -> Iterator[Kernel]:
    for node in compile_method(path, threads=1).get_runtime_model().get_ordered_ops():
        facts = {key: str(getattr(value, "value", value)) for key, value in node.get_rt_info().items()}
        if facts["layerType"] in NO_KERNELS:
            continue
        yield Kernel(
            op=facts["layerType"],
            nodes=tuple(map(_operator, (node.get_friendly_name(), *facts["originalLayersNames"].split(",")))),
            inputs=tuple(_type(port.get_source_output().get_node()) for port in node.inputs()),
            outputs=tuple(facts["outputPrecisions"].split(",")),
            code=facts["primitiveType"],
        )


def _operator(name: str) -> str:
    for ending in ENDINGS:
        name = name.split(ending)[0]
    return name


def _type(node: Any) -> str:
    value = node.get_rt_info()["outputPrecisions"]
    return str(getattr(value, "value", value))


def _kind(kernel: Kernel) -> str:
    if kernel.op in BOUNDARIES:
        return "boundary"
    if kernel.op in PRODUCTS:
        return "integer" if EIGHT_BIT.issuperset(kernel.inputs[:2]) else "float"
    return "float" if FLOATS & {*kernel.inputs, *kernel.outputs} else "integer"


def _why(kernel: Kernel | None) -> str:
    if kernel is None:
        return "OpenVINO names no kernel for this product with a weight"
    return f"OpenVINO multiplies {kernel.inputs[0]} activations with {kernel.inputs[1]} weights ({kernel.code})"

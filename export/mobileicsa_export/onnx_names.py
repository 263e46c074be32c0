"""Names of nodes and tensors in an ONNX graph: module paths of the decoder.

An edge `e` has the tensors `e` (real values before it), `e/q`, `e/dq`, `e/scale`, `e/zero_point`; a weight `w` has
`w/scale`, `w/zero_point`; any other node is `<module path>/<op>`, and so is its output. Encodings use the same names.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Sequence

import onnx
import onnx_ir as ir

from mobileicsa_export.onnx_graph import LEAST_OPSET

SCOPES = "pkg.torch.onnx.name_scopes"
ROOT = "decoder."
# Buffers of a frozen module whose name in the graph is another.
STORED = {
    "scale": "weight/scale",
    "row_scale": "weight/row_scale",
    "row_codes": "row_scales",
    "bias_codes": "bias",
    "bias_scale": "bias/scale",
    "bias_zero_point": "bias/zero_point",
}
OUTSIDE = "inputs"  # path of nodes that prepare positions and masks, outside of the decoder


class Names:
    """Gives each name once: a second use gets a number."""

    def __init__(self) -> None:
        self._used: Counter[str] = Counter()

    def unique(self, name: str) -> str:
        self._used[name] += 1
        return name if self._used[name] == 1 else f"{name}_{self._used[name]}"


def rename(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name every node and tensor, then drop the exporter's metadata (it holds machine paths)."""
    graph = model.graph
    paths = {node: _module_path(node) for node in graph}
    # Free all names first: a new name may be another value's old one.
    for index, value in enumerate(_values(graph)):
        value.meta["old"] = value.name
        value.name = f"#{index}"
    names = Names()
    fixed = {
        **dict(zip(graph.inputs, inputs, strict=True)),
        **dict(zip(graph.outputs, outputs, strict=True)),
    }
    for value, name in fixed.items():
        value.name = names.unique(name)
    _name_edges(graph, paths, names)
    _name_weights(graph, names)
    node_names = Names()
    for node, path in paths.items():
        node.name = node_names.unique(f"{path}/{node.op_type}")
        for output in node.outputs:
            if output.name.startswith("#"):
                output.name = names.unique(node.name)
    for value in [v for v in graph.initializers.values() if v.name.startswith("#")]:
        user = value.uses()[0]
        value.name = names.unique(f"{user.node.name}/{_input_name(user.node, user.idx)}")
    for item in (model, graph, *graph, *_values(graph)):
        item.metadata_props.clear()
    graph.name = "decoder"
    graph.doc_string = None


def _input_name(node: ir.Node, index: int) -> str:
    declared = onnx.defs.get_schema(node.op_type, LEAST_OPSET).inputs
    return str(declared[min(index, len(declared) - 1)].name)


def _module_path(node: ir.Node) -> str:
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "['', '']"))
    path: str = scopes[-2] if len(scopes) > 1 else ""
    return path.removeprefix(ROOT) or OUTSIDE


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from list(graph.initializers.values())
    for node in graph:
        yield from node.outputs


def _name_edges(graph: ir.Graph, paths: dict[ir.Node, str], names: Names) -> None:
    """Q and DQ of one edge share its scale and zero point."""
    encodings: dict[str, tuple[ir.Value, ir.Value]] = {}
    for node, path in paths.items():
        edge, _, action = path.rpartition(".")
        if action not in ("quantize", "dequantize") or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        paths[node] = edge
        if edge not in encodings:
            encodings[edge] = (node.inputs[1], node.inputs[2])
            node.inputs[1].name, node.inputs[2].name = names.unique(f"{edge}/scale"), names.unique(f"{edge}/zero_point")
        else:
            old = (node.inputs[1], node.inputs[2])
            for position, value in zip((1, 2), encodings[edge], strict=True):
                node.replace_input_with(position, value)
            for value in old:
                if not value.uses():
                    del graph.initializers[value.name]
        source = node.inputs[0]
        if action == "quantize" and source.producer() is not None and source.name.startswith("#"):
            source.name = names.unique(edge)
        if node.outputs[0].name.startswith("#"):
            node.outputs[0].name = names.unique(f"{edge}/{'q' if action == 'quantize' else 'dq'}")


def _name_weights(graph: ir.Graph, names: Names) -> None:
    """Parameters and buffers by their state-dict name; a table read by rows is the embedding's."""
    for value in list(graph.initializers.values()):
        if not value.name.startswith("#"):
            continue
        old: str = value.meta["old"]
        consumers = {user.node.op_type for user in value.uses()}
        if not old.startswith(ROOT):
            if not old.startswith("val_"):
                value.name = names.unique(old)
            continue
        name = old.removeprefix(ROOT).removesuffix("_t")
        if name == "head.proj.weight" and "Gather" in consumers:
            name = "embed.weight"
        module, _, kind = name.rpartition(".")
        name = f"{module}.{STORED[kind]}" if kind in STORED else name
        value.name = names.unique(name)

"""From a `torch.export` program to an ONNX graph: conversion, and the passes that give it its portable QDQ form.

The form: every Quantize/DequantizeLinear has its own scale and explicit zero point; linear weights are stored
[in, out] as `MatMul` wants them, dequantised along axis 1.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer
from torch.export import ExportedProgram

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.onnx_constant import constant
from mobileicsa_export.onnx_layout import layout_on_integers

LEAST_OPSET = 21  # the first with QDQ of 16 and of 4 bits
QDQ_OPS = ("QuantizeLinear", "DequantizeLinear")
INTEGER_TYPES = (ir.DataType.INT8, ir.DataType.INT16)


def convert(program: ExportedProgram, opset: int = LEAST_OPSET) -> ir.Model:
    """ONNX graph of that opset, shape arithmetic folded. Initialisers refer to the program's tensors, uncopied."""
    _check_ranges(program)
    if opset < LEAST_OPSET:
        raise Unsupported("QuantizeLinear", f"opset {opset} has none of 16 or 4 bits: {LEAST_OPSET} is needed at least")
    with _quiet():
        converted = torch.onnx.export(program, dynamo=True, opset_version=opset, optimize=False, verbose=False)
        if converted is None:
            raise Unsupported("torch.onnx.export", "returned no program")
        model: ir.Model = converted.model
        # Not onnxscript's whole optimiser: it would merge equal constants of different modules.
        optimizer.fold_constants(model)
        ir.passes.Sequential(
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
        )(model)
    return model


def to_qdq_form(model: ir.Model, weight_bits: Mapping[str, int]) -> None:
    """Apply this module's passes in place. `weight_bits`: stored bits by the program's weight name (4 = INT4)."""
    _give_each_its_encoding(model.graph)
    _orient_weights(model.graph, weight_bits)
    _type_sums(model.graph)
    layout_on_integers(model.graph)
    drop_unused(model.graph)


def _check_ranges(program: ExportedProgram) -> None:
    """ONNX saturates at the integer type's own limits: an encoding with others cannot be expressed."""
    for node in program.graph.nodes:
        if node.op == "call_function" and "quantize_per_tensor" in str(node.target):
            qmin, qmax, dtype = node.args[3:6]
            limits = torch.iinfo(dtype)
            if dtype not in (torch.int8, torch.int16) or (qmin, qmax) != (limits.min, limits.max):
                raise Unsupported(
                    "QuantizeLinear",
                    f"{node.name}: {dtype} with range [{qmin}, {qmax}] needs a full int8 or int16 range",
                )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about packages that it does not need (torchvision) and of its own coming changes."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _give_each_its_encoding(graph: ir.Graph) -> None:
    """Per-tensor scale and zero point become scalar initialisers, one pair for each Q/DQ node."""
    for index, node in enumerate(graph):
        if node.op_type not in QDQ_OPS or len(node.inputs) < 3:
            continue
        scale, zero = ir.convenience.get_const_tensor(node.inputs[1]), ir.convenience.get_const_tensor(node.inputs[2])
        if scale is None or zero is None or scale.size != 1:
            continue
        for position, label, tensor in ((1, "scale", scale), (2, "zero_point", zero)):
            copy = ir.tensor(np.asarray(tensor.numpy()).reshape(()), dtype=tensor.dtype)
            node.replace_input_with(position, constant(graph, f"qdq_{index}/{label}", copy))
        node.attributes.pop("axis", None)


def _orient_weights(graph: ir.Graph, weight_bits: Mapping[str, int]) -> None:
    done: dict[ir.Value, ir.Value] = {}  # a weight that several products read is turned once
    for node in list(graph):
        if node.op_type != "Transpose" or tuple(node.attributes["perm"].as_ints()) != (1, 0):
            continue
        source = node.inputs[0]
        if source.producer() is None and source.const_value is not None:
            if len(source.uses()) == 1:
                _replace(node, constant(graph, f"{source.name}_t", _transposed(source.const_value, 32)))
        elif source.producer() is not None and source.producer().op_type == "DequantizeLinear":
            weight = source.producer().inputs[0]
            if weight not in done:
                done[weight] = _oriented(graph, source.producer(), node, weight_bits)
            _replace(node, done[weight])


def _oriented(graph: ir.Graph, dequantize: ir.Node, before: ir.Node, weight_bits: Mapping[str, int]) -> ir.Value:
    """The real weight [in, out], dequantised along axis 1 from integers stored that way.

    A table that an embedding reads by rows too is stored once, as rows, and transposed in the graph;
    runtimes fold that when they load it.
    """
    weight = dequantize.inputs[0]
    name = weight.name
    scale = constant(graph, f"{name}/scale", _stored(dequantize.inputs[1]))
    if any(use.node.op_type != "DequantizeLinear" for use in weight.uses()):
        turn = ir.node("Transpose", [weight], attributes={"perm": (1, 0)}, name=f"{name}/transpose")
        turn.metadata_props.update(dequantize.metadata_props)
        graph.insert_before(before, turn)
        integers, dtype = turn.outputs[0], ir.DataType.INT8
        integers.dtype, integers.shape = dtype, ir.Shape(tuple(reversed(weight.const_value.shape)))
    else:
        dtype = ir.DataType.INT4 if weight_bits.get(name) == 4 else ir.DataType.INT8
        integers = constant(graph, f"{name}_t", _transposed(weight.const_value, dtype))
    zeros = ir.tensor(np.zeros(scale.shape.numpy(), dtype.numpy()), dtype=dtype)
    zero = constant(graph, f"{name}/zero_point", zeros)
    node = ir.node("DequantizeLinear", [integers, scale, zero], attributes={"axis": 1}, name=f"{name}/dequantize")
    node.metadata_props.update(dequantize.metadata_props)
    node.outputs[0].dtype, node.outputs[0].shape = ir.DataType.FLOAT, integers.shape
    graph.insert_before(before, node)
    return node.outputs[0]


def _stored(value: ir.Value) -> ir.TensorProtocol:
    """The stored tensor behind casts that change nothing."""
    while (producer := value.producer()) is not None and producer.op_type in ("Cast", "Identity"):
        value = producer.inputs[0]
    if value.const_value is None:
        raise Unsupported("DequantizeLinear", f"{value.name}: a weight's scale is not a constant")
    return value.const_value


def _transposed(tensor: ir.TensorProtocol, dtype: ir.DataType | int) -> ir.LazyTensor:
    """Computed only while its bytes are written, so that no second copy of the weights is held."""
    kind = tensor.dtype if isinstance(dtype, int) and not isinstance(dtype, ir.DataType) else dtype

    def turn() -> ir.TensorProtocol:
        array = np.ascontiguousarray(tensor.numpy().T)
        return ir.tensor(array.astype(kind.numpy()), dtype=kind)

    return ir.LazyTensor(turn, dtype=kind, shape=ir.Shape(tuple(reversed(tensor.shape))))


def _type_sums(graph: ir.Graph) -> None:
    """What the exporter leaves without: the type of a product before its bias, the names of an integer bias's grid."""
    for node in graph:
        if node.op_type == "MatMul":
            node.outputs[0].dtype = ir.DataType.FLOAT
        stored = node.inputs[0]
        if node.op_type == "DequantizeLinear" and stored.is_initializer() and stored.dtype == ir.DataType.INT32:
            for position, label in ((1, "scale"), (2, "zero_point")):
                name = f"{stored.name.removesuffix('codes')}{label}"
                node.replace_input_with(position, constant(graph, name, _stored(node.inputs[position])))


def _replace(node: ir.Node, value: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], value)


def drop_unused(graph: ir.Graph) -> None:
    """Remove nodes and initialisers that nothing reads."""
    for node in reversed(list(graph)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]

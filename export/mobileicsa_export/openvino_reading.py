"""How OpenVINO reads the QDQ graph: two operators that we translate in the place of its ONNX reader.

QuantizeLinear: its reader makes a FakeQuantize of each, computed as round(x * a + b) in float32 with b up to 32768 for
16 bits. That loses bits of x: one value of 700 falls on the neighbouring integer (measured), and few calls then agree.
Here it is what the simulator computes, clamp(round(x * (1 / scale)) + zero_point). Before products with a weight a
FakeQuantize follows that changes no integer: from it OpenVINO's low-precision passes make integer kernels.

Transpose of a constant (a tied head reads the embedding's table so): OpenVINO folds it after the dequantisation, and
the product would run in float.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino as ov
from openvino import opset13 as ops
from openvino.frontend.onnx import ConversionExtension

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.onnx_layout import LAYOUT_OPS
from mobileicsa_export.onnx_placement import weight_products

SCALED = "/scaled"
Outputs = list[Any]  # what a translation gives the reader


def read_core(scales_of_products: Collection[str]) -> ov.Core:
    """A core whose ONNX reader translates these operators so; `scales_of_products` as below."""
    core = ov.Core()
    core.add_extension(ConversionExtension("QuantizeLinear", partial(_quantize, scales_of_products)))
    core.add_extension(ConversionExtension("Transpose", _transpose))
    return core


def scales_of_products(graph: ir.Graph) -> frozenset[str]:
    """Names of the 8-bit scales with which the inputs of products with a weight are quantised."""
    names = set()
    for node in weight_products(graph):
        value = node.inputs[0]
        while value is not None and (producer := value.producer()) is not None:
            if producer.op_type == "QuantizeLinear" and producer.outputs[0].dtype == ir.DataType.INT8:
                names.add(producer.inputs[1].name)
                break
            value = producer.inputs[0] if producer.op_type in ("DequantizeLinear", *LAYOUT_OPS) else None
    return frozenset(names)


def _quantize(of_products: Collection[str], node: Any) -> Outputs:
    x, (scale, zero) = node.get_input(0), (_constant(node.get_input(i)) for i in (1, 2))
    if scale.size != 1:
        raise Unsupported("QuantizeLinear", "has one scale a channel; mobileicsa writes one a tensor")
    limits, zero_point = np.iinfo(zero.dtype), int(zero)
    low, high = float(limits.min), float(limits.max)
    scaled = ops.multiply(x, np.float32(1.0 / float(scale)))
    # OpenVINO joins it with the scales of a product before it, and the kernel then has this name only.
    scaled.set_friendly_name(x.get_node().get_friendly_name() + SCALED)
    moved = ops.add(ops.round(scaled, "half_to_even"), np.float32(zero_point))
    rounded = ops.clamp(moved, low, high)
    if node.get_input(1).get_node().get_friendly_name() in of_products:
        ends = [np.float32(end) for end in (low, high)]
        rounded = ops.fake_quantize(rounded, *ends, *ends, levels=1 << limits.bits)
    return _outputs(ops.convert(rounded, zero.dtype.name.replace("int", "i")))


def _transpose(node: Any) -> Outputs:
    data, order = node.get_input(0), list(node.get_attribute("perm"))
    if data.get_node().get_type_name() == "Constant":
        return _outputs(ops.constant(np.ascontiguousarray(_constant(data).transpose(order))))
    return _outputs(ops.transpose(data, np.array(order, dtype=np.int64)))


def _outputs(node: Any) -> Outputs:
    outputs: Outputs = node.outputs()
    return outputs


def _constant(value: Any) -> np.ndarray[Any, Any]:
    node = value.get_node()
    if node.get_type_name() != "Constant":
        raise Unsupported("QuantizeLinear", f"scale or zero point comes from {node.get_type_name()}, not a constant")
    array: np.ndarray[Any, Any] = node.data
    return array

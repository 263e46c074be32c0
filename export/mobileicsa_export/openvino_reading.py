"""How OpenVINO reads the QDQ graph: two operators that we translate in the place of its ONNX reader.

QuantizeLinear: its reader makes a FakeQuantize of each, computed as round(x * a + b) in float32 with b up to 32768 for
16 bits. That loses eight bits of x: one value of 700 falls on the neighbouring integer (measured). 8-bit ones stay
FakeQuantize, from which OpenVINO's low-precision passes make integer kernels; 16-bit ones become what the simulator
computes, clamp(round(x * (1 / scale)) + zero_point).

Transpose of a constant (a tied head reads the embedding's table so): OpenVINO folds it after the dequantisation, and
the product would run in float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.frontend.onnx import ConversionExtension

from mobileicsa.core.errors import Unsupported

SCALED = "/scaled"
Outputs = list[Any]  # what a translation gives the reader


def read_core() -> ov.Core:
    """A core whose ONNX reader translates these operators so."""
    core = ov.Core()
    for name, translate in (("QuantizeLinear", _quantize), ("Transpose", _transpose)):
        core.add_extension(ConversionExtension(name, translate))
    return core


def _quantize(node: Any) -> Outputs:
    x, (scale, zero) = node.get_input(0), (_constant(node.get_input(i)) for i in (1, 2))
    if scale.size != 1:
        raise Unsupported("QuantizeLinear", "has one scale a channel; mobileicsa writes one a tensor")
    limits, zero_point = np.iinfo(zero.dtype), int(zero)
    if limits.bits == 8:
        low, high = (np.float32(scale) * np.float32(limit - zero_point) for limit in (limits.min, limits.max))
        rounded = ops.fake_quantize(x, low, high, np.float32(limits.min), np.float32(limits.max), levels=256)
    else:
        scaled = ops.multiply(x, np.float32(1.0 / float(scale)))
        # OpenVINO joins it with the scales of a product before it, and the kernel then has this name only.
        scaled.set_friendly_name(x.get_node().get_friendly_name() + SCALED)
        moved = ops.add(ops.round(scaled, "half_to_even"), np.float32(zero_point))
        rounded = ops.clamp(moved, float(limits.min), float(limits.max))
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

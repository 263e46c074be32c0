"""Tiny frozen models and graphs for the tests of the Qualcomm HTP back end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from mobileicsa_export.onnx import OnnxBackend
from onnx import TensorProto, helper, numpy_helper
from tiny_frozen import CHUNK, CONTEXT

from mobileicsa.core.target import Target
from mobileicsa.program.frozen import FrozenModel, build_decoder

METADATA: dict[str, Any] = {"bos_id": 1, "eos_ids": [2], "prefix_ids": [], "context": CONTEXT}


def htp_target(arch: int = 75, soc: int = 57, **changes: Any) -> Target:
    values = {
        "name": f"test-v{arch}",
        "description": "small shapes for tests",
        "backends": ["qnn-htp"],
        "nonlinear": "primitive",
        "context": CONTEXT,
        "prefill_chunk": CHUNK,
        "device": {"htp_arch": arch, "soc_model": soc},
    }
    return Target.from_mapping({**values, **changes}, "test")


def portable(frozen: FrozenModel, folder: Path) -> Path:
    """The portable QDQ files of a tiny model."""
    OnnxBackend().write(build_decoder(frozen, primitive=True), htp_target(), folder, METADATA)
    return folder


def int4_product(path: Path, zero_point: int) -> dict[str, np.ndarray]:
    """Write y = x W with 4-bit weights of one scale and that zero point; returns an input.

    Large enough for the kernel that goes wrong: one with 32 outputs takes another.
    """
    random = np.random.default_rng(2)
    codes = random.integers(-7, 8, 64 * 64)
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["x_real"], name="x_dq"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], name="w_dq"),
        helper.make_node("MatMul", ["x_real", "w_real"], ["y_real"], name="product"),
        helper.make_node("QuantizeLinear", ["y_real", "y_scale", "y_zero"], ["y"], name="y_q"),
    ]
    numbers = {"x_scale": np.float32(0.02), "w_scale": np.float32(0.05), "y_scale": np.float32(0.1)}
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in numbers.items()]
    constants += [numpy_helper.from_array(np.uint8(150), "x_zero"), numpy_helper.from_array(np.uint8(128), "y_zero")]
    constants += [
        helper.make_tensor("w", TensorProto.INT4, [64, 64], codes.tolist()),
        helper.make_tensor("w_zero", TensorProto.INT4, [], [zero_point]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, [8, 64])
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, [8, 64])
    graph = helper.make_graph(nodes, "product", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return {"x": random.integers(0, 256, (8, 64)).astype(np.uint8)}

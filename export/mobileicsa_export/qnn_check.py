"""What Qualcomm's HTP cannot take, found before it computes something else."""

from __future__ import annotations

import onnx_ir as ir

from mobileicsa.core.errors import Unsupported
from mobileicsa.core.target import Target

INT4 = (ir.DataType.INT4, ir.DataType.UINT4)


def check_limits(model: ir.Model, target: Target) -> None:
    """Unsupported where 4-bit weights are not symmetric, or the constants pass the target's ceiling."""
    check_int4(model.graph)
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    if target.max_bytes is not None and size > target.max_bytes:
        raise Unsupported(
            "context",
            f"{size} bytes of constants pass the {target.max_bytes} that one HTP context of {target.name} holds: "
            "export parts of the model with --layers START:STOP",
        )


def check_int4(graph: ir.Graph) -> None:
    """4-bit weights have zero point 0. With another the compiler says nothing and the products are wrong: a whole
    block gave 17 dB instead of 30 dB on the emulator."""
    for node in graph:
        if node.op_type != "DequantizeLinear" or node.inputs[0].dtype not in INT4 or len(node.inputs) < 3:
            continue
        zeros = ir.convenience.get_const_tensor(node.inputs[2])
        if zeros is None or zeros.numpy().any():
            raise Unsupported(
                "DequantizeLinear",
                f"{node.name or node.inputs[0].name}: 4-bit weights need zero point 0 on the HTP, which computes wrong "
                "products for others without an error",
            )

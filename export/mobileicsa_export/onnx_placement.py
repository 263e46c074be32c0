"""Where each operator of a written model runs in ONNX Runtime: counted from a profiled step, not from the file."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from mobileicsa_export.onnx import MODEL_FILES
from mobileicsa_export.onnx_session import start

INTEGER_PRODUCTS = ("QLinearMatMul", "MatMulIntegerToFloat")
FLOAT_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
BOUNDARIES = ("QuantizeLinear", "DequantizeLinear", "Cast")
TYPES = {"tensor(int64)": np.int64, "tensor(int8)": np.int8, "tensor(float)": np.float32}


def placement(folder: Path, method: str = "decode") -> dict[str, Any]:
    """Kernels of one step by kind: `integer` (arithmetic or movement of integers), `float`, `boundary` (Q, DQ).

    `by_op` counts each operator as {"integer": n, "float": n, "boundary": n}; `products` are matrix products
    with a weight or between activations, in integer and in float kernels.
    """
    kernels = _executed(folder / MODEL_FILES[method])
    totals: Counter[str] = Counter({"integer": 0, "float": 0, "boundary": 0})
    by_op: dict[str, Counter[str]] = {}
    products: Counter[str] = Counter({"integer": 0, "float": 0})
    for op, types in kernels:
        kind = _kind(op, types)
        totals[kind] += 1
        by_op.setdefault(op, Counter())[kind] += 1
        if op in INTEGER_PRODUCTS or op in FLOAT_PRODUCTS:
            products["integer" if op in INTEGER_PRODUCTS else "float"] += 1
    return {**totals, "products": dict(products), "by_op": {op: dict(by_op[op]) for op in sorted(by_op)}}


def _kind(op: str, types: list[str]) -> str:
    if op in BOUNDARIES:
        return "boundary"
    # MatMulIntegerToFloat sums integers and scales the sum once; its scales are float inputs.
    if op in INTEGER_PRODUCTS or "float" not in types:
        return "integer"
    return "float"


def _executed(path: Path) -> list[tuple[str, list[str]]]:
    """Operator and input types of every kernel of one step."""
    with tempfile.TemporaryDirectory() as scratch:
        session = start(path, threads=1, numerics="fast", profile=Path(scratch) / "step")
        session.run(None, {i.name: np.zeros(i.shape, TYPES[i.type]) for i in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return [(k["op_name"], [t for entry in k["input_type_shape"] for t in entry]) for k in kernels]

"""One-operator programs on each engine: integers in, integers out, or the reason why an engine does not take them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from benchmarks.targets.operators import OneOperator
from mobileicsa.core.errors import MobileICSAError
from mobileicsa.program.backend import find_backend
from mobileicsa.program.targets import find_target

QNN_TARGET = "qnn-htp-v75"
OUTPUT = "y"
SIGN = {np.dtype(np.int8): (np.uint8, 0x80), np.dtype(np.int16): (np.uint16, 0x8000)}

Array = np.ndarray[Any, Any]
Engine = Callable[[OneOperator, Path], Array]


class _Dequantised(nn.Module):
    """The same program with a real-valued output on the integers' grid, as a whole model's logits are."""

    def __init__(self, inner: OneOperator) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *codes: torch.Tensor) -> torch.Tensor:
        return self.inner.out.load(self.inner(*codes))


def _program(module: nn.Module, operator: OneOperator) -> ExportedProgram:
    return torch.export.export(module.eval(), operator.codes, strict=False)


def _names(operator: OneOperator) -> list[str]:
    return [f"x{index}" for index in range(len(operator.codes))]


def _inputs(operator: OneOperator) -> dict[str, Array]:
    return {name: codes.numpy() for name, codes in zip(_names(operator), operator.codes, strict=True)}


def _written(operator: OneOperator, folder: Path, *, real: bool = False) -> Path:
    """The ONNX file of the program; 4-bit weights packed."""
    from mobileicsa_export.onnx_data import SharedData
    from mobileicsa_export.onnx_graph import convert, to_qdq_form
    from mobileicsa_export.onnx_names import rename

    module, prefix = (_Dequantised(operator), "inner.") if real else (operator, "")
    model = convert(_program(module, operator))
    to_qdq_form(model, {f"{prefix}linear.weight": operator.operator.weight_bits})
    rename(model, _names(operator), [OUTPUT])
    path = folder / "model.onnx"
    with SharedData(folder / "model.onnx.data") as data:
        data.save(model, path)
    return path


def _onnxruntime(operator: OneOperator, folder: Path) -> Array:
    from mobileicsa_export.onnx_session import start

    session = start(_written(operator, folder), threads=1, numerics="fast")
    (found,) = session.run([OUTPUT], _inputs(operator))
    return np.asarray(found)


def _openvino(operator: OneOperator, folder: Path) -> Array:
    from mobileicsa_export.openvino_session import compile_method

    request = compile_method(_written(operator, folder), threads=1).create_infer_request()
    request.infer(_inputs(operator))
    return np.array(request.output_tensors[0].data)


def _htp(operator: OneOperator, folder: Path) -> Array:
    import onnx_ir as ir
    from mobileicsa_export.onnx_load import load_graph
    from mobileicsa_export.qnn_compile import start
    from mobileicsa_export.qnn_graph import to_htp_form

    model = load_graph(_written(operator, folder, real=True))
    to_htp_form(model)
    ir.save(model, folder / "htp.onnx")
    session = start(folder / "htp.onnx", find_target(QNN_TARGET), {}, {})
    given = {}
    for name, codes in _inputs(operator).items():
        kind, sign = SIGN[codes.dtype]
        given[name] = codes.view(kind) ^ kind(sign)
    (found,) = session.run(None, given)
    signed = {np.dtype(np.uint8): np.int8, np.dtype(np.uint16): np.int16}[found.dtype]
    _, sign = SIGN[np.dtype(signed)]
    return np.asarray(found ^ found.dtype.type(sign)).view(signed)


def _tosa(operator: OneOperator, folder: Path) -> Array:
    import tosa_reference_model
    from mobileicsa_export.tosa_lowering import lower

    names = tuple(f"codes_{index}" for index in range(len(operator.codes)))
    lowered = lower(_program(operator, operator), names, (OUTPUT,))
    outputs, status = tosa_reference_model.run(
        lowered.flatbuffer, [codes.numpy() for codes in operator.codes], tosa_level="EIGHTK"
    )
    if status != tosa_reference_model.GraphStatus.TOSA_VALID:
        raise MobileICSAError(f"the reference model refuses it: {status}")
    return np.array(outputs[0])


# Column -> the back end that must be installed, and how it runs one operator.
ENGINES: dict[str, tuple[str, Engine]] = {
    "ONNX Runtime": ("onnx", _onnxruntime),
    "OpenVINO": ("openvino", _openvino),
    "HTP emulator": ("qnn-htp", _htp),
    "TOSA reference": ("tosa", _tosa),
}


def measure(operator: OneOperator, name: str) -> dict[str, Any]:
    """{"equal_share", "max_steps"} of an engine against the simulator, or {"unsupported": reason}."""
    backend, engine = ENGINES[name]
    reason = find_backend(backend).unavailable()
    if reason is not None:
        return {"absent": reason}
    expected = operator.simulated().numpy()
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = partial(engine, operator)(Path(folder))
        except MobileICSAError as error:
            return {"unsupported": error.message.splitlines()[0]}
        except Exception as error:  # an engine's own words
            return {"unsupported": f"{type(error).__name__}: {error}".splitlines()[0]}
    steps = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    return {"equal_share": float((steps == 0).mean()), "max_steps": int(steps.max())}

"""Adapters of an ONNX file: optional inputs, zeros unless ONNX Runtime's adapter format gives them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
from torch import Tensor

from mobileicsa.core.errors import VerificationError
from mobileicsa.io.atomic import REMEDY, WriteFault


def make_optional(graph: ir.Graph, inputs: Mapping[str, Tensor]) -> None:
    """Give the graph's inputs of these names the default that each has here."""
    for value in graph.inputs:
        if value.name in inputs:
            value.const_value = ir.tensor(inputs[value.name].numpy(), name=value.name)
            graph.register_initializer(value)


def optional_inputs(graph: ir.Graph) -> list[str]:
    return [value.name or "" for value in graph.inputs if value.is_initializer()]


def write_adapter(path: Path, inputs: Mapping[str, Tensor]) -> None:
    form = ort.AdapterFormat()
    form.set_adapter_version(1)
    form.set_model_version(1)
    form.set_parameters({name: ort.OrtValue.ortvalue_from_numpy(tensor.numpy()) for name, tensor in inputs.items()})
    try:
        form.export_adapter(str(path))
    except RuntimeError as error:
        raise WriteFault(f"{path}: cannot be written: {error}", hint=REMEDY) from error


def with_adapter(path: Path, *options: ort.RunOptions) -> ort.LoraAdapter:
    """The adapter of that file, added to `options`, which it must outlive (ONNX Runtime 1.32 does not keep it).

    VerificationError where it cannot be read.
    """
    adapter = ort.LoraAdapter()
    try:
        adapter.Load(str(path))
        for one in options:
            one.add_active_adapter(adapter)
    except Exception as error:
        raise VerificationError(f"{path}: ONNX Runtime cannot load it: {error}", hint="export it again") from error
    return adapter

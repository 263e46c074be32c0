"""Reads an ONNX graph without its weights, and checks where and how long these are, before any runtime does.

ONNX Runtime follows hard links out of the folder and maps files without checking their length first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from mobileicsa.core.errors import InputError, VerificationError
from mobileicsa.io.paths import inside


def load_graph(path: Path) -> ir.Model:
    """The model with references to its external data, all of which lie in the model's folder and are whole.

    InputError where a reference leads elsewhere, VerificationError where the file is not a sound model.
    """
    inside(path.parent, path.name)
    if not path.is_file():
        raise VerificationError(f"{path}: is missing")
    try:
        model = ir.load(path)
        tensors = list(_external_tensors(model))
    except Exception as error:
        raise VerificationError(
            f"{path}: is not an ONNX model: {type(error).__name__}: {error}",
            hint="the file is damaged: export it again",
        ) from error
    if model.functions:
        raise VerificationError(f"{path}: holds functions; mobileicsa writes none")
    for tensor in tensors:
        _check_place(path, tensor)
    return model


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            held = attribute.value if attribute.type == ir.AttributeType.TENSORS else (attribute.value,)
            yield from (tensor for tensor in held if isinstance(tensor, ir.ExternalTensor))


def _check_place(path: Path, tensor: ir.ExternalTensor) -> None:
    try:
        file = inside(path.parent, str(tensor.location))
    except InputError as error:
        raise InputError(f"{path}: tensor {tensor.name}: {error.message}", hint=error.hint) from error
    size = file.stat().st_size if file.is_file() else 0
    end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if (tensor.offset or 0) < 0 or tensor.nbytes > (tensor.length or tensor.nbytes) or end > size:
        raise VerificationError(
            f"{file}: has {size} bytes, tensor {tensor.name} of {path.name} ends at {end}",
            hint="the file is damaged or belongs to another model: export it again",
        )

"""Encodings of a frozen decoder as AIMET and QNN read them (JSON forms 0.6.1, 1.0.0), by tensor name of model.onnx.

Both store unsigned grids: real = scale * (u + offset) with u in [0, 2**bits - 1]. Our signed integer q with zero
point z is u = q + 2**(bits - 1), so offset = -(z + 2**(bits - 1)).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.io.atomic import write_bytes
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.qdq import QdqEdge, QuantEmbedding, QuantLinear

# Edges of stored constants are tensors of their own name in the model: the parameter or buffer beside the edge.
CONSTANT_TENSORS = {
    "gain": "weight",
    "shift": "bias",
    "inverse_size_edge": "inverse_size",
    "epsilon_edge": "epsilon",
    "inverse_cap_edge": "inverse_cap",
    "cap_edge": "cap_value",
}
FILES = {"0.6.1": "encodings_0.6.1.json", "1.0.0": "encodings_1.0.0.json"}


def write_encodings(decoder: Decoder, folder: Path) -> tuple[Path, ...]:
    """Both forms, complete for every edge and weight of a frozen decoder, into `folder`; their paths."""
    activations, parameters = collect(decoder)
    forms = {"0.6.1": _form_061(activations, parameters), "1.0.0": _form_100(activations, parameters)}
    for form, data in forms.items():
        # No indentation: an embedding has one entry a row.
        write_bytes(folder / FILES[form], json.dumps(data, separators=(",", ":")).encode() + b"\n")
    return tuple(folder / name for name in FILES.values())


def collect(decoder: Decoder) -> tuple[dict[str, TensorEncoding], dict[str, TensorEncoding]]:
    """Encodings of activations and of parameters by tensor name; both empty for a float decoder."""
    activations: dict[str, TensorEncoding] = {}
    parameters: dict[str, TensorEncoding] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, QdqEdge):
            owner, _, attribute = name.rpartition(".")
            if attribute in CONSTANT_TENSORS:
                parameters[f"{owner}.{CONSTANT_TENSORS[attribute]}"] = module.encoding
            else:
                activations[name] = module.encoding
        elif isinstance(module, QuantLinear):
            if not (decoder.spec.tied_head and name == "head.proj"):
                parameters[f"{name}.weight"] = _per_row(module.scale, module.encoding.bits, module.encoding.narrow)
            if module.bias_scale is not None:
                parameters[f"{name}.bias"] = _per_row(module.bias_scale, 32)
        elif isinstance(module, QuantEmbedding):
            parameters[f"{name}.weight"] = _per_row(module.row_scale, module.encoding.bits, module.encoding.narrow)
    return activations, parameters


def _per_row(scale: Tensor, bits: int, narrow: bool = False) -> TensorEncoding:
    scales = tuple(scale.flatten().tolist())
    return TensorEncoding(bits=bits, scale=scales, zero_point=(0,) * len(scales), axis=0, narrow=narrow)


def _offsets(encoding: TensorEncoding) -> list[int]:
    return [-(zero + 2 ** (encoding.bits - 1)) for zero in encoding.zero_point]


def _form_061(activations: Mapping[str, TensorEncoding], parameters: Mapping[str, TensorEncoding]) -> dict[str, Any]:
    def entries(encoding: TensorEncoding) -> list[dict[str, Any]]:
        steps = 2**encoding.bits - 1
        return [
            {
                "bitwidth": encoding.bits,
                "dtype": "int",
                "is_symmetric": str(encoding.symmetric),
                "max": scale * (offset + steps),
                "min": scale * offset,
                "offset": offset,
                "scale": scale,
            }
            for scale, offset in zip(encoding.scale, _offsets(encoding), strict=True)
        ]

    return {
        "version": "0.6.1",
        "activation_encodings": {name: entries(e) for name, e in activations.items()},
        "param_encodings": {name: entries(e) for name, e in parameters.items()},
    }


def _form_100(activations: Mapping[str, TensorEncoding], parameters: Mapping[str, TensorEncoding]) -> dict[str, Any]:
    def entry(name: str, encoding: TensorEncoding) -> dict[str, Any]:
        return {
            "name": name,
            "bw": encoding.bits,
            "dtype": "INT",
            "enc_type": "PER_TENSOR" if encoding.per_tensor else "PER_CHANNEL",
            "is_sym": encoding.symmetric,
            "offset": _offsets(encoding),
            "scale": list(encoding.scale),
        }

    return {
        "version": "1.0.0",
        "activation_encodings": [entry(name, e) for name, e in activations.items()],
        "param_encodings": [entry(name, e) for name, e in parameters.items()],
    }

"""Encodings of a decoder as AIMET and QNN read them (JSON forms 0.6.1, 1.0.0, 2.0.0), by tensor names of the files.

The older two store unsigned grids: real = scale * (u + offset) with u in [0, 2**bits - 1]. Our signed integer q with
zero point z is u = q + 2**(bits - 1), so offset = -(z + 2**(bits - 1)). Form 2.0.0 is ours: scale * (q - z), an axis.

Every real-valued tensor beside a Q or DQ of the ONNX files has its entry: the value before Q (the edge's own name),
the value behind DQ, logits, and the cache's rows in and out, which the files carry as integers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor

from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.plan import WeightEncoding
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
CACHE_EDGES = {"key": "k_out", "value": "v_out"}


def write_encodings(decoder: Decoder, graphs: Iterable[ir.Graph], folder: Path) -> tuple[Path, ...]:
    """All forms, complete for the files' graphs of a frozen decoder, into `folder`; their paths."""
    edges, parameters = collect(decoder)
    tensors = {name: edge for graph in graphs for name, edge in _tensors(graph).items() if edge in edges}
    activations = {name: edges[edge] for name, edge in tensors.items() if name not in parameters}
    for layer, (kind, edge) in itertools.product(range(decoder.spec.num_layers), CACHE_EDGES.items()):
        for side in ("past_key_values", "present"):
            activations[f"{side}.{layer}.{kind}"] = edges[f"layers.{layer}.attn.{edge}"]
    for form, write in FORMS.items():
        # No indentation: an embedding has one entry a row.
        data = {"version": form, **write(activations, parameters)}
        write_bytes(folder / FILES[form], json.dumps(data, separators=(",", ":")).encode() + b"\n")
    return tuple(folder / name for name in FILES.values())


def _tensors(graph: ir.Graph) -> dict[str, str]:
    """The edge of each real-valued tensor before a Q or behind a DQ, by the name that both share with their scale."""
    sides = {"QuantizeLinear": lambda node: node.inputs[0], "DequantizeLinear": lambda node: node.outputs[0]}
    return {
        sides[node.op_type](node).name: node.inputs[1].name.removesuffix("/scale")
        for node in graph
        if node.op_type in sides
    }


def collect(decoder: Decoder) -> tuple[dict[str, TensorEncoding], dict[str, TensorEncoding]]:
    """Encodings of edges by their names, and of parameters by tensor name; both empty for a float decoder."""
    edges: dict[str, TensorEncoding] = {}
    parameters: dict[str, TensorEncoding] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, QdqEdge):
            owner, _, attribute = name.rpartition(".")
            edges[name] = module.encoding
            if attribute in CONSTANT_TENSORS:
                parameters[f"{owner}.{CONSTANT_TENSORS[attribute]}"] = module.encoding
        elif isinstance(module, QuantLinear):
            if not (decoder.spec.tied_head and name == "head.proj"):
                # The files hold a linear's weight [in, out].
                parameters[f"{name}.weight"] = _per_channel(module.scale, module.encoding, axis=1)
            if module.bias_scale is not None:
                parameters[f"{name}.bias"] = _channels(module.bias_scale, axis=0, bits=32)
        elif isinstance(module, QuantEmbedding):
            parameters[f"{name}.weight"] = _per_channel(module.row_scale, module.encoding, axis=0)
    return edges, parameters


def _per_channel(scale: Tensor, weight: WeightEncoding, axis: int) -> TensorEncoding:
    return _channels(scale, axis, weight.bits, weight.narrow)


def _channels(scale: Tensor, axis: int, bits: int, narrow: bool = False) -> TensorEncoding:
    scales = tuple(scale.flatten().tolist())
    return TensorEncoding(bits=bits, scale=scales, zero_point=(0,) * len(scales), axis=axis, narrow=narrow)


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
        "activation_encodings": [entry(name, e) for name, e in activations.items()],
        "param_encodings": [entry(name, e) for name, e in parameters.items()],
    }


def _form_200(activations: Mapping[str, TensorEncoding], parameters: Mapping[str, TensorEncoding]) -> dict[str, Any]:
    def entry(name: str, encoding: TensorEncoding) -> dict[str, Any]:
        scales, zeros = list(encoding.scale), list(encoding.zero_point)
        return {
            "name": name,
            "output_dtype": f"int{encoding.bits}",
            "y_scale": scales[0] if encoding.per_tensor else scales,
            **({} if encoding.symmetric else {"y_zero_point": zeros[0] if encoding.per_tensor else zeros}),
            **({} if encoding.per_tensor else {"axis": encoding.axis}),
        }

    return {"encodings": [entry(name, e) for name, e in {**activations, **parameters}.items()]}


FORMS = {"0.6.1": _form_061, "1.0.0": _form_100, "2.0.0": _form_200}
FILES = {form: f"encodings_{form}.json" for form in FORMS}

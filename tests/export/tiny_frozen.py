"""Tiny random models with plans calibrated on random tokens, and short generations with them, for exporters' tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobileicsa.core.encoding import activation, symmetric
from mobileicsa.core.plan import QuantPlan, WeightEncoding
from mobileicsa.core.scheme import QuantScheme, find_scheme
from mobileicsa.core.spec import LayerSpec, ModelSpec, RopeSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.edge import Edge, replace_edges
from mobileicsa.program.frozen import FrozenModel
from mobileicsa.program.methods import Method
from mobileicsa.quantize.derived import derived_edges

CONTEXT, CHUNK, VOCAB = 24, 6, 96


def target(int4_storage: str = "int8", nonlinear: str = "fused") -> Target:
    return Target.from_mapping(
        {
            "name": "test",
            "description": "small shapes for tests",
            "backends": ["onnx", "executorch"],
            "int4_storage": int4_storage,
            "nonlinear": nonlinear,
            "context": CONTEXT,
            "prefill_chunk": CHUNK,
        },
        "test",
    )


def tiny_spec(**changes: Any) -> ModelSpec:
    head_dim = 16
    values: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": head_dim,
        "layers": (LayerSpec(), LayerSpec()),
        "ropes": (RopeSpec(inv_freq=tuple(100.0 ** (-2 * i / head_dim) for i in range(head_dim // 2))),),
        "attention_scale": head_dim**-0.5,
        "max_context": 64,
        "bos_id": 1,
        "eos_ids": (2,),
    }
    return ModelSpec(**{**values, **changes})


class _Range(Edge):
    def __init__(self, edge: Edge) -> None:
        super().__init__(edge.role, edge.fixed)
        self.low, self.high = 0.0, 0.0

    def store(self, x: Tensor) -> Tensor:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        return x


def float_decoder(spec: ModelSpec, *, primitive: bool = False) -> Decoder:
    """Random weights, seeded: the same numbers whichever form is asked for."""
    decoder = Decoder(spec, primitive=primitive)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in decoder.named_parameters():
        if "norm" in name:
            parameter.data = 1.0 + 0.1 * torch.randn(parameter.shape, generator=generator)
        else:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    if spec.tied_head:
        decoder.head.proj.weight = decoder.embed.weight
    return decoder.eval()


def _mantissa(scheme: QuantScheme, role: str) -> int | None:
    return None if role == "constant" else scheme.mantissa_bits(role)


def tiny_frozen(scheme: str = "w8a8", **changes: Any) -> FrozenModel:
    return freeze(tiny_spec(**changes), scheme)


@torch.no_grad()
def freeze(spec: ModelSpec, scheme: str = "w8a8") -> FrozenModel:
    """A random model of that spec, quantised."""
    bits = find_scheme(scheme)
    decoder = float_decoder(spec, primitive=True)
    ranges: dict[str, _Range] = {}

    def observe(name: str, edge: Edge) -> Edge:
        ranges[name] = _Range(edge)
        return ranges[name]

    replace_edges(decoder, observe)
    decoder(torch.randint(0, spec.vocab_size, (4, 2 * CHUNK), generator=torch.Generator().manual_seed(3)))
    edges = {
        n: activation(*(r.fixed or (r.low, r.high)), bits.bits(r.role), _mantissa(bits, r.role))
        for n, r in ranges.items()
        if r.role != "derived"
    }
    tensors: dict[str, Tensor] = {}
    weights: dict[str, WeightEncoding] = {}
    for name, parameter in decoder.named_parameters():
        if name == "head.proj.weight" and spec.tied_head:
            continue
        if "proj.weight" not in name and name not in ("embed.weight", "head.mix.weight"):
            tensors[name] = parameter.data
            continue
        weights[name] = WeightEncoding(bits=8 if name.startswith(("embed.", "head.")) else bits.weight_bits)
        encoding = symmetric(parameter.abs().amax(1).tolist(), weights[name].bits, axis=0)
        scale = torch.tensor(encoding.scale)
        tensors[f"{name}.scale"] = scale
        tensors[name] = (parameter / scale[:, None]).round().clamp(encoding.qmin, encoding.qmax).to(torch.int8)
    edges |= derived_edges(spec, edges, tensors["embed.weight.scale"])
    return FrozenModel(QuantPlan(spec=spec, scheme=bits, edges=edges, weights=weights), tensors)


Step = Callable[[str, np.ndarray, int, list[np.ndarray]], tuple[np.ndarray, list[np.ndarray]]]


def generate(decoder: Decoder, step: Step, dtype: type = np.int8) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Logits and rows of one prefill and three decode calls; `step(method, ids, position, cache)`."""
    spec = decoder.spec
    shape = (1, spec.num_kv_heads, CONTEXT, spec.head_dim)
    cache = [np.zeros(shape, dtype) for _ in range(2 * spec.num_layers)]
    ids = np.random.default_rng(5).integers(0, VOCAB, (1, CHUNK + 3))
    calls, position, results = [("prefill", CHUNK), ("decode", 1), ("decode", 1), ("decode", 1)], 0, []
    for method, length in calls:
        logits, rows = step(method, ids[:, position : position + length], position, cache)
        results.append((np.array(logits), [np.array(row) for row in rows]))
        for slots, row in zip(cache, rows, strict=True):
            slots[:, :, position : position + length] = row
        position += length
    return results


def eager(decoder: Decoder) -> Step:
    """The simulator: the decoder's methods run by PyTorch."""
    methods = {n: Method(decoder, length=t, context=CONTEXT).eval() for n, t in (("prefill", CHUNK), ("decode", 1))}

    def step(
        method: str, ids: np.ndarray, position: int, cache: list[np.ndarray]
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        with torch.no_grad():
            tensors = [torch.from_numpy(c) for c in cache]
            logits, *rows = methods[method](torch.from_numpy(ids), torch.tensor([position]), *tensors)
        return logits.numpy(), [row.numpy() for row in rows]

    return step

"""A quantised Llama of any width with random weights: speed does not depend on what weights are."""

from __future__ import annotations

import torch
from torch import Tensor

from mobileicsa.core.encoding import activation, symmetric
from mobileicsa.core.plan import QuantPlan, WeightEncoding
from mobileicsa.core.scheme import find_scheme
from mobileicsa.core.spec import LayerSpec, ModelSpec, RopeSpec
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.edge import Edge, replace_edges
from mobileicsa.program.frozen import FrozenModel
from mobileicsa.quantize.derived import derived_edges

HEAD_DIM, GROUP, VOCAB = 64, 4, 4096
TOKENS = 16  # that the ranges are taken from


def random_spec(width: int, layers: int, context: int) -> ModelSpec:
    """Four query heads to a key head, an MLP three times as wide as the model, a tied head."""
    heads = max(width // HEAD_DIM, 1)
    return ModelSpec(
        model_type="llama",
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=3 * width,
        num_heads=heads,
        num_kv_heads=max(heads // GROUP, 1),
        head_dim=HEAD_DIM,
        layers=tuple(LayerSpec() for _ in range(layers)),
        ropes=(RopeSpec(inv_freq=tuple(10_000.0 ** (-2 * i / HEAD_DIM) for i in range(HEAD_DIM // 2))),),
        attention_scale=HEAD_DIM**-0.5,
        max_context=context,
        bos_id=1,
        eos_ids=(2,),
    )


class _Range(Edge):
    def __init__(self, edge: Edge) -> None:
        super().__init__(edge.role, edge.fixed)
        self.low, self.high = 0.0, 0.0

    def store(self, x: Tensor) -> Tensor:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        return x


@torch.no_grad()
def random_frozen(spec: ModelSpec, scheme: str) -> FrozenModel:
    """Ranges of a few random tokens, weights rounded to nearest; the same for the same spec."""
    bits = find_scheme(scheme)
    decoder = Decoder(spec, primitive=True)
    generator = torch.Generator().manual_seed(7)
    for name, parameter in decoder.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5
        if "norm" in name:
            parameter.data = torch.ones(parameter.shape)
    decoder.head.proj.weight = decoder.embed.weight
    ranges: dict[str, _Range] = {}

    def observe(name: str, edge: Edge) -> Edge:
        ranges[name] = _Range(edge)
        return ranges[name]

    replace_edges(decoder, observe)
    decoder.eval()(torch.randint(0, spec.vocab_size, (1, TOKENS), generator=generator))
    edges = {}
    for name, found in ranges.items():
        if found.role != "derived":
            mantissa = None if found.role == "constant" else bits.mantissa_bits(found.role)
            edges[name] = activation(*(found.fixed or (found.low, found.high)), bits.bits(found.role), mantissa)
    tensors: dict[str, Tensor] = {}
    weights: dict[str, WeightEncoding] = {}
    for name, parameter in decoder.named_parameters():
        if name == "head.proj.weight":
            continue
        if "proj.weight" not in name and name != "embed.weight":
            tensors[name] = parameter.data
            continue
        weights[name] = WeightEncoding(bits=8 if name == "embed.weight" else bits.weight_bits)
        encoding = symmetric(parameter.abs().amax(1).tolist(), weights[name].bits, axis=0)
        tensors[f"{name}.scale"] = scale = torch.tensor(encoding.scale)
        tensors[name] = (parameter / scale[:, None]).round().clamp(encoding.qmin, encoding.qmax).to(torch.int8)
    edges |= derived_edges(spec, edges, tensors["embed.weight.scale"])
    return FrozenModel(QuantPlan(spec=spec, scheme=bits, edges=edges, weights=weights), tensors)

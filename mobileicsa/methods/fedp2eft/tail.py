"""The last blocks of a frozen decoder, with plain linears under their Hugging Face names, to put adapters on.

What comes before them never changes, so that its outputs for all texts are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from mobileicsa.core.errors import InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import Decoder, DecoderLayer, positions_for
from mobileicsa.models.edge import Edge
from mobileicsa.models.families import family_named
from mobileicsa.models.load import empty_weights
from mobileicsa.models.sources import linear_modules


class ScaledEdge(Edge):
    """Multiplies by a constant: the attention scale, where the linear before it holds the checkpoint's own weight."""

    def __init__(self, role: str, scale: float) -> None:
        super().__init__(role)
        self.scale = scale

    def store(self, x: Tensor) -> Tensor:
        return x * self.scale


class Tail(nn.Module):
    """Blocks `first` ... of a decoder; hidden states (N, T, hidden) in, the last block's output out.

    Every linear is an `nn.Linear` with the checkpoint's weight, so that an adapter trained here is one for the
    checkpoint; the attention scale, which the decoder folds into q, follows after q's rotation.
    """

    def __init__(self, decoder: Decoder, count: int) -> None:
        super().__init__()
        self.spec = decoder.spec
        self.first = decoder.spec.num_layers - count
        if not 0 <= self.first < decoder.spec.num_layers:
            raise InputError(f"fedp2eft: adapted_layers is {count}, the base has {decoder.spec.num_layers}")
        self.blocks = nn.ModuleList(
            _plain_block(decoder, index) for index in range(self.first, decoder.spec.num_layers)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        ropes, masks = positions_for(self.spec, 0, hidden.shape[1], hidden.device)
        for offset, block in enumerate(self.blocks):
            layer = self.spec.layers[self.first + offset]
            rope = None if layer.rope is None else ropes[layer.rope]
            hidden, _ = block(hidden, rope, masks[layer.sliding_window])
        return hidden

    def linears(self) -> Iterator[tuple[str, str]]:
        """(path in this module, Hugging Face name) of every linear, in order."""
        for offset in range(len(self.blocks)):
            for module in linear_modules(self.spec):
                yield f"blocks.{offset}.{module}", checkpoint_name(self.spec, self.first + offset, module)


def checkpoint_name(spec: ModelSpec, layer: int, module: str) -> str:
    """The Hugging Face name of a linear; InputError where the checkpoint fuses it with others."""
    source = family_named(spec.model_type, "model spec").tensors(spec)[f"layers.{layer}.{module}.weight"]
    if source.rows is not None or len(source.names) != 1:
        raise InputError(
            f"{spec.model_type}: {module} is part of a fused tensor ({source.names[0]})",
            hint="adapters are made for checkpoints whose q, k, v, gate and up are tensors of their own",
        )
    return source.names[0].removesuffix(".weight")


def linear_names(spec: ModelSpec) -> Sequence[str]:
    """Canonical path of every linear of the decoder's blocks, in order."""
    return [f"layers.{layer}.{module}" for layer in range(spec.num_layers) for module in linear_modules(spec)]


def _plain_block(decoder: Decoder, index: int) -> DecoderLayer:
    spec = decoder.spec
    with empty_weights():
        block = DecoderLayer(spec, index, primitive=False)
    block.load_state_dict(decoder.layers[index].state_dict(), assign=True)
    unscaled = 1.0 if spec.qk_norm else 1.0 / spec.attention_scale
    for path in linear_modules(spec):
        parent, _, name = path.rpartition(".")
        setattr(block.get_submodule(parent), name, _linear(block, path, unscaled if name == "q_proj" else 1.0))
    block.attn.q_out = ScaledEdge(block.attn.q_out.role, 1.0 / unscaled)
    return block.requires_grad_(False).eval()


def _linear(block: nn.Module, path: str, factor: float) -> nn.Linear:
    weight, bias = block.get_parameter(f"{path}.weight"), getattr(block.get_submodule(path), "bias", None)
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight if factor == 1.0 else weight * factor, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias * factor, requires_grad=False)
    return linear

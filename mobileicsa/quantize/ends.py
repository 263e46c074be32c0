"""The model's two ends: the stream behind the embedding, and the embedding's and head's own quantisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mobileicsa.calibrate.stream import BATCH, Stream, WeightSource, embed
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.decoder import Embedding, Head
from mobileicsa.models.load import empty_weights
from mobileicsa.quantize.block import Piece, encode_part, feeds_back, observe
from mobileicsa.quantize.feedback import Moments, round_linear
from mobileicsa.quantize.recipe import Recipe
from mobileicsa.quantize.rounding import Rounded, fake_quantize_weight, quantize_weight, rounding_facts


def start(
    spec: ModelSpec,
    weights: WeightSource,
    prefix: tuple[int, ...],
    windows: Tensor,
    scheme: QuantScheme,
    recipe: Recipe,
    offsets: Tensor | None,
) -> Stream:
    stream = embed(spec, weights, prefix, windows, offsets)
    if feeds_back(recipe, scheme):
        with empty_weights():
            embedding = Embedding(spec)
        table = fake_quantize_weight(weights.get("embed.weight"), WeightEncoding(bits=scheme.embedding_bits))
        embedding.weight = nn.Parameter(table, requires_grad=False)
        stream.quantized = embedding(windows)
    return stream


def embedding_and_head(
    spec: ModelSpec,
    weights: WeightSource,
    windows: Tensor,
    stream: Stream,
    scheme: QuantScheme,
    recipe: Recipe,
    has_prefix: bool,
) -> Piece:
    """`stream` is the one behind the last block; the piece is on the CPU. Peak memory: the logits of a quarter of a
    batch's tokens."""
    piece = Piece()
    with empty_weights():
        embedding, head = Embedding(spec), Head(spec)
    weights.fill(embedding, "embed.")
    weights.fill(head, "head.")
    if spec.tied_head:
        head.proj.weight = embedding.weight
    device = stream.content.device
    embedding.to(device)
    head.to(device)
    if spec.head_mix:
        _keep(piece, "head.mix.weight", head.mix.weight, scheme.head_bits, _mix(head, stream, scheme, recipe))
        if recipe.learn:
            piece.real["head.mix.weight"] = head.mix.weight.data
    observed = observe(embedding, 1, "embed")
    embedding(windows.to(device))
    encode_part("embed", observed, scheme, recipe, piece)
    batches = torch.split(stream.content, BATCH)
    observed = observe(head, len(batches), "head")
    for batch in batches:
        head(batch[:, ::4])
    encode_part("head", observed, scheme, recipe, piece)
    _keep(piece, "embed.weight", embedding.weight, scheme.embedding_bits)
    if not spec.tied_head:
        _keep(piece, "head.proj.weight", head.proj.weight, scheme.head_bits)
    piece.tensors["head.norm.weight"] = head.norm.weight.data.clone()
    for name, bias in (("head.norm.bias", head.norm.bias), ("head.proj.bias", head.proj.bias)):
        if bias is not None:
            piece.tensors[name] = bias.data.clone()
    if has_prefix:
        piece.tensors["prefix.logits"] = head(stream.prefix[:, -1:])[0, 0].clone()
    return piece.cpu()


def _keep(piece: Piece, name: str, weight: Tensor, bits: int, rounded: Rounded | None = None) -> None:
    """One weight's integers, to nearest unless they are given, and what the report says of them."""
    encoding = WeightEncoding(bits=bits)
    integers, scale = rounded or quantize_weight(name, weight, encoding, None)
    piece.tensors[name], piece.tensors[f"{name}.scale"] = integers, scale
    piece.weights[name] = encoding
    piece.report.setdefault("weights", {})[name] = rounding_facts(weight, integers, scale)


def _mix(head: Head, stream: Stream, scheme: QuantScheme, recipe: Recipe) -> Rounded | None:
    """A rotated head's mix, R^T diag(gain) R, rounded with error feedback at 8 bits too: its diagonal is the gains'
    mean, hundreds of times what lies beside it, and to nearest most of that would be 0."""
    if recipe.weights != "gptq":
        return None
    moments = Moments()
    for batch in torch.split(stream.content if stream.quantized is None else stream.quantized, BATCH):
        rows = head.norm(batch).flatten(0, 1)
        moments.add(rows, rows)
    return round_linear(head.mix.weight, moments, WeightEncoding(bits=scheme.head_bits))

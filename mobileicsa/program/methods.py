"""The two methods of a frozen program: prefill (a chunk of tokens) and decode (one), against a cache of fixed length.

Where the runtime can change the sizes of tensors, the cache may be exported with any number of rows: what attention
costs then grows with the conversation, not with the longest one that fits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import MASKED, Decoder, DecoderLayer, LayerCache, rope_table
from mobileicsa.program.adapters import adapter_inputs, given

LEAST_ROWS = 2  # of a cache whose length is left open: sizes 0 and 1 are special to torch.export


def attention_windows(spec: ModelSpec) -> list[int | None]:
    """The sliding windows that a model's layers have, None (no window) first: one mask for each."""
    return sorted({layer.sliding_window for layer in spec.layers}, key=lambda w: w or 0)


class Inputs(nn.Module):
    """What a decoder needs beside tokens and cache: RoPE tables of `context` positions, and attention masks.

    Both are kept as their edges store them: integers in a primitive program.
    """

    slots: Tensor
    allowed: Tensor
    masked: Tensor

    def __init__(self, decoder: Decoder, *, context: int) -> None:
        super().__init__()
        self.decoder = decoder
        self.windows = attention_windows(decoder.spec)
        self.register_buffer("slots", torch.arange(context), persistent=False)
        for index, (rope, edge) in enumerate(zip(decoder.spec.ropes, decoder.rope_edges(), strict=True)):
            cos, sin = rope_table(rope, torch.arange(context))
            self.register_buffer(f"cos_{index}", edge.store(cos), persistent=False)
            self.register_buffer(f"sin_{index}", edge.store(sin), persistent=False)
        allowed, masked = (decoder.mask.store(torch.tensor(value)) for value in (0.0, MASKED))
        self.mask_dtype = allowed.dtype
        # ONNX Runtime selects among 32-bit numbers, not among int16.
        wide = torch.float32 if allowed.is_floating_point() else torch.int32
        self.register_buffer("allowed", allowed.to(wide), persistent=False)
        self.register_buffer("masked", masked.to(wide), persistent=False)

    def stored(self, allowed: Tensor) -> Tensor:
        """The mask, as stored, that lets through where `allowed` (bool) is true."""
        return torch.where(allowed, self.allowed, self.masked).to(self.mask_dtype)

    def table_rows(self, table: str, positions: Tensor) -> Tensor:
        """Rows (T, 2n), as stored, of the buffer `cos_<rope>` or `sin_<rope>`."""
        return torch.nn.functional.embedding(positions, getattr(self, table))

    def ropes(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Tables (T, 2n), as loaded, of each of the model's RoPEs at `positions` (T,) int64."""
        return [
            (edge.load(self.table_rows(f"cos_{i}", positions)), edge.load(self.table_rows(f"sin_{i}", positions)))
            for i, edge in enumerate(self.decoder.rope_edges())
        ]


class Method(Inputs):
    """Run `length` tokens against a cache of `context` slots, or of fewer.

    Inputs: token_ids (1, T) int64; position (1,) int64 = number of valid cache slots = position of the first token;
    per layer the cache's keys and values, integers (1, kv_heads, slots, head_dim); the factors of an adapter, in the
    order of `adapter_inputs`, where the decoder has room for one.
    Outputs: logits (1, T, vocab) float32 on the logits grid; per layer the new rows (1, kv_heads, T, head_dim).
    The caller writes the new rows at slots position..position+T-1; rows of padding tokens are simply not written.
    """

    offsets: Tensor
    queries: Tensor

    def __init__(self, decoder: Decoder, *, length: int, context: int) -> None:
        super().__init__(decoder, context=context)
        self.register_buffer("offsets", torch.arange(length), persistent=False)
        # A mask's rows: once for each query head of a group where layers would repeat them. One token's are equal.
        group = 1 if decoder.primitive or length == 1 else decoder.spec.num_heads // decoder.spec.num_kv_heads
        self.register_buffer("queries", self.offsets.repeat(group), persistent=False)
        for index, window in enumerate(self.windows):
            distance = self.queries[:, None] - torch.arange(length)[None, :]
            allowed = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
            self.register_buffer(f"inner_mask_{index}", self.stored(allowed), persistent=False)

    def positions(self, position: Tensor, offsets: Tensor) -> Tensor:
        """Positions int64 of tokens `offsets` behind the first."""
        positions = position + offsets
        # Padding of the last chunk may reach past the table; its rows are never used.
        return positions.clamp(max=self.slots.shape[0] - 1)

    def stored_mask(self, index: int, position: Tensor, slots: Tensor) -> Tensor:
        """Mask (T or group * T, C + T), as stored, of `self.windows[index]`: cached `slots` (C,), then own tokens."""
        window = self.windows[index]
        cached = slots[None, :] < position
        if window is not None:
            cached = cached & (self.positions(position, self.queries)[:, None] - slots[None, :] < window)
        outer = self.stored(cached).expand(self.queries.shape[0], -1)
        return torch.cat((outer, getattr(self, f"inner_mask_{index}")), dim=1)

    def forward(self, token_ids: Tensor, position: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        layers = self.decoder.spec.num_layers
        with given(self.decoder, others[2 * layers :]):
            return self._forward(token_ids, position, *others[: 2 * layers])

    def _forward(self, token_ids: Tensor, position: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        positions = self.positions(position, self.offsets)
        ropes = self.ropes(positions)
        rows = past[0].shape[2]
        # A size that is left open is no int, and must not be compared: that would fix it.
        whole = isinstance(rows, int) and rows == self.slots.shape[0]
        slots = self.slots if whole else self.slots[:rows]
        masks = {
            window: self.decoder.mask.load(self.stored_mask(index, position, slots))
            for index, window in enumerate(self.windows)
        }
        cache = [(past[2 * i], past[2 * i + 1]) for i in range(len(past) // 2)]
        x, new = self.decoder.hidden(token_ids, ropes, masks, cache)
        return (self.decoder.head(x), *(row for pair in new for row in pair))


def empty_cache(spec: ModelSpec, context: int, dtype: torch.dtype = torch.int8) -> list[LayerCache]:
    shape = (1, spec.num_kv_heads, context, spec.head_dim)
    return [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in spec.layers]


def method_lengths(target: Target) -> dict[str, int]:
    """Method name -> tokens per call."""
    return {"prefill": target.prefill_chunk, "decode": 1}


def input_names(spec: ModelSpec) -> list[str]:
    """Names of a method's inputs in order, as Hugging Face's ONNX exports name them."""
    past = [f"past_key_values.{i}.{kind}" for i in range(spec.num_layers) for kind in ("key", "value")]
    return ["input_ids", "position", *past]


def output_names(spec: ModelSpec) -> list[str]:
    return ["logits", *(f"present.{i}.{kind}" for i in range(spec.num_layers) for kind in ("key", "value"))]


def export_method(decoder: Decoder, target: Target, name: str, *, any_rows: bool = False) -> ExportedProgram:
    """The `torch.export` program of one method; the only graph that back ends see.

    any_rows: the cache may have any number of rows up to the target's context, not just that.
    """
    length = method_lengths(target)[name]
    method = Method(decoder, length=length, context=target.context).eval()
    cache = [t for pair in empty_cache(decoder.spec, target.context, decoder_cache_dtype(decoder)) for t in pair]
    start = (torch.zeros((1, length), dtype=torch.int64), torch.zeros((1,), dtype=torch.int64))
    arguments = (*start, *cache, *adapter_inputs(decoder).values())
    free = None
    if any_rows:
        rows = {2: torch.export.Dim("rows", min=LEAST_ROWS, max=target.context)}
        free = (None, None, tuple(rows if index < len(cache) else None for index in range(len(arguments) - 2)))
    with torch.no_grad():
        return torch.export.export(method, arguments, dynamic_shapes=free, strict=False)


def decoder_cache_dtype(decoder: Decoder) -> torch.dtype:
    """int8 for a frozen decoder, float32 for the float model (whose edges store real values)."""
    block = decoder.layers[0]
    assert isinstance(block, DecoderLayer)
    return block.attn.k_out.store(torch.zeros(1)).dtype

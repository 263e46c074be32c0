"""The frozen decoder in the forms that stock LLM runtimes call: they know nothing of a prefix.

Its rows stand as constants before the conversation's own, whose positions the runtime counts from 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.export import ExportedProgram

from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder, LayerCache
from mobileicsa.program.methods import Inputs, decoder_cache_dtype, empty_cache

KINDS = ("key", "value")


def prefix_length(decoder: Decoder) -> int:
    return decoder.prefix_rows[0][0].shape[2] if decoder.prefix_rows else 0


def free_slots(decoder: Decoder, target: Target) -> int:
    """Tokens of a conversation that fit behind the prefix."""
    return target.context - prefix_length(decoder)


class Conversation(Inputs):
    """What both forms share: the prefix's rows before those of the past."""

    def __init__(self, decoder: Decoder, *, context: int) -> None:
        super().__init__(decoder, context=context)
        self.first = prefix_length(decoder)
        for layer, pair in enumerate(decoder.prefix_rows):
            for kind, rows in zip(KINDS, pair, strict=True):
                self.register_buffer(f"prefix_{layer}_{kind}", rows.contiguous(), persistent=False)

    def run(
        self, token_ids: Tensor, positions: Tensor, past: list[Tensor], allowed: Callable[[int | None], Tensor]
    ) -> tuple[Tensor, list[LayerCache]]:
        """Last layer's output and the new rows. `past` (1, kv_heads, S, head_dim), keys and values by layer;
        `allowed(window)` (T, prefix + S + T) bool: which keys each token sees."""
        masks = {window: self.decoder.mask.load(self.stored(allowed(window))) for window in self.windows}
        rows = [self._behind_prefix(i // 2, KINDS[i % 2], tensor) for i, tensor in enumerate(past)]
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        return self.decoder.hidden(token_ids, self.ropes(positions), masks, pairs)

    def _behind_prefix(self, layer: int, kind: str, rows: Tensor) -> Tensor:
        return torch.cat((getattr(self, f"prefix_{layer}_{kind}"), rows), dim=2) if self.first else rows


class Stateful(Conversation):
    """ExecuTorch's LLM runner: token_ids (1, 1), position (1,) int64 -> logits (1, 1, vocab).

    The cache, `free_slots` rows a layer, is a state of the program.
    """

    def __init__(self, decoder: Decoder, *, context: int) -> None:
        super().__init__(decoder, context=context)
        for layer, pair in enumerate(empty_cache(decoder.spec, context - self.first, decoder_cache_dtype(decoder))):
            for kind, rows in zip(KINDS, pair, strict=True):
                self.register_buffer(f"cache_{layer}_{kind}", rows)

    def forward(self, token_ids: Tensor, position: Tensor) -> Tensor:
        positions = position + self.first

        def allowed(window: int | None) -> Tensor:
            cached = self.slots < positions
            if window is not None:
                cached = cached & (positions - self.slots < window)
            return torch.cat((cached, torch.full((1,), True)))[None, :]

        cache = [getattr(self, f"cache_{i}_{kind}") for i in range(self.decoder.spec.num_layers) for kind in KINDS]
        x, new = self.run(token_ids, positions, cache, allowed)
        for whole, rows in zip(cache, (row for pair in new for row in pair), strict=True):
            # Not `index_copy_`, for which ExecuTorch would trace the whole program again, to decompose it to this.
            torch.ops.aten.index_put_(whole, [None, None, position], rows)
        logits: Tensor = self.decoder.head(x)
        return logits


class Growing(Conversation):
    """onnxruntime-genai and optimum: token_ids (1, T), positions (T,), keys (P + S + T,) all int64, per layer the rows
    of the past (1, kv_heads, S, head_dim) -> logits (1, T, vocab), per layer the rows of past and call together.

    `keys` are 0, 1, ...: the positions of the P prefix rows, the past and the call; `positions` the last T of them.
    """

    def forward(self, token_ids: Tensor, positions: Tensor, keys: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        def allowed(window: int | None) -> Tensor:
            distance = positions[:, None] - keys[None, :]
            return distance >= 0 if window is None else (distance >= 0) & (distance < window)

        x, new = self.run(token_ids, positions, list(past), allowed)
        rows = (row for pair in new for row in pair)
        present = [torch.cat(pair, dim=2) for pair in zip(past, rows, strict=True)]
        return (self.decoder.head(x), *present)


def export_stateful(decoder: Decoder, target: Target) -> ExportedProgram:
    module = Stateful(decoder, context=target.context).eval()
    arguments = (torch.zeros((1, 1), dtype=torch.int64), torch.zeros((1,), dtype=torch.int64))
    with torch.no_grad():
        return torch.export.export(module, arguments, strict=False)


def export_growing(decoder: Decoder, target: Target, tokens: int, past: int) -> ExportedProgram:
    """Exported for `tokens` of a call behind `past` rows; nothing but the shapes of its reshapes depends on the two."""
    module = Growing(decoder, context=target.context).eval()
    shape = (1, decoder.spec.num_kv_heads, past, decoder.spec.head_dim)
    keys = torch.arange(module.first + past + tokens)
    arguments = (
        torch.zeros((1, tokens), dtype=torch.int64),
        keys[-tokens:].clone(),
        keys,
        *(torch.zeros(shape, dtype=decoder_cache_dtype(decoder)) for _ in range(2 * decoder.spec.num_layers)),
    )
    with torch.no_grad():
        return torch.export.export(module, arguments, strict=False)

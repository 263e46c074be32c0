"""Learning block by block: each on the inputs that quantised blocks before it give, towards the float block's output.

OmniQuant (arXiv 2308.13137) does so with clips and scalings, EfficientQAT's Block-AP (arXiv 2407.11062) with weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mobileicsa.calibrate.stream import BATCH, Stream, WeightSource, embed, run_content, run_prefix
from mobileicsa.models.decoder import DecoderLayer
from mobileicsa.models.load import empty_weights
from mobileicsa.quantize.distill import Descent, batches, held_out, parameter_groups
from mobileicsa.quantize.learn_math import hidden_error
from mobileicsa.quantize.recipe import Learning
from mobileicsa.quantize.steps import StageStore
from mobileicsa.quantize.student import Base, Student


def learn_blocks(
    student: Student,
    base: Base,
    weights: WeightSource,
    windows: Tensor,
    offsets: Tensor,
    learning: Learning,
    seed: int,
    store: StageStore,
    stage: str,
    run: str,
    tick: Callable[[], None],
) -> list[dict[str, Any]]:
    """Learn every block of `student` in place; a row a block, with its held-out error before and after.

    A block that did not get better keeps its parameters. `tick` is called once a block.
    """
    spec, rows = base.plan.spec, []
    stream = _start(student, base, weights, windows, offsets)
    for index in range(spec.num_layers):
        descent = Descent(_groups(student, index, learning), learning.steps, _error_of(student, index))
        name, key = f"{stage}-block-{index:03d}", f"{run}:{stage}:{index}"
        target, prefix = _float_block(base, weights, index, stream)
        if store.done(name, key):
            tensors, row = store.load(name)
            descent.restore([tensors[str(i)] for i in range(len(descent.parameters))])
        else:
            row = _learn_block(stream, target, descent, learning, seed)
            store.save(name, key, {str(i): p.detach().cpu() for i, p in enumerate(descent.parameters)}, row)
        rows.append(row)
        with torch.no_grad():
            quantized = torch.cat([student.run_layer(index, *part) for part in _parts(stream)])
        stream = Stream(target, prefix, quantized, stream.offsets)
        tick()
    return rows


@torch.no_grad()
def _start(student: Student, base: Base, weights: WeightSource, windows: Tensor, offsets: Tensor) -> Stream:
    stream = embed(base.plan.spec, weights, base.plan.prefix_ids, windows, offsets)
    stream = stream.to(student.device)
    stream.quantized = student.decoder.embed(windows.to(student.device))
    return stream


def _parts(stream: Stream) -> Iterator[tuple[Tensor, Tensor]]:
    """What `run_layer` takes, batch by batch."""
    assert stream.quantized is not None
    assert stream.offsets is not None
    return zip(torch.split(stream.quantized, BATCH), torch.split(stream.offsets, BATCH), strict=True)


@torch.no_grad()
def _float_block(base: Base, weights: WeightSource, index: int, stream: Stream) -> tuple[Tensor, Tensor]:
    spec = base.plan.spec
    with empty_weights():
        layer = DecoderLayer(spec, index, primitive=False)
    weights.fill(layer, f"layers.{index}.")
    layer.to(stream.content.device)
    prefix, past = run_prefix(spec, layer, stream)
    return torch.cat(list(run_content(spec, layer, stream.content, past, offsets=stream.offsets))), prefix


def _groups(student: Student, index: int, learning: Learning) -> list[dict[str, Any]]:
    scalings = student.scalings[index].values() if student.scalings else ()
    prefix = list(islice(student.prefix, 2 * index, 2 * index + 2))
    return parameter_groups(student.layers[index].modules(), prefix, scalings, learning)


def _error_of(student: Student, index: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Error of a block's output for inputs (B, T, hidden) at offsets (B,) against the float block's (B, T, hidden)."""
    return lambda inputs, offsets, target: hidden_error(student.run_layer(index, inputs, offsets), target)


def _learn_block(stream: Stream, target: Tensor, descent: Descent, learning: Learning, seed: int) -> dict[str, Any]:
    inputs, offsets = stream.quantized, stream.offsets
    assert inputs is not None
    assert offsets is not None
    training = inputs.shape[0] - held_out(inputs.shape[0])

    @torch.no_grad()
    def unseen() -> float:
        return float(descent.loss_of_batch(inputs[training:], offsets[training:], target[training:]))

    first, before = descent.values(), unseen()
    order = batches(training, min(learning.batch, training), seed)
    for step in range(learning.steps):
        picked = next(order)
        if math.isnan(descent.advance(step, inputs[picked], offsets[picked], target[picked])):
            break
    after = unseen()
    kept = after < before  # false for NaN too
    if not kept:
        descent.restore(first)
    return {"before": before, "after": after if kept else before, "kept": kept}

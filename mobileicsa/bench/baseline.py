"""The float32 baseline of a bench, written by the same back end as the artifact and kept where it is asked for."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.load import empty_weights
from mobileicsa.program.backend import Backend
from mobileicsa.program.frozen import FrozenModel
from mobileicsa.quantize.rounding import real_weight

DONE = "done.json"


def float_decoder(model: FrozenModel) -> Decoder:
    """The decoder of a plan in float32 with its weights multiplied out, non-linear ops fused.

    Speed does not depend on the values of weights, so the original checkpoint is not needed.
    """
    spec = model.plan.spec
    with empty_weights():
        decoder = Decoder(spec, primitive=False)
    state: dict[str, Tensor] = {}
    for name in decoder.state_dict():
        source = "embed.weight" if name == "head.proj.weight" and spec.tied_head else name
        if source in state:
            state[name] = state[source]
        elif source in model.plan.weights:
            state[name] = real_weight(model.tensors, source)
        else:
            state[name] = model.tensors[source]
    decoder.load_state_dict(state, assign=True)
    if spec.tied_head:
        decoder.head.proj.weight = decoder.embed.weight
    return decoder.eval()


def float_key(plan: QuantPlan, target: Target, backend: str) -> str:
    """Equal keys: float exports of equal speed (same shapes, target and back end)."""
    parts = [plan.spec.to_json(), repr(target), backend, torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write_float(model: FrozenModel, target: Target, back_end: Backend, parent: Path) -> Path:
    """The folder of the float export below `parent`, written unless a finished one is there."""
    folder = parent / f"float-{back_end.name}-{float_key(model.plan, target, back_end.name)}"
    if (folder / DONE).is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    spec = model.plan.spec
    metadata = {
        "bos_id": spec.bos_id,
        "eos_ids": list(spec.eos_ids),
        "prefix_ids": [],
        "context": target.context,
        "scheme": "float32",
    }
    written = back_end.write(float_decoder(model), target, folder, metadata)
    (folder / DONE).write_text(json.dumps({path.name: path.stat().st_size for path in written.files}))
    return folder

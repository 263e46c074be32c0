"""An artifact's adapters: put into the plan's basis, looked at on calibration text, kept beside the integers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobileicsa.artifact import layout
from mobileicsa.calibrate.statistics import integers_of, values_of
from mobileicsa.core.errors import InputError, UsageError, VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.io.json_file import read_json
from mobileicsa.io.tensor_file import read_tensors
from mobileicsa.models.adapter import PeftAdapter, check_norms, read_adapter
from mobileicsa.program.adapters import PlanAdapter
from mobileicsa.program.frozen import FrozenModel, real_decoder
from mobileicsa.program.saturation import saturated
from mobileicsa.quantize.basis import Basis
from mobileicsa.quantize.steps import Progress

# Windows of calibration text that an adapter is looked at on.
WINDOWS = 8
# An edge may saturate this share of its values more than without the adapter.
MAX_SATURATION = 0.01
WORST = 5

log = logging.getLogger(__name__)


def read_adapters(folders: Sequence[Path], spec: ModelSpec) -> list[PeftAdapter]:
    """Peft folders as adapters of one artifact: each under its folder's name."""
    adapters = [read_adapter(folder, spec) for folder in folders]
    names = [adapter.name for adapter in adapters]
    for name in names:
        if sum(other.casefold() == name.casefold() for other in names) > 1:
            raise UsageError(f"--adapter: two folders are named {name}", hint="an adapter's name is its folder's")
    for adapter in adapters:
        for note in adapter.notes:
            log.warning("%s", note)
    return adapters


def prepare(
    model: FrozenModel,
    basis: Mapping[str, Tensor],
    adapters: Sequence[PeftAdapter],
    windows: Sequence[list[int]],
    limit: float,
    progress: Progress,
) -> list[PlanAdapter]:
    """The adapters of a frozen model; InputError where one saturates an edge by more than `limit` beyond the base.

    `windows`: token ids of calibration text, without BOS. Peak memory: the model in float twice.
    """
    if not adapters:
        return []
    spec, past = model.plan.spec, None
    if model.plan.prefix_ids:
        past = model.prefix_cache()
    elif spec.bos_id is not None:
        windows = [[spec.bos_id, *window] for window in windows]
    picked = windows[:: -(-len(windows) // WINDOWS)]
    tick = progress.step("adapters on calibration text", len(picked) * (1 + len(adapters)))
    base, _ = saturated(model, None, picked, past, tick)
    return [_prepared(model, basis, adapter, picked, base, limit, tick) for adapter in adapters]


def _prepared(
    model: FrozenModel,
    basis: Mapping[str, Tensor],
    adapter: PeftAdapter,
    windows: Sequence[list[int]],
    base: dict[str, float],
    limit: float,
    tick: Callable[[], None],
) -> PlanAdapter:
    raw = in_basis(model, basis, adapter)
    raw.tensors.update(_prefix(model, raw))
    own = FrozenModel(model.plan, {**model.tensors, **raw.prefix})
    shares, ranges = saturated(own, raw, windows, own.prefix_cache() if model.plan.prefix_ids else None, tick)
    tensors = dict(raw.prefix)
    for linear in raw.linears:
        seen = ranges[linear]
        assert seen.inner is not None
        # Each rank has a scale to spare: (x a / c)(c b). With this one calibration text fills [-1, 1].
        scale = torch.where(seen.inner > 0, seen.inner, 1.0).to(torch.float32)
        tensors[f"{linear}.a"] = (raw.tensors[f"{linear}.a"] / scale).contiguous()
        tensors[f"{linear}.b"] = (raw.tensors[f"{linear}.b"] * scale[:, None]).contiguous()
        tensors[f"{linear}.range"] = torch.tensor([seen.low, seen.high])
    saturation = _saturation(base, shares, limit, sum(len(window) for window in windows))
    worst = saturation["worst"][0]
    if worst["added"] > limit:
        raise InputError(
            f"adapter {adapter.name}: {worst['share']:.1%} of {worst['edge']} saturate with it, {worst['base']:.1%} "
            f"without; {limit:.1%} more are allowed",
            hint="quantise the base with the adapter merged (--merge-adapter), with calibration text of the adapter's "
            "kind, or raise --max-adapter-saturation",
        )
    return PlanAdapter(adapter.name, tensors, {**raw.facts, "saturation": saturation})


def in_basis(model: FrozenModel, basis: Mapping[str, Tensor], adapter: PeftAdapter) -> PlanAdapter:
    """The adapter's factors beside the plan's linears, with nothing known of text yet."""
    place, plan = Basis(model.plan.spec, basis), model.plan
    updates = {name: place.update(name, low) for name, low in adapter.canonical(plan.spec).items()}
    check_norms(adapter, updates, lambda linear: float(_real(model, linear).norm()))
    tensors: dict[str, Tensor] = {}
    for linear, update in updates.items():
        tensors[f"{linear}.a"], tensors[f"{linear}.b"] = update.down.T.contiguous(), update.up.T.contiguous()
        tensors[f"{linear}.range"] = torch.zeros(2)
    ranks = [update.rank for update in updates.values()]
    facts = {
        "name": adapter.name,
        "sha256": adapter.sha256,
        "base": _public(adapter.config.base_name),
        "linears": len(updates),
        "rank": {"least": min(ranks), "most": max(ranks)},
        "parameters": sum(low.down.numel() + low.up.numel() for low in updates.values()),
    }
    return PlanAdapter(adapter.name, tensors, facts)


def _public(base: str) -> str | None:
    """A base's name for a report; of a path, which may tell who trained it where, its last part only."""
    return (Path(base).name if Path(base).is_absolute() else base) or None


def _real(model: FrozenModel, linear: str) -> Tensor:
    name = f"{linear}.weight"
    return model.tensors[name].to(torch.float32) * model.tensors[f"{name}.scale"][:, None]


@torch.no_grad()
def _prefix(model: FrozenModel, adapter: PlanAdapter) -> dict[str, Tensor]:
    """The prefix's rows and logits with the adapter: the base's own, which may be learned, moved by what the adapter
    changes in real numbers. What the prefix computes exceeds the ranges, so that the simulator could not say."""
    plan = model.plan
    if not plan.prefix_ids:
        return {}
    ids = torch.tensor([plan.prefix_ids])
    added = {n: (adapter.tensors[f"{n}.a"] @ adapter.tensors[f"{n}.b"]).T for n in adapter.linears}
    (before, old), (after, new) = (real_decoder(model, part)(ids) for part in ({}, added))
    found = {"prefix.logits": model.tensors["prefix.logits"] + (after - before)[0, -1]}
    for index in range(plan.spec.num_layers):
        for position, kind in enumerate(("key", "value")):
            name, encoding = f"prefix.{index}.{kind}", plan.edges[f"layers.{index}.attn.{kind[0]}_out"]
            rows = values_of(model.tensors[name], encoding)
            found[name] = integers_of(rows + new[index][position] - old[index][position], encoding)
    return found


def _saturation(base: dict[str, float], shares: dict[str, float], limit: float, tokens: int) -> dict[str, Any]:
    added = {name: round(share - base[name], 6) for name, share in shares.items()}
    worst = sorted(added, key=lambda name: -added[name])[:WORST]
    rows = [{"edge": name, "share": shares[name], "base": base[name], "added": added[name]} for name in worst]
    return {"limit": limit, "tokens": tokens, "largest": max(added[worst[0]], 0.0), "worst": rows}


def tensors_file(name: str) -> str:
    return f"{layout.ADAPTERS}/{name}/adapter.safetensors"


def facts_file(name: str) -> str:
    return f"{layout.ADAPTERS}/{name}/adapter.json"


def names_in(manifest: Mapping[str, Any]) -> list[str]:
    """The adapters of an artifact, in order."""
    found: list[str] = manifest.get("adapters", [])
    return found


def read_prepared(folder: Path, names: Sequence[str]) -> list[PlanAdapter]:
    """Adapters of an artifact folder by name; their files' hashes are the manifest's business."""
    found = []
    for name in names:
        facts = read_json(folder / facts_file(name), max_bytes=layout.MAX_JSON_BYTES)
        found.append(PlanAdapter(name, read_tensors(folder / tensors_file(name)), facts))
    return found


def read_basis(folder: Path) -> dict[str, Tensor]:
    if not (folder / layout.BASIS).is_file():
        raise VerificationError(
            f"{folder}: has no {layout.BASIS}, by which an adapter could follow its weights",
            hint="it was made by an older version: quantise the model again",
        )
    return read_tensors(folder / layout.BASIS)

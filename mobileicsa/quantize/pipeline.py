"""The order of a quantisation run: prefix, rotations, embedding, block after block, head; each step resumable."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mobileicsa.calibrate.device import compute_device, computed_on, naming_memory
from mobileicsa.calibrate.stream import Stream, WeightSource, load_layer
from mobileicsa.core.encoding import TensorEncoding
from mobileicsa.core.errors import InputError
from mobileicsa.core.plan import QuantPlan, WeightEncoding
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.models.placed import reach, spread
from mobileicsa.quantize.basis import basis_tensors
from mobileicsa.quantize.bias_correction import correct_biases
from mobileicsa.quantize.block import Piece, passes, quantize_block
from mobileicsa.quantize.budget import Limits
from mobileicsa.quantize.derived import derived_edges
from mobileicsa.quantize.ends import embedding_and_head, start
from mobileicsa.quantize.learned import learn
from mobileicsa.quantize.mixed import mix
from mobileicsa.quantize.prefix import race_length, search_prefix
from mobileicsa.quantize.quality import Judge
from mobileicsa.quantize.recipe import Recipe
from mobileicsa.quantize.rotation import Rotated, rotate
from mobileicsa.quantize.rotation_learning import learn_rotations
from mobileicsa.quantize.rounding import rounding_facts
from mobileicsa.quantize.steps import Progress, StageStore
from mobileicsa.quantize.student import Base

# Before the names of real weights, of mean outputs and of the basis's factors in a stored layer.
REAL, MEAN, FACTOR = "real.", "mean.", "factor."
MARKS = (REAL, MEAN, FACTOR)


@dataclass(frozen=True)
class Result:
    """A quantised model: everything `program.frozen.FrozenModel` needs, what adapters need to follow it
    (`quantize.basis`), and the report's raw material."""

    plan: QuantPlan
    tensors: dict[str, Tensor]
    report: dict[str, Any]
    basis: dict[str, Tensor]


def run_hash(
    spec: ModelSpec,
    scheme: QuantScheme,
    recipe: Recipe,
    model_identity: str,
    windows: Tensor,
    seed: int,
    limits: Limits | None,
) -> str:
    """Identity of a run: equal hashes mean equal bytes out."""
    parts = [spec.to_json(), scheme.to_json(), recipe.model_dump(mode="json"), model_identity, torch.__version__, seed]
    parts += [] if limits is None else [limits.to_json()]
    parts += computed_on()
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    digest.update(windows.contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
@naming_memory()
def quantize_model(
    spec: ModelSpec,
    weights: WeightSource,
    windows: Tensor,
    scheme: QuantScheme,
    recipe: Recipe,
    *,
    store: StageStore,
    identity: str,
    progress: Progress,
    seed: int = 0,
    limits: Limits | None = None,
) -> Result:
    """Quantise a model from calibration windows (N, T) of token ids, without BOS.

    It computes on a GPU if there is one; what it returns and keeps is on the CPU.
    Raises InputError for a single window where the recipe learns.
    With `limits` some linears get more bits than the scheme's, and the report has a section "mixed".
    Peak memory: one block in float, the hidden states of all windows twice, and the integers so far; to search a prefix
    and, in the end, to judge the result, the whole model.
    """
    if recipe.learn and windows.shape[0] < 2:  # the last one is held out
        raise InputError(
            "calibration: one window of text leaves none to learn from",
            hint="give a longer text or a larger calibration.samples, or a recipe that does not learn",
        )
    share, device = recipe.calibration.share(), compute_device()
    rotated, rotation_report = None, None
    if recipe.rotation != "off":
        spec, rotated = rotate(spec, weights)
        weights = rotated
    run = run_hash(spec, scheme, recipe, identity, windows, seed, limits)
    prefix, prefix_report = _prefix(spec, weights, windows, scheme, recipe, seed, store, run, progress)
    if not prefix and spec.bos_id is not None:
        windows = torch.cat((torch.full((windows.shape[0], 1), spec.bos_id), windows), dim=1)
    if rotated is not None and recipe.rotation == "learned":
        weights, rotation_report = learn_rotations(
            spec, rotated, prefix, windows, scheme, recipe, seed=seed, store=store, run=run, progress=progress
        )
    # BOS without a prefix is a window's own first token, and stands where no conversation has it further on.
    share = share if prefix or spec.bos_id is None else 0.0
    offsets = spread(len(windows), reach(spec, len(prefix), windows.shape[1]), share, seed)
    learning_windows, windows = windows, windows[: recipe.calibration.samples]
    places = offsets[: len(windows)]
    mixed = None
    if limits is not None:
        mixed = mix(
            spec, weights, prefix, windows, scheme, recipe, limits, seed=seed, store=store, run=run, progress=progress
        )
    promoted = frozenset[str]() if mixed is None else mixed.promoted
    scheme = scheme if mixed is None else replace(scheme, wide_edges=mixed.wide)
    finished = _finished_layers(store, run, spec.num_layers)
    pieces = [_load_piece(store, index) for index in range(finished)]
    stream = (
        _load_stream(store, finished - 1) if finished else start(spec, weights, prefix, windows, scheme, recipe, places)
    )
    stream = stream.to(device)
    layer = None
    for index in range(finished, spec.num_layers):
        tick = progress.step(f"layer {index + 1}/{spec.num_layers}", passes(recipe, scheme) * stream.batches)
        layer = load_layer(spec, index, weights).to(device)
        piece, stream = quantize_block(spec, index, layer, stream, scheme, recipe, tick, promoted)
        # The stream first: a finished block without the stream behind it would be of no use.
        store.save(_stream_stage(index), f"{run}:{index}", stream.to(torch.device("cpu")).tensors(), {})
        store.save(_layer_stage(index), run, _piece_tensors(piece), _piece_json(piece))
        pieces.append(piece)
    pieces.append(embedding_and_head(spec, weights, windows, stream, scheme, recipe, bool(prefix)))
    del layer, stream  # learning needs their memory
    tensors = {name: t for piece in pieces for name, t in piece.tensors.items()}
    edges = {name: e for piece in pieces for name, e in piece.edges.items()}
    plan = QuantPlan(
        spec=spec,
        scheme=scheme,
        edges=edges,
        weights={name: w for piece in pieces for name, w in piece.weights.items()},
        prefix_ids=prefix,
        provenance={"run": run, "recipe": recipe.model_dump(mode="json"), "model_identity": identity}
        | ({} if limits is None else {"limits": limits.to_json()}),
    )
    report: dict[str, Any] = {"prefix": prefix_report, "edges": {}, "weights": {}, "smoothing": {}}
    if mixed is not None:
        report["mixed"] = mixed.report
    if rotation_report is not None:
        report["rotation"] = rotation_report
    for index, piece in enumerate(pieces):
        report["edges"] |= piece.report.get("edges", {})
        report["weights"] |= piece.report.get("weights", {})
        if "smoothing" in piece.report:
            report["smoothing"][f"layers.{index}"] = piece.report["smoothing"]
    judge = Judge(plan, weights, learning_windows, windows.shape[0], progress, offsets)
    judge.look_at("base", plan, tensors)
    means = {name: mean for piece in pieces for name, mean in piece.means.items()}
    factors = {name: factor for piece in pieces for name, factor in piece.factors.items()}
    if recipe.learn:
        base = Base(plan, tensors, {name: t for piece in pieces for name, t in piece.real.items()}, means, factors)
        base, report["edges"], report["learning"] = learn(
            base,
            weights,
            learning_windows,
            offsets,
            recipe.learn,
            seed=seed,
            store=store,
            run=run,
            judge=judge,
            progress=progress,
        )
        plan, tensors, means, factors = base.plan, base.tensors, base.means, base.factors
        for name, weight in base.real.items():
            report["weights"][name] = rounding_facts(weight, tensors[name], tensors[f"{name}.scale"])
    if recipe.bias_correction:
        tick = progress.step("bias correction", spec.num_layers)
        plan, tensors = correct_biases(plan, tensors, means, windows, places, store, run, tick)
        judge.look_at("bias", plan, tensors)
    report["quality"] = judge.rows
    derived = derived_edges(spec, plan.edges, tensors["embed.weight.scale"])
    basis = basis_tensors(weights if isinstance(weights, Rotated) else None, factors)
    return Result(replace(plan, edges=plan.edges | derived), tensors, report, basis)


def _prefix(
    spec: ModelSpec,
    weights: WeightSource,
    windows: Tensor,
    scheme: QuantScheme,
    recipe: Recipe,
    seed: int,
    store: StageStore,
    run: str,
    progress: Progress,
) -> tuple[tuple[int, ...], list[dict[str, Any]]]:
    if recipe.prefix_tokens == 0:
        return (), []
    if not store.done("prefix", run):
        tick = progress.step("sink prefix", race_length(len(windows), recipe.prefix_tokens))
        prefix, trials = search_prefix(spec, weights, scheme, windows, recipe.prefix_tokens, seed, tick)
        rows = [trial.to_json() for trial in trials]
        store.save("prefix", run, {}, {"prefix": list(prefix), "trials": rows})
    _, data = store.load("prefix")
    return tuple(data["prefix"]), data["trials"]


def _layer_stage(index: int) -> str:
    return f"layer-{index:03d}"


def _stream_stage(index: int) -> str:
    """Two places in turn: the hidden states before a block stay until the block behind it is finished."""
    return f"stream-{index % 2}"


def _finished_layers(store: StageStore, run: str, layers: int) -> int:
    """How many blocks from the front are done, with the stream behind the last of them; 0 where that is lost."""
    finished = 0
    while finished < layers and store.done(_layer_stage(finished), run):
        finished += 1
    if finished and not store.done(_stream_stage(finished - 1), f"{run}:{finished - 1}"):
        return 0
    return finished


def _load_stream(store: StageStore, index: int) -> Stream:
    tensors, _ = store.load(_stream_stage(index))
    return Stream(**tensors)


def _piece_tensors(piece: Piece) -> dict[str, Tensor]:
    kept = {REAL: piece.real, MEAN: piece.means, FACTOR: piece.factors}
    return piece.tensors | {f"{mark}{name}": t for mark, named in kept.items() for name, t in named.items()}


def _piece_json(piece: Piece) -> dict[str, Any]:
    return {
        "edges": {name: encoding.to_json() for name, encoding in piece.edges.items()},
        "weights": {name: {"bits": w.bits, "narrow": w.narrow} for name, w in piece.weights.items()},
        "report": piece.report,
    }


def _load_piece(store: StageStore, index: int) -> Piece:
    stored, data = store.load(_layer_stage(index))
    real, means, factors = ({n.removeprefix(m): t for n, t in stored.items() if n.startswith(m)} for m in MARKS)
    return Piece(
        edges={name: TensorEncoding.from_json(e) for name, e in data["edges"].items()},
        weights={name: WeightEncoding(**w) for name, w in data["weights"].items()},
        tensors={name: t for name, t in stored.items() if not name.startswith(MARKS)},
        report=data["report"],
        real=real,
        means=means,
        factors=factors,
    )

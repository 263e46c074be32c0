"""`verify`: do the files say what the manifest says, and do the runtimes compute what the simulator computed?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mobileicsa.artifact import layout
from mobileicsa.artifact.golden import compare_greedy, probe_tokenizer, record, replay
from mobileicsa.artifact.lowered import Lowered
from mobileicsa.artifact.manifest import check_files, read_manifest
from mobileicsa.artifact.model import SIMULATOR, QuantizedModel, target_of
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.artifact.verdict import could_not_run
from mobileicsa.core.errors import InputError, MobileICSAError, VerificationError
from mobileicsa.io.json_file import read_json
from mobileicsa.io.tensor_file import read_tensors
from mobileicsa.program.backend import ExactBackend, cannot_run, find_backend
from mobileicsa.program.backend import backends as registered
from mobileicsa.program.targets import find_target
from mobileicsa.quantize.steps import Progress, Quiet

# The simulator replays its own integers to the last one: its sums are integers, and what it computes in float64 is far
# from every tie.
MIN_EQUAL_SHARE_SIMULATOR = 1.0
# Float64 leaves a rounding tie to chance once in some 2**29 values.
MIN_EQUAL_SHARE_EXACT = 0.999
# Others may flip a rounding tie, and a flip moves what follows it (see golden.py): behind the first layer the share of
# equal integers falls with depth and tells nothing of a defect, so these layers are judged by their noise.
MIN_EQUAL_SHARE_FIRST_LAYER = 0.75
# Another scale, or other numbers altogether: more power in the differences than this share of the values' own. Rounding
# alone gave 3 % in the worst of 30 layers, where a third of the integers was equal.
MAX_ROWS_NOISE = 0.1
MAX_LOGITS_NOISE = 0.25
SHOWN_FALLBACKS = 5
QUIET = Quiet()


def verify(
    folder: Path,
    *,
    only: Sequence[str] | None = None,
    greedy: bool = True,
    strict: bool = False,
    target: str | None = None,
    layers: str | None = None,
    adapter: str | None = None,
    progress: Progress = QUIET,
) -> dict[str, Any]:
    """Check hashes, replay golden vectors and greedy text on each back end of the default target.

    `only` names the back ends to run (also "simulator"); None means all that are exported. One that the artifact was
    not exported for is lowered first, and so is everything where `target` or a slice START:STOP of the `layers` is
    asked for: these replay the calls of the same program's simulator, and so does an `adapter` of the artifact's, with
    which a change to each other adapter, to none and back must give the same integers. A back end that is not
    installed is reported as skipped, with the reason. `strict` fails a back end that runs something in float, or
    outside of its accelerated part, that the target does not declare. "ok" is False when a file or a back end fails.
    """
    manifest = read_manifest(folder)
    problems = check_files(folder, manifest)
    result: dict[str, Any] = {"ok": not problems, "problems": problems, "backends": {}}
    if problems:
        return result
    default = target_of(manifest, None)
    exported = (SIMULATOR, *default.backends)
    asked = exported
    if target is not None:
        made = manifest["targets"]
        asked = (SIMULATOR, *(target_of(manifest, target) if target in made else find_target(target)).backends)
    known = (SIMULATOR, *registered())
    unknown = sorted(set(only or ()) - set(known))
    if unknown:
        raise InputError(f"--backend {unknown[0]}: is unknown; known are {', '.join(known)}")
    golden = read_tensors(folder / layout.GOLDEN)
    expected = read_json(folder / layout.GREEDY, max_bytes=layout.MAX_JSON_BYTES)["prompts"]
    wrong = probe_tokenizer(Tokenizer(folder), expected)
    if wrong is not None:
        result["ok"] = False
        problems.append(f"{layout.TOKENIZER}: {wrong}")
        return result
    for name in dict.fromkeys(only or asked):
        tick = progress.step(f"verify {name}", 1)
        if name in exported and target in (None, default.name) and layers is None and adapter is None:
            row = _one(folder, name, golden, expected if greedy else [])
        else:
            row = _lowered(folder, name, target, layers, adapter, progress)
        result["backends"][name] = row
        fallbacks = row.get("placement", {}).get("fallbacks", [])
        if strict and fallbacks:
            row["ok"] = False
            problems.append(f"{name}: {describe_fallbacks(fallbacks, row.get('target', default.name))}")
        tick()
    missing = could_not_run(result["backends"], only)
    problems += missing
    result["ok"] = not missing and all(row.get("ok", True) for row in result["backends"].values())
    return result


def describe_fallbacks(fallbacks: list[dict[str, str]], target: str) -> str:
    """One line on operators that run in float or outside although the target does not say so."""
    shown = "; ".join(f"{f['node']} ({f['reason']})" for f in fallbacks[:SHOWN_FALLBACKS])
    more = len(fallbacks) - SHOWN_FALLBACKS
    return f"{len(fallbacks)} operators run in float or outside, which target {target} does not declare: {shown}" + (
        f"; and {more} more" if more > 0 else ""
    )


def _one(folder: Path, name: str, golden: dict[str, Any], expected: list[dict[str, Any]]) -> dict[str, Any]:
    known = registered()
    if name != SIMULATOR:
        reason = cannot_run(name) if name in known else f"back end {name} is not installed"
        if reason is not None:
            return {"skipped": reason}
    try:
        model = QuantizedModel.from_pretrained(folder, backend=name)
        # The simulator recorded the texts: running it again would only say that it is deterministic.
        texts = [] if name == SIMULATOR else expected
        row = _compared(model, golden, texts, _needed(name))
        if name == SIMULATOR and row["logits"]["different"]:
            row["ok"], row["reason"] = False, _difference(row)
        if name != SIMULATOR:
            row["placement"] = known[name].placement(model.exported, model.target)
        if isinstance(known.get(name), ExactBackend):
            # Products of 16-bit activations are summed in float32 there too: schemes that have them are as others.
            scheme = model.plan.scheme
            sums_exactly = scheme.bits("norm_out") == 8 and not scheme.wide_edges
            needed = MIN_EQUAL_SHARE_EXACT if sums_exactly else None
            exact = QuantizedModel.from_pretrained(folder, backend=name, exact=True)
            row["exact"] = _compared(exact, golden, texts, needed)
            row["ok"] = row["ok"] and row["exact"]["ok"]
    except MobileICSAError as error:
        return {"ok": False, "error": error.message, "equal_share": 0.0, "max_steps": None}
    return row


def _lowered(
    folder: Path, name: str, target: str | None, layers: str | None, adapter: str | None, progress: Progress
) -> dict[str, Any]:
    """A back end that the artifact was not exported for, a slice, or an adapter: against the simulator of the same
    program.

    What keeps it from being lowered is no result: the error is raised.
    """
    reason = None if name == SIMULATOR else cannot_run(name)
    if reason is not None:
        return {"skipped": reason}
    lowered = Lowered(folder, name, target, layers, adapter)
    try:
        model = lowered.open(progress)
        simulator = lowered.simulator()
        swap = None if adapter is None else _swapped(model, adapter)
        row = _compared(model, record(simulator), [], _needed(name))
        simulator.close()
        if name != SIMULATOR:
            row["placement"] = find_backend(name).placement(model.exported, model.target)
    except VerificationError as error:
        return {"ok": False, "error": error.message, "equal_share": 0.0, "max_steps": None}
    if swap is not None:
        row["swap"] = swap
        if not swap["identical"]:
            row["ok"], row["reason"] = False, f"other integers after {' and '.join(swap['through'])} than before"
    told = {"target": lowered.target.name, "layers": layers, "adapter": adapter}
    return {**row, **{name: value for name, value in told.items() if value is not None}}


def _swapped(model: QuantizedModel, adapter: str) -> dict[str, Any]:
    """Whether the adapter computes the same integers after every other adapter, and none, as before."""
    before = record(model)
    through = [*(name for name in model.adapters if name != adapter), None]
    identical = True
    for other in through:
        model.use_adapter(other)
        record(model)
        model.use_adapter(adapter)
        again = record(model)
        identical = identical and all(torch.equal(again[name], tensor) for name, tensor in before.items())
    return {"identical": identical, "through": [name or "no adapter" for name in through]}


def _needed(name: str) -> float | None:
    return MIN_EQUAL_SHARE_SIMULATOR if name == SIMULATOR else None


def _compared(
    model: QuantizedModel, golden: dict[str, Any], expected: list[dict[str, Any]], needed: float | None
) -> dict[str, Any]:
    """Golden calls and greedy texts of an open model, which is closed; "ok" by the first layer's equal integers, the
    noise of every layer and of the logits, and the best tokens; with `needed` by all equal integers too."""
    row = replay(model, golden)
    judged = (
        ("equal integers", row["equal_share"], needed or 0.0),
        ("equal integers of the first layer", row["first_layer"]["equal_share"], MIN_EQUAL_SHARE_FIRST_LAYER),
        ("equal best tokens", row["top1_agreement"], model.target.least_top1),
    )
    noisiest = row["noisiest_layer"]
    noises = (
        ("the logits", row["logits"]["noise_share"], MAX_LOGITS_NOISE),
        (f"keys or values of layer {noisiest['layer']}", noisiest["noise_share"], MAX_ROWS_NOISE),
    )
    missed = [f"{noise:.1%} noise in {where}, {most:.0%} at most" for where, noise, most in noises if noise > most]
    missed += [f"{found:.1%} {what}, {least:.1%} needed" for what, found, least in judged if found < least]
    row["ok"] = not missed
    if missed:
        row["reason"] = f"{'; '.join(missed)}: {_difference(row)}"
    if expected:
        row["greedy"] = compare_greedy(model, expected)
    model.close()
    return row


def _difference(row: dict[str, Any]) -> str:
    layer, logits = row["first_differing_layer"], row["logits"]
    first = f", first in layer {layer}" if layer is not None else ""
    return (
        f"{row['different']} of {row['integers']} K/V integers differ from {layout.GOLDEN} by up to {row['max_steps']} "
        f"steps{first}; {logits['different']} of {logits['integers']} logits by up to {logits['max_steps']}"
    )

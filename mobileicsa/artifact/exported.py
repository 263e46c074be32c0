"""One program for one target: what the back ends write of a frozen model, and the facts of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.artifact.adapter_plan import check_adapting
from mobileicsa.artifact.model import read_checked
from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target
from mobileicsa.io.atomic import copy_file
from mobileicsa.io.checkpoint import copy_tokenizer
from mobileicsa.io.hashing import sha256_bytes, sha256_file
from mobileicsa.io.json_file import read_json
from mobileicsa.io.lock import OutputLock
from mobileicsa.io.paths import check_output, inside
from mobileicsa.io.staging import Staging
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.adapters import PlanAdapter, padded
from mobileicsa.program.backend import AdaptingBackend, ResumableBackend, find_backend
from mobileicsa.program.delegation import delegation, of_all
from mobileicsa.program.frozen import FrozenModel, build_adapted
from mobileicsa.program.slices import parse_layers, slice_layers
from mobileicsa.program.targets import check_scheme, check_size, fitting
from mobileicsa.quantize.packed import packed_bytes
from mobileicsa.quantize.steps import Progress

TARGET_FILE = "target.json"  # written last: an exported folder without it is not whole
EXPORT_FILE = "export.json"  # what the command answered; size and SHA-256 of every file among it


def write_backend(
    decoder: Decoder,
    target: Target,
    name: str,
    folder: Path,
    plan: QuantPlan,
    adapters: Sequence[PlanAdapter] = (),
    *,
    root: Path,
) -> dict[str, Any]:
    """Lower a decoder, which has room for the adapters, with one back end, and write them beside it; returns
    {"files": {name: {bytes, sha256}}, "facts": {...}}. `root` is the folder that the tokenizer lies in."""
    metadata = {
        "bos_id": plan.spec.bos_id,
        "eos_ids": list(plan.spec.eos_ids),
        "prefix_ids": list(plan.prefix_ids),
        "context": target.context,
        "scheme": plan.scheme.name,
        "tokenizer_dir": Path(os.path.relpath(root, folder)).as_posix(),
    }
    back_end = find_backend(name)
    written = back_end.write(decoder, target, folder, metadata)
    # A back end that had to compile to know its facts need not do so again.
    placement = written.facts.get("placement") or back_end.placement(folder, target)
    paths = list(written.files)
    for adapter in adapters:
        assert isinstance(back_end, AdaptingBackend)
        paths.append(layout.adapter_file(folder, adapter.name, back_end.adapter_suffix))
        paths[-1].parent.mkdir(exist_ok=True)
        back_end.write_adapter(padded(adapter, decoder), paths[-1])
    facts = {**written.facts, **delegation(written.facts, placement), "placement": placement}
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in paths
    }
    return {"files": files, "facts": json.loads(json.dumps(facts))}


def export_artifact(
    folder: Path,
    target: Target,
    output: Path,
    progress: Progress,
    *,
    layers: str | None = None,
    overwrite: bool = False,
    adapters: Sequence[PlanAdapter] = (),
) -> dict[str, Any]:
    """Write a finished artifact's program for another target into a new folder `output`; returns its facts.

    `layers` START:STOP writes a slice of the model (see `program.slices`), which no adapter fits. An interrupted export
    goes on where a back end can.
    """
    check_output(output, folder, overwrite=overwrite)
    _, frozen = read_checked(folder)
    if adapters:
        check_adapting([target])
    if layers is not None and adapters:
        raise UsageError("--layers and --adapter: an adapter is of the whole model")
    if layers is not None:
        frozen = slice_layers(frozen, parse_layers(layers, frozen.plan.spec.num_layers))
    target = fitting(target, frozen.plan.spec)
    check_scheme(frozen.plan.scheme, target)
    check_size(target, packed_bytes(frozen.plan.spec, {name: w.bits for name, w in frozen.plan.weights.items()}))
    facts_of = (sha256_file(folder / layout.MANIFEST), target, layers, [a.facts for a in adapters])
    run = "export" + sha256_bytes(repr(facts_of).encode())[:10]
    resumable = any(isinstance(find_backend(name), ResumableBackend) for name in target.backends)
    with OutputLock(output), Staging(output, run, resumable=resumable, flag=None) as staging:
        facts = write_target(frozen, target, staging.folder, progress, adapters)
        # For clients that read these beside the model.
        copy_tokenizer(folder, staging.folder)
        copy_file(folder / layout.CONFIG, staging.folder / layout.CONFIG)
        staging.write_json(EXPORT_FILE, facts)
        staging.write_json(TARGET_FILE, target_json(target))
        staging.commit(overwrite=overwrite)
    return facts


def damage(exported: Path) -> str | None:
    """What is wrong with the files of an exported folder, or None."""
    if not (exported / TARGET_FILE).is_file():
        return f"{TARGET_FILE} is missing"
    try:
        written = read_json(exported / EXPORT_FILE, max_bytes=layout.MAX_JSON_BYTES)["backends"]
        for backend, facts in written.items():
            for name, row in facts["files"].items():
                path = inside(exported / backend, name)
                if not path.is_file() or sha256_file(path) != row["sha256"]:
                    return f"{backend}/{name} is not what was written"
    except (InputError, AttributeError, KeyError, TypeError) as error:
        return f"{EXPORT_FILE} cannot be read: {error}"
    return None


def write_target(
    frozen: FrozenModel, target: Target, folder: Path, progress: Progress, adapters: Sequence[PlanAdapter] = ()
) -> dict[str, Any]:
    """Every back end of a target, each into its sub-folder."""
    decoder = build_adapted(frozen, adapters, primitive=target.nonlinear == "primitive")
    written = {}
    for name in target.backends:
        tick = progress.step(f"write {name} for {target.name}", 1)
        written[name] = write_backend(decoder, target, name, folder / name, frozen.plan, adapters, root=folder)
        tick()
    told = {"adapters": {adapter.name: adapter.facts for adapter in adapters}} if adapters else {}
    return {"target": target.name, **told, **of_all({n: w["facts"] for n, w in written.items()}), "backends": written}


def target_json(target: Target) -> dict[str, Any]:
    return {**vars(target), "backends": list(target.backends)}

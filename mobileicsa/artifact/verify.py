"""`verify`: do the files say what the manifest says, and do the runtimes compute what the simulator computed?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from mobileicsa.artifact import layout
from mobileicsa.artifact.golden import compare_greedy, replay
from mobileicsa.artifact.manifest import check_files, read_manifest
from mobileicsa.artifact.model import SIMULATOR, QuantizedModel
from mobileicsa.core.errors import InputError, MobileICSAError
from mobileicsa.io.json_file import read_json
from mobileicsa.io.tensor_file import read_tensors
from mobileicsa.program.backend import backends as registered

# Fused float regions may flip a rounding tie, and a flip moves what follows it (see golden.py). Less agreement than
# this is a defect, not rounding. The simulator replays its own integers on any machine with correct float32.
MIN_EQUAL_SHARE = {SIMULATOR: 0.999}
MIN_EQUAL_SHARE_RUNTIME = 0.75
MIN_TOP1_AGREEMENT = 0.9


class Progress(Protocol):
    def step(self, title: str, total: int) -> Callable[[], None]: ...


def verify(
    folder: Path, *, only: Sequence[str] | None = None, greedy: bool = True, progress: Progress | None = None
) -> dict[str, Any]:
    """Check hashes, replay golden vectors and greedy text on each back end of the default target.

    `only` names the back ends to run (also "simulator"); None means all that are exported. A back end that is not
    installed is reported as skipped, with the reason. "ok" is False when a file or a back end fails.
    """
    manifest = read_manifest(folder)
    problems = check_files(folder, manifest)
    result: dict[str, Any] = {"ok": not problems, "problems": problems, "backends": {}}
    if problems:
        return result
    target = manifest["targets"][manifest["default_target"]]
    exported = [SIMULATOR, *target["backends"]]
    unknown = sorted(set(only or ()) - set(exported))
    if unknown:
        raise InputError(f"--backend {unknown[0]}: not in this artifact; it has {', '.join(exported)}")
    golden = read_tensors(folder / layout.GOLDEN)
    expected = read_json(folder / layout.GREEDY, max_bytes=layout.MAX_JSON_BYTES)["prompts"]
    chosen = [name for name in exported if only is None or name in only]
    for name in chosen:
        tick = progress.step(f"verify {name}", 1) if progress else lambda: None
        result["backends"][name] = _one(folder, name, golden, expected if greedy else [])
        tick()
    result["ok"] = all(row.get("ok", True) for row in result["backends"].values())
    if all("skipped" in row for row in result["backends"].values()):
        result["ok"] = False
        result["problems"].append(
            "no back end could run: " + "; ".join(r["skipped"] for r in result["backends"].values())
        )
    return result


def _one(folder: Path, name: str, golden: dict[str, Any], expected: list[dict[str, Any]]) -> dict[str, Any]:
    if name != SIMULATOR:
        known = registered()
        reason = known[name].unavailable() if name in known else f"back end {name} is not installed"
        if reason is not None:
            return {"skipped": reason}
    try:
        model = QuantizedModel.from_pretrained(folder, backend=name)
        row = replay(model, golden)
    except MobileICSAError as error:
        return {"ok": False, "error": error.message, "equal_share": 0.0, "max_steps": None}
    needed = MIN_EQUAL_SHARE.get(name, MIN_EQUAL_SHARE_RUNTIME)
    row["ok"] = row["equal_share"] >= needed and row["top1_agreement"] >= MIN_TOP1_AGREEMENT
    row["needed_equal_share"] = needed
    # The simulator recorded the texts: running it again would only say that it is deterministic.
    if expected and name != SIMULATOR:
        row["greedy"] = compare_greedy(model, expected)
    model.close()
    return row

"""The adapters that a finished artifact is exported with: its own, by name, or new ones, from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mobileicsa.artifact import layout
from mobileicsa.artifact.adapter_plan import check_limit
from mobileicsa.artifact.adapters import WINDOWS, prepare, read_adapters, read_basis
from mobileicsa.artifact.manifest import require_files
from mobileicsa.artifact.model import read_checked, read_checked_adapters
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.calibrate.text import make_windows, read_text
from mobileicsa.core.spec import ModelSpec
from mobileicsa.io.json_file import read_json
from mobileicsa.program.adapters import PlanAdapter
from mobileicsa.quantize.steps import Progress

WINDOW_TOKENS = 128


def chosen(
    folder: Path, given: Sequence[str], calibration: Path | None, limit: float, progress: Progress
) -> list[PlanAdapter]:
    """`given`: names of the artifact's adapters, or folders that peft wrote, which follow its weights now.

    New ones are looked at on the text of `calibration`, or, without one, on what the artifact itself wrote.
    """
    check_limit(limit)
    manifest, frozen = read_checked(folder)
    own = {adapter.name: adapter for adapter in read_checked_adapters(folder, manifest)}
    new = [name for name in dict.fromkeys(given) if name not in own]
    made: dict[str, PlanAdapter] = {}
    if new:
        adapters = read_adapters([Path(name) for name in new], frozen.plan.spec)
        require_files(folder, manifest, layout.BASIS)
        windows = _windows(folder, calibration, frozen.plan.spec)
        prepared = prepare(frozen, read_basis(folder), adapters, windows, limit, progress)
        made = dict(zip(new, prepared, strict=True))
    return [own[name] if name in own else made[name] for name in dict.fromkeys(given)]


def _windows(folder: Path, calibration: Path | None, spec: ModelSpec) -> list[list[int]]:
    if calibration is not None:
        encode, where = Tokenizer(folder).encode, str(calibration)
        return make_windows(
            read_text(calibration), encode, spec.vocab_size, WINDOWS, WINDOW_TOKENS, where
        ).windows.tolist()
    rows = read_json(folder / layout.GREEDY, max_bytes=layout.MAX_JSON_BYTES)["prompts"]
    encode = Tokenizer(folder).encode
    return [[*row.get("prompt_ids", encode(row["prompt"])), *row["token_ids"]] for row in rows]

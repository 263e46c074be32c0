"""The folder of an early-exit model: config.json, model.safetensors, and exits.json with cost and accuracy of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileicsa.core.errors import InputError
from mobileicsa.io.json_file import read_json
from mobileicsa.io.paths import inside
from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec
from mobileicsa.models.exit_files import CONFIG, EXITS, MODEL_TYPE, WEIGHTS


def read_model(folder: Path) -> ExitVit:
    """The model of such a folder, in evaluation mode; InputError where the folder is none."""
    from safetensors.torch import load_file

    config = read_json(folder / CONFIG)
    if config.get("model_type") != MODEL_TYPE:
        raise InputError(f"{folder / CONFIG}: model_type {config.get('model_type')!r}, expected {MODEL_TYPE!r}")
    try:
        spec = ExitVitSpec.from_json({name: value for name, value in config.items() if name != "task"})
        model = ExitVit(spec)
        model.load_state_dict(load_file(inside(folder, WEIGHTS)))
    except (TypeError, ValueError, KeyError, RuntimeError, OSError) as error:
        raise InputError(f"{folder}: {CONFIG} and {WEIGHTS} do not fit together: {error}") from error
    return model.eval()


def read_exits(folder: Path, spec: ExitVitSpec) -> list[dict[str, Any]]:
    """Rows {"exit", "blocks", "macs", "accuracy", ...} of exits.json; `macs` grow. InputError where they do not."""
    rows = read_json(folder / EXITS).get("exits")
    sound = isinstance(rows, list) and len(rows) == len(spec.exits) and all(isinstance(r, dict) for r in rows)
    macs = [row.get("macs") for row in rows] if sound and rows is not None else []
    if not sound or not all(type(m) is int and m > 0 for m in macs) or macs != sorted(set(macs)):
        raise InputError(f"{folder / EXITS}: needs {len(spec.exits)} exits whose macs are whole numbers that grow")
    assert isinstance(rows, list)
    return rows

"""The calibration windows of a build: from the user's text, or from text that the model writes itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mobileicsa.artifact.plan_build import BuildPlan
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.calibrate.device import compute_device, naming_memory
from mobileicsa.calibrate.generated import generate_windows, passes
from mobileicsa.calibrate.overlap import line_sketch
from mobileicsa.calibrate.text import CalibrationText, interleaved, make_windows
from mobileicsa.io.hashing import sha256_bytes
from mobileicsa.models.load import load_decoder
from mobileicsa.quantize.recipe import from_text, windows_of
from mobileicsa.quantize.steps import Progress


def calibration_windows(plan: BuildPlan, tokenizer: Tokenizer, progress: Progress) -> tuple[Tensor, dict[str, Any]]:
    """Token ids (N, T) int64 without BOS, and the facts of them for the report.

    A file's name and text stay out of these facts: only hashes and counts go into the artifact.
    """
    samples, length = windows_of(plan.recipe), plan.recipe.calibration.length
    facts: dict[str, Any] = {"seed": plan.options.seed}
    made, notes = _from_text(plan, tokenizer, length)
    if made is None:
        windows = _written(plan, samples, length, progress)
        facts |= {"source": "self-generated", "sha256": sha256_bytes(windows.numpy().tobytes())}
    else:
        windows = made.windows
        facts |= {"source": "file", "sha256": made.sha256, "line_hashes": line_sketch(str(plan.calibration_text))}
        count = samples - windows.shape[0] if plan.recipe.calibration.written else 0
        if count:
            windows = interleaved(windows, _written(plan, count, length, progress))
            facts["self_generated_windows"] = count
    if windows.shape[0] == 1:
        notes.append("n = 1: ranges are unreliable")
    facts |= {"windows": windows.shape[0], "length": windows.shape[1] + 1, "tokens": windows.numel()}
    return windows, {**facts, "note": "; ".join(notes)}


def _from_text(plan: BuildPlan, tokenizer: Tokenizer, length: int) -> tuple[CalibrationText | None, list[str]]:
    """The windows that the user's text gives, if there is one and it is of use, and notes."""
    if plan.calibration_text is None:
        return None, []
    where, wanted = str(plan.options.calibration), from_text(plan.recipe)
    made = make_windows(plan.calibration_text, tokenizer.encode, plan.spec.vocab_size, wanted, length, where)
    if plan.recipe.calibration.written and made.windows.shape[1] < length - 1:
        # All windows have one length, and none should learn from so short ones.
        return None, [f"the text has {made.windows.numel()} tokens, less than a window: left out"]
    return made, [made.note] if made.note else []


def _written(plan: BuildPlan, samples: int, length: int, progress: Progress) -> Tensor:
    device = compute_device()
    tick = progress.step("calibration text", passes(samples, length, plan.spec, device))
    with naming_memory():
        decoder = load_decoder(plan.checkpoint).to(device)
        return generate_windows(decoder, samples, length, plan.options.seed, tick)

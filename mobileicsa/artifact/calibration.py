"""The calibration windows of a build: from the user's text, or from text that the model writes itself."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mobileicsa.artifact.plan_build import BuildPlan
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.calibrate.generated import generate_windows, passes
from mobileicsa.calibrate.overlap import line_sketch
from mobileicsa.calibrate.text import interleaved, make_windows
from mobileicsa.io.hashing import sha256_bytes
from mobileicsa.models.load import load_decoder
from mobileicsa.quantize.recipe import from_text, windows_of
from mobileicsa.quantize.steps import Progress


def calibration_windows(plan: BuildPlan, tokenizer: Tokenizer, progress: Progress) -> tuple[Tensor, dict[str, Any]]:
    """Token ids (N, T) int64 without BOS, and the facts of them for the report.

    A file's name and text stay out of these facts: only hashes and counts go into the artifact.
    """
    amount, text = plan.recipe.calibration, plan.calibration_text
    samples, length = windows_of(plan.recipe), amount.length
    facts: dict[str, Any] = {"seed": plan.options.seed}
    notes: list[str] = []
    if text is None:
        windows = _written(plan, samples, length, progress)
        facts |= {"source": "self-generated", "sha256": sha256_bytes(windows.numpy().tobytes())}
    else:
        where = str(plan.options.calibration)
        wanted = from_text(plan.recipe)
        made = make_windows(text, tokenizer.encode, plan.spec.vocab_size, wanted, length, where)
        windows = made.windows
        facts |= {"source": "file", "sha256": made.sha256, "line_hashes": line_sketch(text)}
        notes += [made.note] if made.note else []
        if wanted < samples:
            count = samples - windows.shape[0]
            windows = interleaved(windows, _written(plan, count, windows.shape[1] + 1, progress))
            facts["self_generated_windows"] = count
    if windows.shape[0] == 1:
        notes.append("n = 1: ranges are unreliable")
    facts |= {"windows": windows.shape[0], "length": windows.shape[1] + 1, "tokens": windows.numel()}
    return windows, {**facts, "note": "; ".join(notes)}


def _written(plan: BuildPlan, samples: int, length: int, progress: Progress) -> Tensor:
    tick = progress.step("calibration text", passes(samples, length))
    return generate_windows(load_decoder(plan.checkpoint), samples, length, plan.options.seed, tick)

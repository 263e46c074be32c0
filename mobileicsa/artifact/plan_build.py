"""Everything about a build that can be known, and go wrong, before heavy work; also the answer to --dry-run."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mobileicsa.artifact.accumulators import check_accumulators
from mobileicsa.artifact.adapter_plan import base_notes, merge, plan_adapters
from mobileicsa.artifact.adapters import MAX_SATURATION
from mobileicsa.artifact.duration import expected_seconds
from mobileicsa.artifact.effort import fitting_recipe, scaled
from mobileicsa.artifact.needs import estimate, saving_memory
from mobileicsa.artifact.packed_size import PackedSize, forecast, limits_for
from mobileicsa.artifact.tokenizer import open_tokenizer
from mobileicsa.calibrate.device import computed_on
from mobileicsa.calibrate.text import read_text
from mobileicsa.core.errors import EnvironmentFault, InputError, UsageError
from mobileicsa.core.scheme import QuantScheme, find_scheme
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.checkpoint import Checkpoint, open_checkpoint
from mobileicsa.io.hashing import sha256_bytes
from mobileicsa.io.machine import available_memory, free_disk, require_memory
from mobileicsa.io.paths import check_output
from mobileicsa.models.adapter import PeftAdapter
from mobileicsa.models.load import check_tensors, read_spec
from mobileicsa.program.backend import backends
from mobileicsa.program.targets import DEFAULT_TARGET, check_scheme, check_size, find_target, fitting
from mobileicsa.quantize.budget import Limits
from mobileicsa.quantize.packed import PROMOTED_BITS
from mobileicsa.quantize.recipe import Recipe, codes_for, from_text, load_recipe, stages_for, windows_of

DEFAULT_RECIPE = "learned"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What the user asked for; the fields are the flags of `mobileicsa quantize`."""

    model: str
    scheme: str
    output: Path
    recipe: str | None = None  # the default
    overrides: Sequence[str] = ()
    calibration: Path | None = None
    effort: str = "default"
    targets: Sequence[str] = (DEFAULT_TARGET,)
    seed: int = 0
    overwrite: bool = False
    resume: bool = False
    strict: bool = False
    budget_bytes: int | None = None  # 4-bit schemes only, as the next
    max_ppl_increase: float | None = None
    adapters: Sequence[Path] = ()
    merge_adapter: Path | None = None
    max_adapter_saturation: float = MAX_SATURATION


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Checked inputs of a build. `run_id` names the work space; equal inputs give equal ids."""

    options: BuildOptions
    checkpoint: Checkpoint
    spec: ModelSpec
    scheme: QuantScheme
    recipe: Recipe
    limits: Limits | None
    packed: PackedSize
    targets: tuple[Target, ...]
    calibration_text: str | None
    unread_tensors: list[str]
    memory_bytes: int
    disk_bytes: int
    run_id: str
    adapters: tuple[PeftAdapter, ...] = ()
    merged: PeftAdapter | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.checkpoint.source_name,
            "model_type": self.spec.model_type,
            "layers": self.spec.num_layers,
            "scheme": self.scheme.to_json(),
            "recipe": self.recipe.model_dump(mode="json"),
            "limits": None if self.limits is None else self.limits.to_json(),
            "calibration": str(self.options.calibration) if self.options.calibration else "self-generated",
            "targets": {target.name: list(target.backends) for target in self.targets},
            "output": str(self.options.output),
            "estimates": {
                "seconds_on_two_cores": round(sum(seconds for _, seconds in expected_seconds(self))),
                "peak_memory_bytes": self.memory_bytes,
                "disk_bytes": self.disk_bytes,
                "packed_weights_bytes": {"least": self.packed.least, "most": self.packed.most},
                "available_memory_bytes": available_memory(),
                "free_disk_bytes": free_disk(self.options.output),
            },
            "steps": self.steps(),
            "ignored_config": list(self.checkpoint.ignored),
            "unread_tensors": self.unread_tensors,
            "notes": self.notes,
            "adapters": [adapter.name for adapter in self.adapters],
            "merged_adapter": None if self.merged is None else self.merged.name,
        }

    @property
    def written_windows(self) -> int:
        """How many calibration windows the model writes, where the user's text has enough for the others."""
        windows = windows_of(self.recipe)
        return windows if self.calibration_text is None else windows - from_text(self.recipe)

    def _text_source(self) -> str:
        if self.calibration_text is None:
            return "written by the model itself"
        written = self.written_windows
        return "from file" + (f", {written} windows written by the model itself" if written else "")

    def _mixing(self, limits: Limits) -> str:
        parts = []
        if self.scheme.weight_bits < PROMOTED_BITS:
            bits = self.scheme.weight_bits
            parts.append(f"measure what {bits} bits cost each linear, give 8 to those that gain most for a byte")
        if limits.wide_inputs and limits.max_ppl_increase is not None:
            parts.append("give 16 bits to linears' inputs, as many as are needed then")
        return "; ".join(parts)

    def steps(self) -> list[str]:
        steps = [f"calibration text: {self._text_source()}"]
        if self.recipe.prefix_tokens:
            tokens = "one token" if self.recipe.prefix_tokens == 1 else f"up to {self.recipe.prefix_tokens} tokens"
            steps.append(f"search a sink prefix of {tokens} after BOS")
        if self.recipe.rotation == "learned":
            steps.append("learn rotations of the residual stream and of each layer's values")
        if self.limits is not None:
            steps.append(self._mixing(self.limits))
        steps.append(f"quantise {self.spec.num_layers} layers, embedding and head")
        scopes = {"block": "in each block", "model": "end to end"}
        steps += [f"learn for {stage.steps} steps {scopes[stage.scope]}" for stage in self.recipe.learn]
        if self.recipe.bias_correction:
            steps.append("fold the mean output error of each linear into its bias")
        steps += [f"adapter {adapter.name}: follow the weights, look at its ranges" for adapter in self.adapters]
        for target in self.targets:
            steps += [f"write {backend} for {target.name}" for backend in target.backends]
        if self.limits is not None:
            steps.append("measure perplexity on held-out text that the model writes")
        return [*steps, "record golden vectors", "write report, model card and manifest"]


def plan_build(options: BuildOptions) -> BuildPlan:
    """Check everything; raises the error the user should see, writes nothing."""
    scheme = find_scheme(options.scheme)
    recipe = load_recipe(options.recipe or DEFAULT_RECIPE, options.overrides)
    recipe = scaled(stages_for(recipe, scheme), options.effort)
    scheme = codes_for(scheme, recipe)
    if not options.targets:
        raise UsageError("--target: at least one target is needed")
    targets = tuple(find_target(name) for name in dict.fromkeys(options.targets))
    limits = limits_for(scheme, targets, options.budget_bytes, options.max_ppl_increase)
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed {options.seed}: must lie between 0 and 2**63 - 1")
    check_output(options.output, _local(options.model), options.overwrite)
    _check_targets(targets, scheme)
    text = None if options.calibration is None else read_text(options.calibration)
    checkpoint = open_checkpoint(options.model)
    spec = read_spec(checkpoint)
    checkpoint, folded = merge(checkpoint, spec, options.merge_adapter)
    adapters = plan_adapters(checkpoint, spec, options.adapters, targets, options.max_adapter_saturation)
    odd = base_notes([*adapters, *([] if folded is None else [folded])], checkpoint.source_name, options.strict)
    special = _check_tokenizer(checkpoint, spec, options.strict)
    recipe, notes = fitting_recipe(recipe, spec)
    unread = check_tensors(spec, checkpoint.tensors)
    if unread and options.strict:
        raise InputError(f"{options.model}: {len(unread)} tensors are not part of the model, e.g. {unread[0]}")
    packed, size_notes = forecast(spec, scheme, recipe, limits)
    check_accumulators(spec, scheme, limits)
    for target in targets:
        check_size(target, packed.least)
    targets = tuple(fitting(target, spec) for target in targets)
    memory, disk = estimate(spec, recipe, limits, targets)
    lean, _ = estimate(spec, saving_memory(recipe), limits, targets)
    _check_machine(options.output, memory, lean, disk)
    _check_finite(checkpoint, unread)
    return BuildPlan(
        options=options,
        checkpoint=checkpoint,
        spec=spec,
        scheme=scheme,
        recipe=recipe,
        limits=limits,
        packed=packed,
        targets=targets,
        calibration_text=text,
        unread_tensors=unread,
        memory_bytes=memory,
        disk_bytes=disk,
        run_id=_run_id(options, checkpoint, scheme, recipe, limits, targets, text),
        adapters=adapters,
        merged=folded,
        notes=odd + special + notes + size_notes,
    )


def _local(model: str) -> Path | None:
    try:
        path = Path(model).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # no file name at all: open_checkpoint says so
        return None


def _check_tokenizer(checkpoint: Checkpoint, spec: ModelSpec, strict: bool) -> list[str]:
    """A folder's tokenizer now; a GGUF's takes seconds to convert, and its vocabulary is that of its embedding.

    Returns what is odd but no error (with `strict` it is one).
    """
    if checkpoint.folder is None:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint.write_tokenizer(Path(scratch))
        notes = open_tokenizer(Path(scratch), spec, checkpoint.source_name).check_special(spec, checkpoint.source_name)
    for note in notes:
        if strict:
            raise InputError(note)
        log.warning("%s", note)
    return notes


def _check_targets(targets: tuple[Target, ...], scheme: QuantScheme) -> None:
    known = backends()
    for target in targets:
        check_scheme(scheme, target)
        for name in target.backends:
            reason = known[name].unavailable() if name in known else "no such back end is installed"
            if reason is not None:
                raise EnvironmentFault(f"--target {target.name} needs {name}: {reason}")


def _check_finite(checkpoint: Checkpoint, unread: list[str]) -> None:
    """Read every weight once: NaN in the last layer must be found now, not when that layer's turn comes."""
    for name in checkpoint.tensors.names():
        if name not in unread:
            checkpoint.tensors.get(name)


def _check_machine(output: Path, memory: int, lean: int, disk: int) -> None:
    """`lean`: memory with `save_memory` in every stage that can have it."""
    saved = lean < memory and lean <= available_memory()
    require_memory(memory, f"set learn.N.save_memory=true ({lean >> 20:,} MiB, slower), " if saved else "")
    free = free_disk(output)
    if disk > free:
        raise EnvironmentFault(
            f"{output}: needs about {disk / 2**20:.0f} MiB of disk, {free / 2**20:.0f} MiB are free",
            hint="free some space or choose another --output",
        )


def _run_id(
    options: BuildOptions,
    checkpoint: Checkpoint,
    scheme: QuantScheme,
    recipe: Recipe,
    limits: Limits | None,
    targets: tuple[Target, ...],
    text: str | None,
) -> str:
    parts = [
        checkpoint.identity,
        scheme.to_json(),
        recipe.model_dump(mode="json"),
        options.seed,
        [repr(target) for target in targets],
        # Results of another version must not be mixed with ours.
        [f"{package} {version(package)}" for package in ("mobileicsa", "torch")],
        None if text is None else sha256_bytes(text.encode()),
        *([] if limits is None else [limits.to_json()]),
        *computed_on(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

"""`build`: one run from a checked plan to a finished artifact folder; resumable, atomic."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mobileicsa.artifact import layout
from mobileicsa.artifact.adapters import facts_file, prepare, tensors_file
from mobileicsa.artifact.calibration import calibration_windows
from mobileicsa.artifact.exported import target_json, write_backend
from mobileicsa.artifact.golden import record, record_greedy
from mobileicsa.artifact.held_out import measure_increase
from mobileicsa.artifact.manifest import write_manifest
from mobileicsa.artifact.model import SIMULATOR, QuantizedModel, read_frozen
from mobileicsa.artifact.plan_build import BuildPlan
from mobileicsa.artifact.tokenizer import Tokenizer, open_tokenizer
from mobileicsa.io.hashing import sha256_bytes, sha256_file
from mobileicsa.io.lock import OutputLock
from mobileicsa.io.machine import peak_memory
from mobileicsa.io.paths import public_name
from mobileicsa.io.staging import Staging
from mobileicsa.models.load import FloatWeights
from mobileicsa.program.adapters import PlanAdapter
from mobileicsa.program.frozen import FrozenModel, build_adapted
from mobileicsa.quantize.pipeline import Result, quantize_model
from mobileicsa.quantize.steps import Progress

Finish = Callable[[Path], None]

log = logging.getLogger(__name__)


def build(plan: BuildPlan, progress: Progress, finish: Finish) -> dict[str, Any]:
    """Quantise, export and record; returns report.json. `finish(folder)` adds the report page and model card.

    An interrupted build keeps its finished steps beside the output; the same call goes on from there, with `overwrite`
    only where `resume` says so.
    """
    options = plan.options
    with OutputLock(options.output):
        staging = Staging(options.output, plan.run_id)
        if staging.root.exists() and not options.resume:
            if options.overwrite:
                staging.discard()
            else:
                log.warning(
                    "going on from an interrupted run's finished steps (%s); --overwrite starts again", staging.root
                )
        with staging:
            report = _Build(plan, staging, progress).run()
            staging.write_json(layout.REPORT, report)
            finish(staging.folder)
            # Weights that changed on the way would make an artifact of no model at all.
            plan.checkpoint.tensors.check_unchanged()
            write_manifest(staging.folder, _manifest_facts(plan))
            staging.commit(overwrite=options.overwrite)
    return report


def _manifest_facts(plan: BuildPlan) -> dict[str, Any]:
    return {
        "mobileicsa_version": version("mobileicsa"),
        "scheme": plan.scheme.name,
        "model_identity": plan.checkpoint.identity,
        "run": plan.run_id,
        "default_target": plan.targets[0].name,
        "targets": {target.name: target_json(target) for target in plan.targets},
        **({"adapters": [adapter.name for adapter in plan.adapters]} if plan.adapters else {}),
    }


class _Build:
    """The steps of one build, in order, each timed."""

    def __init__(self, plan: BuildPlan, staging: Staging, progress: Progress) -> None:
        self.plan, self.staging, self.progress = plan, staging, progress
        self.stages: list[dict[str, Any]] = []
        self.adapters: list[PlanAdapter] = []

    def run(self) -> dict[str, Any]:
        plan = self.plan
        # Left by a run that was killed in its last step; files change from here on.
        self.staging.path(layout.MANIFEST).unlink(missing_ok=True)
        self._timed("tokenizer", lambda: plan.checkpoint.write_tokenizer(self.staging.folder))
        tokenizer = open_tokenizer(self.staging.folder, plan.spec, plan.checkpoint.source_name)
        windows, calibration = self._timed("calibration text", lambda: self._calibration(tokenizer))
        result: Result = self._timed("quantise", lambda: self._quantize(windows))
        self._write_model(result)
        model = FrozenModel(result.plan, result.tensors)
        self.adapters = self._timed("adapters", lambda: self._adapt(model, result.basis, windows))
        exported = self._export(model)
        self._write_rest(result)
        if plan.limits is not None:
            result.report["mixed"]["measured"] = self._timed("held-out perplexity", self._increase)
        self._timed("golden vectors", self._golden)
        return self._report(result, calibration, exported, tokenizer)

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        value = work()
        seconds = round(time.monotonic() - start, 3)
        self.stages.append({"name": name, "seconds": seconds, "peak_rss_bytes": peak_memory()})
        return value

    def _calibration(self, tokenizer: Tokenizer) -> tuple[Tensor, dict[str, Any]]:
        store, plan = self.staging.stages, self.plan
        # The tokenizer is not part of the checkpoint's identity.
        inputs = sha256_bytes(f"{plan.run_id} {sha256_file(self.staging.folder / layout.TOKENIZER)}".encode())
        if not store.done("calibration", inputs):
            windows, facts = calibration_windows(plan, tokenizer, self.progress)
            store.save("calibration", inputs, {"windows": windows}, facts)
        tensors, data = store.load("calibration")
        if data["note"]:
            log.warning("calibration text: %s", data["note"])
        return tensors["windows"], data

    def _quantize(self, windows: Tensor) -> Result:
        plan = self.plan
        return quantize_model(
            plan.spec,
            FloatWeights(plan.spec, plan.checkpoint.tensors),
            windows,
            plan.scheme,
            plan.recipe,
            store=self.staging.stages,
            identity=plan.checkpoint.identity,
            progress=self.progress,
            seed=plan.options.seed,
            limits=plan.limits,
        )

    def _write_model(self, result: Result) -> None:
        self.staging.write_tensors(layout.WEIGHTS, result.tensors)
        self.staging.write_json(layout.PLAN, result.plan.to_json())
        self.staging.write_tensors(layout.BASIS, result.basis)

    def _adapt(self, model: FrozenModel, basis: dict[str, Tensor], windows: Tensor) -> list[PlanAdapter]:
        plan = self.plan
        limit = plan.options.max_adapter_saturation
        # Of a run before, with other adapters.
        shutil.rmtree(self.staging.folder / layout.ADAPTERS, ignore_errors=True)
        adapters = prepare(model, basis, plan.adapters, windows.tolist(), limit, self.progress)
        for adapter in adapters:
            self.staging.write_tensors(tensors_file(adapter.name), adapter.tensors)
            self.staging.write_json(facts_file(adapter.name), adapter.facts)
        return adapters

    def _export(self, model: FrozenModel) -> dict[str, Any]:
        exported: dict[str, Any] = {}
        run = " ".join([self.plan.run_id, *(adapter.sha256 for adapter in self.plan.adapters)])
        first = self.plan.targets[0].name
        for target in self.plan.targets:
            decoder = None
            for name in target.backends:
                subfolder = layout.backend_folder(target.name, name, first)
                stage = f"export-{target.name}-{name}"
                facts = self._finished_export(stage, run, subfolder)
                if facts is None:
                    # A killed run may have left files here that the exporter does not replace.
                    shutil.rmtree(self.staging.folder / subfolder, ignore_errors=True)
                    decoder = decoder or build_adapted(model, self.adapters, primitive=target.nonlinear == "primitive")
                    tick = self.progress.step(f"write {name} for {target.name}", 1)
                    root = self.staging.folder
                    write = partial(
                        write_backend, decoder, target, name, root / subfolder, model.plan, self.adapters, root=root
                    )
                    facts = self._timed(stage, write)
                    tick()
                    self.staging.stages.save(stage, run, {}, facts)
                exported.setdefault(target.name, {})[name] = {
                    "files": {file: row["bytes"] for file, row in facts["files"].items()},
                    "facts": facts["facts"],
                }
        return exported

    def _finished_export(self, stage: str, run: str, subfolder: str) -> dict[str, Any] | None:
        """Facts of an export that an interrupted run completed and whose files are still whole."""
        store, folder = self.staging.stages, self.staging.folder / subfolder
        if not store.done(stage, run):
            return None
        _, facts = store.load(stage)
        for name, row in facts["files"].items():
            path = folder / name
            if not path.is_file() or sha256_file(path) != row["sha256"]:
                return None
        return facts

    def _write_rest(self, result: Result) -> None:
        plan = self.plan
        config = {
            **plan.checkpoint.config,
            "quantization_config": {
                "quant_method": "mobileicsa",
                "version": version("mobileicsa"),
                "scheme": plan.scheme.name,
                "weight_bits": plan.scheme.weight_bits,
                "promoted_to_8_bits": result.plan.promoted,
                "inputs_of_16_bits": list(result.plan.scheme.wide_edges),
                "ignore": [],
            },
        }
        self.staging.write_json(layout.CONFIG, config)
        text = yaml.safe_dump(plan.recipe.model_dump(mode="json"), sort_keys=True)
        self.staging.write_bytes(layout.RECIPE, text.encode())

    def _simulator(self) -> QuantizedModel:
        """Read back from the files, as a user's runs will be."""
        return QuantizedModel.of_frozen(
            self.staging.folder, read_frozen(self.staging.folder), self.plan.targets[0], SIMULATOR
        )

    def _increase(self) -> dict[str, Any]:
        return measure_increase(self.plan, self.staging.stages, self._simulator, self.progress)

    def _golden(self) -> None:
        tick = self.progress.step("golden vectors", 2)
        simulator = self._simulator()
        self.staging.write_tensors(layout.GOLDEN, record(simulator))
        tick()
        self.staging.write_json(layout.GREEDY, {"prompts": record_greedy(simulator)})
        tick()

    def _report(
        self, result: Result, calibration: dict[str, Any], exported: dict[str, Any], tokenizer: Tokenizer
    ) -> dict[str, Any]:
        plan, spec = self.plan, self.plan.spec
        table = spec.vocab_size * spec.hidden_size * (1 if spec.tied_head else 2)
        prefix_ids = list(result.plan.prefix_ids)
        return {
            "schema": 1,
            "mobileicsa_version": version("mobileicsa"),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "model": {
                "name": public_name(plan.checkpoint.source_name),
                "revision": plan.checkpoint.revision,
                "model_type": spec.model_type,
                "parameters": spec.decoder_weight_count + table,
                "decoder_weights": spec.decoder_weight_count,
                "layers": spec.num_layers,
                "identity": plan.checkpoint.identity,
                "license": plan.checkpoint.config.get("license"),
            },
            "scheme": plan.scheme.name,
            "recipe": plan.recipe.model_dump(mode="json"),
            "effort": plan.options.effort,
            "seed": plan.options.seed,
            "calibration": calibration,
            "adapters": {adapter.name: adapter.facts for adapter in self.adapters},
            "merged_adapter": None if plan.merged is None else plan.merged.name,
            "prefix": {
                "ids": prefix_ids,
                "text": [tokenizer.token(i) for i in prefix_ids],
                "trials": result.report["prefix"],
            },
            "edges": result.report["edges"],
            "weights": result.report["weights"],
            "smoothing": result.report["smoothing"],
            "quality": result.report["quality"],
            "learning": result.report.get("learning"),
            "mixed": result.report.get("mixed"),
            "rotation": result.report.get("rotation"),
            "targets": exported,
            "default_target": plan.targets[0].name,
            "sizes": {
                "float_bytes": (spec.decoder_weight_count + table) * 4,
                "weights_bytes": (self.staging.folder / layout.WEIGHTS).stat().st_size,
            },
            "stages": self.stages,
            "unread_tensors": plan.unread_tensors,
            "notes": plan.notes,
            "torch_version": torch.__version__,
        }

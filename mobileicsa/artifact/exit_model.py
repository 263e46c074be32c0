"""`ExitModel`: an early-exit artifact opened on a back end, with its policy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from mobileicsa.artifact import layout
from mobileicsa.artifact.exit_latency import TimedStages
from mobileicsa.artifact.exit_program import stage_names
from mobileicsa.artifact.manifest import EARLY_EXIT, read_manifest, require_files
from mobileicsa.core.errors import EnvironmentFault, UsageError
from mobileicsa.io.json_file import read_json
from mobileicsa.io.tensor_file import read_tensors
from mobileicsa.models.early_exit_vit import ExitVitSpec
from mobileicsa.models.exit_files import EXITS
from mobileicsa.models.exit_folder import read_exits
from mobileicsa.program.backend import StagedBackend, StageSession, find_backend
from mobileicsa.program.early_exit import Decision, ExitTable, decide, walk


class ExitModel:
    """Stages of an artifact on one back end; inputs stop where the policy says."""

    def __init__(self, spec: ExitVitSpec, table: ExitTable, session: StageSession) -> None:
        self.spec, self.table, self.session = spec, table, session
        self.names = stage_names(len(spec.exits))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, backend: str | None = None, threads: int | None = None
    ) -> ExitModel:
        """Open an artifact on a back end, by default its first; its files are checked against the manifest.

        Raises InputError (not an early-exit artifact), VerificationError (damaged), EnvironmentFault (not installed).
        """
        folder = Path(folder)
        manifest = read_manifest(folder, EARLY_EXIT)
        known = manifest["targets"][manifest["default_target"]]["backends"]
        name = backend or known[0]
        if name not in known:
            raise UsageError(f"--backend {name}: the artifact has {', '.join(known)}")
        for file in (layout.CONFIG, EXITS, layout.CONFIDENCES, f"{name}/"):
            require_files(folder, manifest, file)
        back_end = find_backend(name)
        reason = back_end.unavailable()
        if reason is not None:
            raise EnvironmentFault(f"--backend {name}: {reason}")
        assert isinstance(back_end, StagedBackend)
        config = read_json(folder / layout.CONFIG)
        spec = ExitVitSpec.from_json({key: value for key, value in config.items() if key != "task"})
        found = read_tensors(folder / layout.CONFIDENCES)
        macs = tuple(row["macs"] for row in read_exits(folder, spec))
        table = ExitTable(
            macs=macs, float_confidence=found["float"].double().numpy(), confidence=found["integer"].double().numpy()
        )
        session = back_end.open_stages(folder / name, stage_names(len(spec.exits)), threads=threads)
        return cls(spec, table, session)

    def decisions(self, inputs: Tensor, threshold: float, session: StageSession | None = None) -> Iterator[Decision]:
        """One for each of the inputs (samples, channels, height, width); `threshold` is meant for the float model."""
        thresholds = self.table.refitted(threshold)
        for sample in inputs:
            yield decide(session or self.session, self.names, sample.numpy(), thresholds, self.table.macs)

    def run(self, inputs: Tensor, *, threshold: float | None = None, mac_budget: float | None = None) -> dict[str, Any]:
        """{"threshold", "thresholds", "mean_macs", "taken", "latency", "decisions"}; without a policy every input takes
        all exits. `latency`: measured on the way, medians of stages and up to exits; `mean_ms` of an input by them.

        `mac_budget`: multiply-accumulates an input may take on average, as the calibration inputs have it.
        """
        if threshold is not None and mac_budget is not None:
            raise UsageError("--threshold and --mac-budget: give one of the two")
        if mac_budget is not None:
            threshold = self.table.for_budget(mac_budget)
        chosen = 1.0 if threshold is None else threshold
        for _ in walk(self.session, self.names, inputs[0].numpy()):  # the first call of a stage is slower
            pass
        timed = TimedStages(self.session)
        rows = [vars(decision) for decision in self.decisions(inputs, chosen, timed)]
        latency = timed.latency(self.names)
        mean_ms = sum(latency["exits_ms"][row["exit"] - 1] for row in rows) / len(rows)
        return {
            "threshold": chosen,
            "thresholds": self.table.refitted(chosen).tolist(),
            "mean_macs": sum(row["macs"] for row in rows) / len(rows),
            "taken": [sum(row["exit"] == e for row in rows) for e in range(1, len(self.names) + 1)],
            "latency": {**latency, "mean_ms": mean_ms},
            "decisions": rows,
        }

    def close(self) -> None:
        self.session.close()

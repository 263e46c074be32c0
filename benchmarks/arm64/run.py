"""The artifacts' files on arm64 runtimes under qemu-user, compared with x86 and with the golden vectors.

    python -m benchmarks.arm64.run ARTIFACT... --work build/arm64 --name small-llama [--max-calls N]

Two forms of the ONNX files run without any optimisation on both processors: as they are written, whose float32 regions
each build of a runtime rounds in its own way, and the exact form that `verify` opens (integer sums, float64 between
encodings), which must give equal integers. The `.pte` runs as it is; its kernels are other ones on each processor.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from mobileicsa_export.onnx import DATA_FILE, MODEL_FILES
from mobileicsa_export.onnx_load import load_graph
from mobileicsa_export.onnx_lowering import Kernels, lower

from benchmarks.arm64 import root as arm_root
from benchmarks.steps import RESULTS
from mobileicsa.artifact import layout
from mobileicsa.artifact.model import read_frozen
from mobileicsa.bench.environment import environment
from mobileicsa.io.json_file import write_json
from mobileicsa.io.tensor_file import read_tensors

RUNNER = Path(__file__).parent / "runner.py"
# What every processor multiplies exactly; the same file for both.
PORTABLE = Kernels(unsigned=False, mixed_sign_exact=True)
SKIPPED = 0  # exit status where there is no emulator: the reason is printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", help="also write benchmarks/results/arm64-NAME.json")
    parser.add_argument("--max-calls", type=int, default=1 << 30, help="golden calls of each artifact (default: all)")
    options = parser.parse_args()
    reason = arm_root.missing()
    if reason is not None:
        print(f"skipped: {reason}")
        return SKIPPED
    arm_root.make(options.work / "root")
    commands = {"x86": [sys.executable], "arm64": arm_root.command(options.work / "root")}
    result: dict[str, Any] = {"environment": environment(), "wheels": arm_root.WHEELS, "artifacts": {}}
    equal = True
    for artifact in options.artifacts:
        work = options.work / artifact.resolve().name
        work.mkdir(parents=True, exist_ok=True)
        golden = _recorded(artifact, options.max_calls)
        np.savez(work / "calls.npz", allow_pickle=False, **golden)
        forms = {
            "as_written": ("onnx", artifact / "onnx"),
            "exact": ("onnx", _exact_form(artifact / "onnx", work / "exact")),
            "executorch": ("executorch", artifact / "executorch"),
        }
        rows = {form: _compared(commands, *files, golden, work, form) for form, files in forms.items()}
        result["artifacts"][artifact.resolve().name] = rows
        equal = equal and rows["exact"]["arm64_to_x86"]["different"] == 0
        for form, row in rows.items():
            print(artifact.name, form, row, flush=True)
    if options.name:
        write_json(RESULTS / f"arm64-{options.name}.json", result)
    print("equal" if equal else "DIFFERENT: the exact form gives other integers on arm64")
    return 0 if equal else 1


def _recorded(artifact: Path, max_calls: int) -> dict[str, Any]:
    """The first golden calls and the prefix, as runner.py reads them."""
    vectors = read_tensors(artifact / layout.GOLDEN)
    calls = {name: t.numpy() for name, t in vectors.items() if int(name.split(".")[0]) < max_calls}
    prefix = [rows.numpy() for pair in read_frozen(artifact).prefix_cache() for rows in pair]
    ids, _, cache, *_ = load_graph(artifact / "onnx" / MODEL_FILES["prefill"]).graph.inputs
    shapes = {"cache_shape": np.array(cache.shape.numpy()), "chunk": np.array(ids.shape.numpy()[1])}
    return {**calls, **shapes, **{f"prefix.{index}": rows for index, rows in enumerate(prefix)}}


def _exact_form(folder: Path, output: Path) -> Path:
    """The files in the form of `OnnxBackend.open_exact`, with their weights."""
    output.mkdir(exist_ok=True)
    shutil.copyfile(folder / DATA_FILE, output / DATA_FILE)  # links are refused
    for name in MODEL_FILES.values():
        model = load_graph(folder / name)
        lower(model, PORTABLE, exact=True)
        (output / name).write_bytes(ir.to_proto(model).SerializeToString())
    return output


def _compared(
    commands: dict[str, list[str]], runtime: str, folder: Path, golden: dict[str, Any], work: Path, form: str
) -> dict[str, Any]:
    outputs = {}
    for processor, command in commands.items():
        path = work / f"{form}-{processor}.npz"
        _replay([*command, str(RUNNER), runtime], folder, work / "calls.npz", path)
        outputs[processor] = dict(np.load(path))
    arm, x86 = outputs["arm64"], outputs["x86"]
    same = [np.array_equal(arm[name], x86[name]) for name in arm if name.endswith(".logits")]
    return {
        "arm64_to_x86": _steps(arm, x86),
        "arm64_to_golden": _steps(arm, golden),
        "x86_to_golden": _steps(x86, golden),
        "calls_with_equal_logits": sum(same),
        "calls": len(same),
        **{f"{name}_{key}": outputs[name][key].item() for name in outputs for key in ("seconds", "version", "machine")},
    }


def _replay(command: Sequence[str], folder: Path, calls: Path, output: Path) -> None:
    line = [*command, str(folder), str(calls), str(output)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}: exit status {done.returncode}\n{done.stderr}")


def _steps(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Differences of the calls' K/V integers, in steps."""
    steps = [np.abs(ours[n].astype(int) - theirs[n]).ravel() for n in ours if n.endswith(".rows")]
    every = np.concatenate(steps)
    different = int((every > 0).sum())
    return {
        "integers": every.size,
        "different": different,
        "equal_share": 1.0 - different / every.size,
        "max_steps": int(every.max()),
    }


if __name__ == "__main__":
    sys.exit(main())

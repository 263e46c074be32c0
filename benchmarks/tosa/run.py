"""An artifact on TOSA: agreement with the simulator, perplexity on the reference model, what Vela says of it.

    python -m benchmarks.tosa.run --artifact out --text wiki.test.raw --name tosa-smollm2-w8a8

Lowering is kept in the cache, each window in the work folder beside it: a run that was stopped goes on. Both sides read
the same windows: the simulator with every inner edge rounded, and the flatbuffers on Arm's reference model.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mobileicsa_export.tosa import totals
from mobileicsa_export.tosa_shards import each_record, read_index

from benchmarks.steps import RESULTS, WINDOW
from benchmarks.tosa.agreement import compare
from mobileicsa.artifact.exported import export_artifact
from mobileicsa.artifact.lowered import Lowered
from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.bench.environment import environment
from mobileicsa.evaluate.perplexity import plan_windows
from mobileicsa.io.json_file import write_json
from mobileicsa.program.targets import find_target
from mobileicsa.quantize.steps import Quiet


def window_loss(model: QuantizedModel, tokens: list[int]) -> dict[str, Any]:
    """Summed negative log-likelihood of every token behind the prefix (or BOS), and the seconds it took."""
    started = time.monotonic()
    logits = torch.cat(list(model.logit_chunks(tokens))).to(torch.float64)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(tokens), reduction="sum")
    best = logits.argmax(dim=-1).tolist()
    return {"loss": float(loss), "tokens": len(tokens), "best": best, "seconds": round(time.monotonic() - started, 1)}


def perplexities(tosa: QuantizedModel, simulator: QuantizedModel, text: str, count: int, work: Path) -> dict[str, Any]:
    ids = tosa.tokenizer.encode(text)
    windows = plan_windows(len(ids), WINDOW, None, has_bos=True)[:count]
    rows = []
    for piece in windows:
        path = work / f"window-{piece.start}.json"
        if not path.is_file():
            tokens = ids[piece.start : piece.end]
            write_json(path, {name: window_loss(m, tokens) for name, m in (("tosa", tosa), ("simulator", simulator))})
        rows.append(json.loads(path.read_text(encoding="utf-8")))
        shown = (f"{side} {row['loss']:.2f} nats in {row['seconds']} s" for side, row in rows[-1].items())
        print(f"{path.name}: {', '.join(shown)}", flush=True)
    found: dict[str, Any] = {"windows": len(rows), "window": WINDOW}
    for side in ("tosa", "simulator"):
        found[f"{side}_perplexity"] = math.exp(
            sum(r[side]["loss"] for r in rows) / sum(r[side]["tokens"] for r in rows)
        )
        found[f"{side}_seconds_a_window"] = round(sum(r[side]["seconds"] for r in rows) / len(rows), 1)
    same = [a == b for r in rows for a, b in zip(r["tosa"]["best"], r["simulator"]["best"], strict=True)]
    return {**found, "same_best_token": sum(same) / len(same)}


def held(folder: Path) -> dict[str, Any]:
    """Tensors by type in all flatbuffers of a method, the real-valued ones, and bytes."""
    found = {}
    for method in read_index(folder)["methods"]:
        records = list(each_record(folder, method))
        found[method] = {
            "dtypes": totals(r.dtypes for r in records),
            "float_tensors": sum(r.float_tensors for r in records),
            "bytes": sum(r.bytes for r in records),
        }
    return found


def agreements(lowered: Lowered, tosa: QuantizedModel, text: str, work: Path) -> dict[str, Any]:
    """Both methods behind the prefix: a whole chunk of the text, then one token behind the simulator's cache."""
    path = work / "agreement.json"
    if not path.is_file():
        write_json(path, _agreements(lowered, tosa, text))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _agreements(lowered: Lowered, tosa: QuantizedModel, text: str) -> dict[str, Any]:
    runner, chunk = tosa.runner, lowered.target.prefill_chunk
    ids = [*tosa.first, *tosa.tokenizer.encode(text[:100_000])][: chunk + 1]
    runner.reset()
    names = tosa.session.cache_names
    found = {}
    for method, tokens in (("prefill", ids[:chunk]), ("decode", ids[chunk:])):
        inputs = dict(zip(names, (rows.copy() for rows in runner.cache), strict=True))
        given = {"input_ids": np.array([tokens]), "position": np.array([runner.position])}
        found[method] = compare(lowered, tosa.session, method, {**given, **inputs})
        runner.prefill(tokens)
    return found


def estimates(artifact: Path, lowered: Path, targets: list[str]) -> dict[str, Any]:
    """What Vela says of the whole artifact for each target, compiled beside what was lowered of it."""
    found = {}
    for name in targets:
        output = lowered.with_name(f"{lowered.name}-{name}")
        path = output.with_suffix(".json")
        if not path.is_file():
            facts = export_artifact(artifact, find_target(name), output, Quiet())
            write_json(
                path, {key: facts[key] for key in ("delegated_share", "float_tensors", "unsupported", "estimates")}
            )
        found[name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--name", required=True, help="of the result's file")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--vela", nargs="*", default=[], metavar="TARGET", help="targets of the back end ethos-u")
    options = parser.parse_args()
    text = options.text.read_text(encoding="utf-8")
    lowered = Lowered(options.artifact, "tosa")
    started = time.monotonic()
    tosa, simulator = lowered.open(Quiet()), lowered.simulator()
    print(f"lowered or found in {time.monotonic() - started:.0f} s: {lowered.files}", flush=True)
    work = lowered.files.with_name(f"{lowered.files.name}-windows")
    work.mkdir(exist_ok=True)
    result = {
        "artifact": options.artifact.name,
        "scheme": lowered.frozen.plan.scheme.name,
        "layers": lowered.frozen.plan.spec.num_layers,
        "text": options.text.name,
        "target": {"context": lowered.target.context, "prefill_chunk": lowered.target.prefill_chunk},
        "flatbuffers": held(lowered.files / "tosa"),
        "agreement": agreements(lowered, tosa, text, work),
        "perplexity": perplexities(tosa, simulator, text, options.windows, work),
        "vela": estimates(options.artifact, lowered.files, options.vela),
        "environment": environment(),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{options.name}.json"
    write_json(path, result)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()

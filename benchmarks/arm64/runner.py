"""Replays recorded calls on the ONNX files of an artifact, as written: needs numpy and onnxruntime only.

    python runner.py MODEL_FOLDER CALLS.npz OUTPUT.npz

It runs on the interpreter of another processor, so it imports nothing of ours. CALLS.npz: `<k>.token_ids`,
`<k>.position`, `<k>.rows` of each call (see mobileicsa/artifact/golden.py) and `prefix.<i>`, the cache's first rows.
A call at the prefix's end is a prefill; every call starts from the recorded cache. OUTPUT.npz: `<k>.rows`,
`<k>.logits` (vocab,) float32 behind the last token, and `seconds`, `version`, `machine`.
"""

from __future__ import annotations

import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

FILES = {"decode": "model.onnx", "prefill": "model_prefill.onnx"}


def main() -> None:
    folder, calls, output = (Path(argument) for argument in sys.argv[1:4])
    recorded = dict(np.load(calls))
    start = time.perf_counter()
    results = replay({method: load(folder / name) for method, name in FILES.items()}, recorded)
    facts = {"version": ort.__version__, "machine": platform.machine(), "seconds": time.perf_counter() - start}
    arrays: dict[str, Any] = {**results, **{name: np.array(value) for name, value in facts.items()}}
    np.savez(output, allow_pickle=False, **arrays)


def load(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def replay(sessions: dict[str, ort.InferenceSession], recorded: dict[str, Any]) -> dict[str, Any]:
    inputs = sessions["decode"].get_inputs()
    cache = [np.zeros(i.shape, np.int8) for i in inputs[2:]]
    prefix = [recorded[f"prefix.{index}"] for index in range(len(cache))]
    results: dict[str, Any] = {}
    for call in range(sum(name.endswith(".token_ids") for name in recorded)):
        tokens, position = recorded[f"{call}.token_ids"], int(recorded[f"{call}.position"][0])
        method = "prefill" if position == prefix[0].shape[2] else "decode"
        if method == "prefill":
            for slots, rows in zip(cache, prefix, strict=True):
                slots[:, :, :position] = rows
        session = sessions[method]
        ids = np.zeros(session.get_inputs()[0].shape, np.int64)
        ids[0, : len(tokens)] = tokens
        values = (ids, np.array([position]), *cache)
        logits, *rows = session.run(None, {i.name: v for i, v in zip(inputs, values, strict=True)})
        results[f"{call}.rows"] = np.stack([row[:, :, : len(tokens)] for row in rows])
        results[f"{call}.logits"] = logits[0, len(tokens) - 1]
        for slots, row in zip(cache, recorded[f"{call}.rows"], strict=True):
            slots[:, :, position : position + len(tokens)] = row
    return results


if __name__ == "__main__":
    main()

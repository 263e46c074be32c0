"""Replays recorded calls on one runtime's files of an artifact, as written: needs numpy and that runtime only.

    python runner.py onnx|executorch FOLDER CALLS.npz OUTPUT.npz

It runs on the interpreter of another processor, so it imports nothing of ours. CALLS.npz: `<k>.token_ids`,
`<k>.position`, `<k>.rows` of each call (see mobileicsa/artifact/golden.py), `prefix.<i>`, the cache's first rows, and
`cache_shape` and `chunk`, a prefill's tokens. A call at the prefix's end is a prefill; every call starts from the
recorded cache. OUTPUT.npz: `<k>.rows`, `<k>.logits` (vocab,) float32 behind the last token, and `seconds`, `version`,
`machine`.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

FILES = {"decode": "model.onnx", "prefill": "model_prefill.onnx"}
# The binding of ExecuTorch before 1.5, and from there on.
BINDINGS = ("_portable_lib", "_C")
# Arrays in (token ids, position, cache...), arrays out (logits, rows...).
Method = Callable[[list[Any]], list[Any]]


def main() -> None:
    runtime, folder, calls, output = sys.argv[1], *(Path(argument) for argument in sys.argv[2:5])
    recorded = dict(np.load(calls))
    start = time.perf_counter()
    results = replay(RUNTIMES[runtime](folder), recorded)
    seconds = time.perf_counter() - start
    facts = {"version": version(DISTRIBUTIONS[runtime]), "machine": platform.machine(), "seconds": seconds}
    arrays: dict[str, Any] = {**results, **{name: np.array(value) for name, value in facts.items()}}
    np.savez(output, allow_pickle=False, **arrays)


def onnx(folder: Path) -> dict[str, Method]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3

    def method(name: str) -> Method:
        session = ort.InferenceSession(str(folder / FILES[name]), options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        return lambda values: session.run(None, dict(zip(names, values, strict=True)))

    return {name: method(name) for name in FILES}


def executorch(folder: Path) -> dict[str, Method]:
    import torch  # the binding's libraries

    torch.set_num_threads(1)
    # Not through its package, which imports the compiler with it.
    (package,) = find_spec("executorch").submodule_search_locations  # type: ignore[union-attr, misc]
    (path,) = (path for name in BINDINGS for path in (Path(package) / "extension/pybindings").glob(f"{name}.*.so"))
    spec = spec_from_file_location(path.name.split(".")[0], path)
    assert spec is not None
    assert spec.loader is not None
    binding = module_from_spec(spec)
    spec.loader.exec_module(binding)
    module = binding._load_for_executorch(str(folder / "model.pte"))

    def method(name: str) -> Method:
        # The first files called their methods just so.
        stored = f"{name}_rows" if f"{name}_rows" in module.method_names() else name
        return lambda values: [t.numpy() for t in module.run_method(stored, tuple(torch.from_numpy(v) for v in values))]

    return {name: method(name) for name in FILES}


RUNTIMES = {"onnx": onnx, "executorch": executorch}
DISTRIBUTIONS = {"onnx": "onnxruntime", "executorch": "executorch"}


def replay(methods: dict[str, Method], recorded: dict[str, Any]) -> dict[str, Any]:
    prefix = [recorded[f"prefix.{index}"] for index in range(sum(name.startswith("prefix.") for name in recorded))]
    cache = [np.zeros(recorded["cache_shape"], np.int8) for _ in prefix]
    lengths = {"decode": 1, "prefill": int(recorded["chunk"])}
    results: dict[str, Any] = {}
    for call in range(sum(name.endswith(".token_ids") for name in recorded)):
        tokens, position = recorded[f"{call}.token_ids"], int(recorded[f"{call}.position"][0])
        method = "prefill" if position == prefix[0].shape[2] else "decode"
        if method == "prefill":
            for slots, rows in zip(cache, prefix, strict=True):
                slots[:, :, :position] = rows
        ids = np.zeros((1, lengths[method]), np.int64)
        ids[0, : len(tokens)] = tokens
        logits, *rows = methods[method]([ids, np.array([position]), *cache])
        results[f"{call}.rows"] = np.stack([row[:, :, : len(tokens)] for row in rows])
        results[f"{call}.logits"] = logits[0, len(tokens) - 1].copy()
        for slots, row in zip(cache, recorded[f"{call}.rows"], strict=True):
            slots[:, :, position : position + len(tokens)] = row
    return results


if __name__ == "__main__":
    main()

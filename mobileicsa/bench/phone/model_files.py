"""What goes onto the phone for one exported model: its files, `model.json` (facts of the model), the prefix's rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.bench.contenders import FLOAT_DTYPE, Contender
from mobileicsa.core.errors import InputError
from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target
from mobileicsa.program.methods import input_names

FORMAT = 1
MODEL_FACTS = "model.json"
PREFIX_ROWS = "prefix.bin"
# Back ends that the demo app has a flavour for, and the files that hold each method.
METHOD_FILES = {
    "executorch": {"prefill": "model.pte", "decode": "model.pte"},
    "onnx": {"prefill": "model_prefill.onnx", "decode": "model.onnx"},
}


@dataclass(frozen=True)
class Package:
    """Local files by their name in the model's folder on the phone."""

    backend: str
    files: Mapping[str, Path]

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


def package(
    contender: Contender, artifact: Path, plan: QuantPlan, target: Target, tensors: Mapping[str, Any], scratch: Path
) -> Package:
    """Collect a contender's files; what has to be written goes to `scratch`.

    A float32 model gets zeros for the prefix's rows: speed does not depend on what they hold.
    """
    if contender.backend not in METHOD_FILES:
        raise InputError(
            f"{contender.backend}: does not run on a phone",
            hint=f"back ends that the app has: {', '.join(METHOD_FILES)}",
        )
    scratch.mkdir(parents=True)
    methods = METHOD_FILES[contender.backend]
    quantized = contender.dtype != FLOAT_DTYPE
    rows = _prefix_rows(plan, tensors) if quantized else b""
    (scratch / PREFIX_ROWS).write_bytes(rows)
    spec = plan.spec
    facts = {
        "format": FORMAT,
        "name": f"{artifact.name} ({contender.name})",
        "backend": contender.backend,
        "methods": methods,
        "inputs": input_names(spec),
        "context": target.context,
        "prefill_chunk": target.prefill_chunk,
        "vocab_size": spec.vocab_size,
        "layers": spec.num_layers,
        "kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "cache_dtype": contender.dtype,
        "prefix_length": len(plan.prefix_ids),
        "prefix_file": PREFIX_ROWS if rows else None,
        "bos_id": spec.bos_id,
        "eos_ids": list(spec.eos_ids),
        "tokenizer": layout.TOKENIZER if quantized else None,
    }
    (scratch / MODEL_FACTS).write_text(json.dumps(facts))
    files = {name: contender.folder / name for name in {*methods.values(), *_data_files(contender)}}
    files |= {name: scratch / name for name in (MODEL_FACTS, *([PREFIX_ROWS] if rows else []))}
    if quantized:
        files[layout.TOKENIZER] = artifact / layout.TOKENIZER
    return Package(contender.backend, files)


def _data_files(contender: Contender) -> list[str]:
    return [name for name in contender.files if name.endswith(".data")]


def _prefix_rows(plan: QuantPlan, tensors: Mapping[str, Any]) -> bytes:
    """Layer by layer keys then values, each (kv_heads, prefix, head_dim) int8."""
    if not plan.prefix_ids:
        return b""
    names = [f"prefix.{i}.{kind}" for i in range(plan.spec.num_layers) for kind in ("key", "value")]
    return b"".join(tensors[name].contiguous().numpy().tobytes() for name in names)

"""Qualcomm HTP back end: context binaries for both methods, compiled and run by the tools in onnxruntime-qnn."""

from __future__ import annotations

import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.atomic import write_bytes
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.backend import Session, Written
from mobileicsa.program.methods import method_lengths
from mobileicsa.program.placement import placement_facts
from mobileicsa_export.onnx import MODEL_FILES, OnnxBackend

if TYPE_CHECKING:
    from mobileicsa_export.qnn_compile import CompiledGraph

INSTALL = "pip install 'mobileicsa[onnx,qnn]'"
CONTEXT_FILES = {"decode": "decode_ctx.onnx", "prefill": "prefill_ctx.onnx"}
SHARED_FOLDER = "shared"  # both methods in one binary
GRAPHS_FILE = "htp_graphs.json"
SCRATCH = ".compile"
PRODUCTS = ("FullyConnected", "MatMul", "Conv2d")
BOUNDARIES = ("Convert", "Quantize", "Dequantize", "Cast")
HOST = (
    "logits: (integer - zero point) * scale",
    "K/V cache: int8 <-> uint8, 128 higher",
)


class QnnHtpBackend:
    """Writes decode_ctx.onnx and prefill_ctx.onnx, each with its context binary, and shared/ with both in one."""

    name = "qnn-htp"
    compilers = ("onnxruntime-qnn",)
    target = "qnn-htp-v75"
    emulator = "Qualcomm's functional emulator of the HTP takes seconds a token (SmolLM2-135M: 4.5 s on one core)"

    def unavailable(self) -> str | None:
        reason = OnnxBackend().unavailable()
        if reason is None and importlib.util.find_spec("onnxruntime_qnn") is None:
            return f"onnxruntime_qnn not installed: {INSTALL}"
        return reason

    def write(self, decoder: Decoder, target: Target, folder: Path, metadata: dict[str, Any]) -> Written:
        from mobileicsa_export.qnn_compile import compile_context, compile_shared

        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
            portable, lowered = Path(scratch) / "portable", Path(scratch) / "htp"
            OnnxBackend().write(decoder, target, portable, metadata)
            models = _lowered(portable, lowered, target)
            compiled, seconds = {}, {}
            for m, description in models.items():
                begun = time.monotonic()
                compiled[m] = compile_context(lowered / MODEL_FILES[m], folder / CONTEXT_FILES[m], target, description)
                seconds[m] = round(time.monotonic() - begun, 1)
            shared = {folder / SHARED_FOLDER / CONTEXT_FILES[m]: lowered / MODEL_FILES[m] for m in models}
            compile_shared(shared, target, list(models.values()))
        graphs = {method: graph.to_json() for method, graph in compiled.items()}
        write_bytes(folder / GRAPHS_FILE, json.dumps(graphs, indent=1, sort_keys=True).encode())
        files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
        return Written(files=files, facts={**_facts(folder, compiled), "compile_s": seconds})

    def open(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> Session:
        """On the emulator, which takes one thread whatever `threads` is."""
        from mobileicsa_export.qnn_session import HtpSession

        return HtpSession(folder, spec, target)

    def placement(self, folder: Path, target: Target) -> dict[str, Any]:
        from mobileicsa_export.qnn_compile import read_graphs
        from mobileicsa_export.qnn_context import outside_nodes

        graph = read_graphs(folder / GRAPHS_FILE)["decode"]
        outside = outside_nodes(folder / CONTEXT_FILES["decode"])
        kernels = list(_kernels(graph, outside))
        fallbacks = [{"node": name, "reason": reason} for name, _, reason in graph.float_operators]
        fallbacks += [{"node": node, "reason": "runs outside of the HTP"} for node in outside]
        return placement_facts(kernels, (kind for op, kind in kernels if op in PRODUCTS), fallbacks)


def _lowered(portable: Path, folder: Path, target: Target) -> dict[str, dict[str, str]]:
    """The HTP forms of the portable files in `folder`; what each compiled model must say of itself."""
    from mobileicsa_export.onnx_data import SharedData
    from mobileicsa_export.onnx_load import load_graph
    from mobileicsa_export.qnn_check import check_limits
    from mobileicsa_export.qnn_compile import WEIGHTS_FILE
    from mobileicsa_export.qnn_context import LOGITS
    from mobileicsa_export.qnn_graph import logits_encoding, to_htp_form

    folder.mkdir()
    described = {}
    with SharedData(folder / WEIGHTS_FILE) as data:
        for method in method_lengths(target):
            model = load_graph(portable / MODEL_FILES[method])
            to_htp_form(model)
            check_limits(model, target)
            scale, zero = logits_encoding(model)
            described[method] = {
                **model.metadata_props,
                LOGITS: json.dumps([scale, zero]),
                "onnxruntime_qnn": version("onnxruntime-qnn"),
                **{key: str(value) for key, value in target.device.items()},
            }
            data.save(model, folder / MODEL_FILES[method])
    return described


def _kernels(graph: CompiledGraph, outside: list[str]) -> Iterator[tuple[str, str]]:
    floating = {name for name, _, _ in graph.float_operators}
    for name, op in graph.operators:
        yield op, "float" if name in floating else "boundary" if op in BOUNDARIES else "integer"
    for node in outside:
        yield node, "outside"


def _facts(folder: Path, compiled: dict[str, CompiledGraph]) -> dict[str, Any]:
    from mobileicsa_export.qnn_context import outside_nodes

    graphs = compiled.values()
    inside = sum(len(graph.operators) for graph in graphs)
    outside = [node for file in CONTEXT_FILES.values() for node in outside_nodes(folder / file)]
    unsupported = [{"op": op, "reason": f"{name}: {reason}"} for g in graphs for name, op, reason in g.float_operators]
    unsupported += [{"op": node, "reason": "the HTP compiler leaves it to the CPU"} for node in outside]
    return {
        "delegated_share": inside / (inside + len(outside)),
        "float_tensors": sum(graph.float_tensors for graph in graphs),
        "unsupported": unsupported,
        "estimates": {},
        "host": list(HOST),
        "tensor_types": {method: graph.tensor_types for method, graph in compiled.items()},
        "context_bytes": {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*.bin"))
        },
        "shared_context": "compiled, not run: the emulator of onnxruntime-qnn 2.7 cannot load it",
        "onnxruntime_qnn": version("onnxruntime-qnn"),
    }

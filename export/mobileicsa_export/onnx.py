"""ONNX back end: QDQ models for any runtime, run here by ONNX Runtime."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.adapters import adapter_inputs
from mobileicsa.program.backend import Session, StageSession, Written
from mobileicsa.program.methods import export_method, input_names, method_lengths, output_names
from mobileicsa.program.qdq import QdqEdge, QuantLinear

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor
    from torch.export import ExportedProgram

    from mobileicsa_export.onnx_session import Numerics

INSTALL = "pip install 'mobileicsa[onnx]'"
MODEL_FILES = {"decode": "model.onnx", "prefill": "model_prefill.onnx"}
DATA_FILE = "model.onnx.data"
METADATA_KEYS = frozenset({"method", "mobileicsa_version", "target"})  # beside what the caller gives


class OnnxBackend:
    """Writes model.onnx (decode), model_prefill.onnx, the weights of both in model.onnx.data, and encodings for QNN."""

    name = "onnx"
    separate_files = True
    adapter_suffix = ".onnx_adapter"

    def unavailable(self) -> str | None:
        missing = [m for m in ("onnx", "onnxruntime", "onnxscript", "onnx_ir") if importlib.util.find_spec(m) is None]
        return f"{', '.join(missing)} not installed: {INSTALL}" if missing else None

    def write(self, decoder: Decoder, target: Target, folder: Path, metadata: dict[str, Any]) -> Written:
        import onnx

        from mobileicsa_export.encodings import write_encodings
        from mobileicsa_export.onnx_adapter import make_optional
        from mobileicsa_export.onnx_data import SharedData
        from mobileicsa_export.onnx_graph import convert, to_qdq_form
        from mobileicsa_export.onnx_load import load_graph
        from mobileicsa_export.onnx_names import rename
        from mobileicsa_export.onnx_stock import DYNAMIC_FILE, GENAI_CONFIG, write_dynamic

        folder.mkdir(parents=True, exist_ok=True)
        metadata = dict(metadata)
        tokenizer_dir = metadata.pop("tokenizer_dir", "..")
        bits, factors = _stored_bits(decoder, target), adapter_inputs(decoder)
        facts: dict[str, Any] = {"opset": target.opset}
        with SharedData(folder / DATA_FILE) as data:
            for method in method_lengths(target):
                model = convert(export_method(decoder, target, method), target.opset)
                to_qdq_form(model, bits)
                rename(model, [*input_names(decoder.spec), *factors], output_names(decoder.spec))
                make_optional(model.graph, factors)
                facts[method] = _facts(model)
                _describe(model, method, {**metadata, "target": target.name})
                data.save(model, folder / MODEL_FILES[method])
            if clients := _for_clients(target):
                model = write_dynamic(decoder, target, bits, folder, tokenizer_dir)
                _describe(model, "dynamic", {**metadata, "target": target.name})
                data.save(model, folder / DYNAMIC_FILE)
        # The file for stock clients holds operators of ONNX Runtime's own, which the checker does not know.
        for name in MODEL_FILES.values():
            onnx.checker.check_model(str(folder / name), full_check=True)
        facts |= facts["decode"]
        names = [*MODEL_FILES.values(), DATA_FILE, *([DYNAMIC_FILE, GENAI_CONFIG] if clients else [])]
        files = tuple(folder / name for name in names)
        frozen = any(isinstance(module, QdqEdge) for module in decoder.modules())
        if frozen:
            graphs = [load_graph(folder / name).graph for name in MODEL_FILES.values()]
            files += write_encodings(decoder, graphs, folder)
        return Written(files=files, facts=facts)

    def write_stages(self, programs: Mapping[str, ExportedProgram], target: Target, folder: Path) -> Written:
        from mobileicsa_export.onnx_stages import write_stages

        return write_stages(programs, target, folder)

    def open_stages(self, folder: Path, names: Sequence[str], *, threads: int | None = None) -> StageSession:
        from mobileicsa_export.onnx_stages import OnnxStages

        return OnnxStages(folder, names, threads=threads)

    def write_adapter(self, inputs: Mapping[str, Tensor], path: Path) -> None:
        from mobileicsa_export.onnx_adapter import write_adapter

        write_adapter(path, inputs)

    def open(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> Session:
        return _open(folder, spec, target, threads, "fast")

    def open_exact(self, folder: Path, spec: ModelSpec, target: Target) -> Session:
        """The simulator's integers to the last one, at about two thirds of the speed."""
        return _open(folder, spec, target, None, "exact")

    def placement(self, folder: Path, target: Target) -> dict[str, Any]:
        from mobileicsa_export.onnx_placement import placement

        return placement(folder, primitive=target.nonlinear == "primitive")


def _open(folder: Path, spec: ModelSpec, target: Target, threads: int | None, numerics: Numerics) -> Session:
    from mobileicsa_export.onnx_session import OnnxSession

    session = OnnxSession(folder, spec, threads=threads, numerics=numerics)
    session.check_target(target)
    return session


def _for_clients(target: Target) -> bool:
    """Stock clients run on a CPU; other back ends only borrow this one's files."""
    return target.nonlinear == "fused" and OnnxBackend.name in target.backends


def _stored_bits(decoder: Decoder, target: Target) -> dict[str, int]:
    """Bits of each weight in the file, by its name in the exported program."""
    linears = {name: m for name, m in decoder.named_modules() if isinstance(m, QuantLinear)}
    four = 4 if target.int4_storage == "int4" else 8
    return {f"decoder.{name}.weight": four if m.encoding.bits == 4 else 8 for name, m in linears.items()}


def _describe(model: ir.Model, method: str, metadata: dict[str, Any]) -> None:
    model.producer_name, model.producer_version = "mobileicsa", version("mobileicsa")
    facts = {**metadata, "method": method, "mobileicsa_version": version("mobileicsa")}
    model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in sorted(facts.items())})


def _facts(model: ir.Model) -> dict[str, Any]:
    from mobileicsa_export.onnx_graph import INTEGER_TYPES
    from mobileicsa_export.onnx_unencoded import real_tensors

    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    integers = sum(t.nbytes for t in tensors if t.dtype in INTEGER_TYPES)
    ops = Counter(node.op_type for node in model.graph)
    return {
        "nodes": sum(ops.values()),
        "ops": dict(sorted(ops.items())),
        "integer_initialisers_bytes": integers,
        "float_tensors": len(real_tensors(model.graph)),
    }

"""Compiles graphs for the HTP with Qualcomm's offline compiler, and reads what it made of them."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort

from mobileicsa.core.errors import Unsupported, VerificationError
from mobileicsa.core.target import Target
from mobileicsa.io.json_file import read_json

PROVIDER = "QNNExecutionProvider"
DEVICE_OPTIONS = ("htp_arch", "soc_model")
CONTEXT_OP = "EPContext"
TENSOR_LOG = "_tensor_log"
MAX_JSON_BYTES = 64 << 20
# The first byte of a QNN data type is its kind, the second its bits (written in decimal digits).
KINDS = {0x00: "int", 0x01: "uint", 0x02: "float", 0x03: "sfixed", 0x04: "ufixed", 0x05: "bool"}
FLOAT_REASON = "computes in float on the HTP"


@dataclass(frozen=True, kw_only=True)
class CompiledGraph:
    """What the compiler was given, by its own account.

    `operators` are (name, QNN type); `float_operators` (name, QNN type, reason) those that touch a real-valued tensor.
    """

    operators: tuple[tuple[str, str], ...]
    float_operators: tuple[tuple[str, str, str], ...]
    tensor_types: dict[str, int]
    seconds: float

    @property
    def float_tensors(self) -> int:
        return sum(count for name, count in self.tensor_types.items() if name.startswith("float"))

    def to_json(self) -> dict[str, Any]:
        return vars(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CompiledGraph:
        return cls(
            operators=tuple(map(tuple, data["operators"])),
            float_operators=tuple(map(tuple, data["float_operators"])),
            tensor_types=dict(data["tensor_types"]),
            seconds=float(data["seconds"]),
        )


@cache
def _devices() -> list[Any]:
    """The provider's devices; its library is registered once a process."""
    import onnxruntime_qnn

    ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    return [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]


def start(path: Path, target: Target, entries: Mapping[str, str], options: Mapping[str, str]) -> ort.InferenceSession:
    """A session on the HTP emulator in which nothing may run on the CPU."""
    import onnxruntime_qnn

    session = ort.SessionOptions()
    session.log_severity_level = 4
    session.intra_op_num_threads = 1
    for key, value in {"session.disable_cpu_ep_fallback": "1", **entries}.items():
        session.add_session_config_entry(key, value)
    device = {key: str(target.device[key]) for key in DEVICE_OPTIONS if key in target.device}
    session.add_provider_for_devices(
        _devices(), {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **device, **options}
    )
    return ort.InferenceSession(str(path), session)


def compile_context(model: Path, output: Path, target: Target, description: Mapping[str, str]) -> CompiledGraph:
    """Compile `model` to `output` and the binary beside it; Unsupported with the operators that are refused."""
    with tempfile.TemporaryDirectory(dir=model.parent) as scratch:
        begun = time.monotonic()
        _compile(model, output, target, {}, {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": scratch})
        seconds = time.monotonic() - begun
        graph = _read_dump(Path(scratch), seconds)
    _describe(output, description)
    return graph


def compile_shared(models: Mapping[Path, Path], target: Target, descriptions: Sequence[Mapping[str, str]]) -> None:
    """Compile several models (output -> graph) into one binary in which equal weights are stored once."""
    last = list(models)[-1]
    last.parent.mkdir()
    sessions = []  # their contexts must be alive until the last is written
    for output, model in models.items():
        entries = {"ep.share_ep_contexts": "1", **({"ep.stop_share_ep_contexts": "1"} if output is last else {})}
        sessions.append(_compile(model, output, target, entries, {}))
    for output, description in zip(models, descriptions, strict=True):
        _describe(output, description)


def outside_nodes(path: Path) -> list[str]:
    """Operators of a compiled model that are not in a context binary."""
    return [node.op_type for node in ir.load(path).graph if node.op_type != CONTEXT_OP]


def read_graphs(path: Path) -> dict[str, CompiledGraph]:
    """VerificationError where the file is damaged."""
    try:
        data = read_json(path, max_bytes=MAX_JSON_BYTES)
        return {method: CompiledGraph.from_json(row) for method, row in data.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"{path}: is not the record of compiled graphs: {error!r}") from error


def _compile(
    model: Path, output: Path, target: Target, entries: Mapping[str, str], options: Mapping[str, str]
) -> ort.InferenceSession:
    context = {"ep.context_enable": "1", "ep.context_file_path": str(output), "ep.context_embed_mode": "0"}
    try:
        return start(model, target, {**context, **entries}, options)
    except Exception as error:
        refused = _left_to_cpu(model, target)
        listed = "; ".join(f"{op} ({name})" for name, op in refused)
        raise Unsupported(
            refused[0][1] if refused else "graph", f"the HTP compiler refuses {listed or model.name}: {error}"
        ) from error


def _left_to_cpu(model: Path, target: Target) -> list[tuple[str, str]]:
    """(name, operator) of what the provider does not take, asked with the fallback allowed."""
    entries = {"session.disable_cpu_ep_fallback": "0", "session.record_ep_graph_assignment_info": "1"}
    try:
        session = start(model, target, entries, {})
        groups = session.get_provider_graph_assignment_info()
    except Exception:
        return []
    left = [node for group in groups if group.ep_name != PROVIDER for node in group.get_nodes()]
    return [(node.name, node.op_type) for node in left]


def _describe(path: Path, description: Mapping[str, str]) -> None:
    model = ir.load(path)
    model.metadata_props.update(description)
    ir.save(model, path)


def _read_dump(folder: Path, seconds: float) -> CompiledGraph:
    operators, floating, types = [], [], Counter[str]()
    for path in sorted(folder.glob("*.json")):
        if path.stem.endswith(TENSOR_LOG):
            continue
        graph = json.loads(path.read_text(encoding="utf-8"))["graph"]
        kinds = {name: _type_name(tensor) for name, tensor in graph["tensors"].items()}
        types.update(kinds.values())
        for name, node in graph["nodes"].items():
            operators.append((name, node["type"]))
            touched = {kinds.get(tensor, "") for tensor in (*node["input_names"], *node["output_names"])}
            if any(kind.startswith("float") for kind in touched):
                floating.append((name, node["type"], FLOAT_REASON))
    if not operators:
        raise Unsupported("graph", "the HTP compiler left no record of its graph")
    return CompiledGraph(
        operators=tuple(operators),
        float_operators=tuple(floating),
        tensor_types=dict(sorted(types.items())),
        seconds=seconds,
    )


def _type_name(tensor: Mapping[str, Any]) -> str:
    code = int(tensor["data_type"])
    return f"{KINDS.get(code >> 8, hex(code >> 8))}{code & 0xFF:x}"

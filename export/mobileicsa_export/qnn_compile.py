"""Compiles graphs for the HTP with Qualcomm's offline compiler, and reads what it made of them."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from mobileicsa.core.errors import Unsupported, VerificationError
from mobileicsa.core.target import Target
from mobileicsa.io.atomic import DISK_WORDS, REMEDY, WriteFault
from mobileicsa.io.json_file import read_json
from mobileicsa_export.qnn_context import describe

PROVIDER = "QNNExecutionProvider"
DEVICE_OPTIONS = ("htp_arch", "soc_model")
WEIGHTS_FILE = "weights.data"  # of the models that are compiled
TENSOR_LOG = "_tensor_log"
MAX_JSON_BYTES = 64 << 20
# The first byte of a QNN data type is its kind, the second its bits (written in decimal digits).
KINDS = {0x00: "int", 0x01: "uint", 0x02: "float", 0x03: "sfixed", 0x04: "ufixed", 0x05: "bool"}
# How ONNX Runtime and the provider say that a file could not be written.
WRITE_WORDS = (*DISK_WORDS, "write context cache file", "open context cache file", "Protobuf serialization failed")
FLOAT_REASON = "computes in float on the HTP"


@dataclass(frozen=True, kw_only=True)
class CompiledGraph:
    """What the compiler was given, by its own account.

    `operators` are (name, QNN type); `float_operators` (name, QNN type, reason) those that touch a real-valued tensor.
    """

    operators: tuple[tuple[str, str], ...]
    float_operators: tuple[tuple[str, str, str], ...]
    tensor_types: dict[str, int]

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
        )


@cache
def _devices() -> list[Any]:
    """The provider's devices; its library is registered once a process."""
    import onnxruntime_qnn

    ort.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    return [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]


def start(path: Path, target: Target, entries: Mapping[str, str], options: Mapping[str, str]) -> ort.InferenceSession:
    """A session on the HTP emulator in which nothing may run on the CPU."""
    return ort.InferenceSession(str(path), _settings(target, entries, options))


def _start_unnamed(
    path: Path, target: Target, entries: Mapping[str, str], options: Mapping[str, str]
) -> ort.InferenceSession:
    """The same from memory, weights too: of a model that was read from a path, ONNX Runtime puts a hash of the path
    into the names of its compiled graphs, and a scratch folder's would change every file."""
    settings = _settings(target, entries, options)
    weights = np.memmap(path.with_name(WEIGHTS_FILE), mode="r")
    settings.add_external_initializers_from_files_in_memory([WEIGHTS_FILE], [weights], [weights.size])
    return ort.InferenceSession(path.read_bytes(), settings)


def _settings(target: Target, entries: Mapping[str, str], options: Mapping[str, str]) -> ort.SessionOptions:
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
    return session


def compile_context(model: Path, output: Path, target: Target, description: Mapping[str, str]) -> CompiledGraph:
    """Compile `model`, its weights in WEIGHTS_FILE beside it, to `output` and the binary beside that.

    Unsupported with the operators that are refused, WriteFault where the disk is full.
    """
    with tempfile.TemporaryDirectory(dir=model.parent) as scratch:
        _compile(model, output, target, {}, {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": scratch})
        graph = _read_dump(Path(scratch))
    describe(output, description)
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
        describe(output, description)


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
        return _start_unnamed(model, target, {**context, **entries}, options)
    except Exception as error:
        if any(words in str(error) for words in WRITE_WORDS):
            raise WriteFault(f"{output}: it or its context binary cannot be written: {error}", hint=REMEDY) from error
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


def _read_dump(folder: Path) -> CompiledGraph:
    """WriteFault where a record is cut: the compiler does not look whether the disk took it."""
    operators, floating, types = [], [], Counter[str]()
    for path in sorted(folder.glob("*.json")):
        if path.stem.endswith(TENSOR_LOG):
            continue
        try:
            graph = json.loads(path.read_text(encoding="utf-8"))["graph"]
        except ValueError as error:
            raise WriteFault(f"{path}: the compiler could not write its record whole: {error}", hint=REMEDY) from error
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
    )


def _type_name(tensor: Mapping[str, Any]) -> str:
    code = int(tensor["data_type"])
    return f"{KINDS.get(code >> 8, hex(code >> 8))}{code & 0xFF:x}"

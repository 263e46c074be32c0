"""ExecuTorch back end: one model.pte for our runtime and for ExecuTorch's LLM runners, lowered to XNNPACK."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobileicsa.core.errors import Unsupported
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.atomic import write_bytes, write_tensors, writing, writing_scratch
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.adapters import adapter_inputs
from mobileicsa.program.backend import Session, StageSession, Written
from mobileicsa.program.methods import export_method, method_lengths
from mobileicsa.program.stock import export_stateful, free_slots

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager
    from torch import Tensor
    from torch.export import ExportedProgram

INSTALL = "pip install 'mobileicsa[executorch]'"
MODEL_FILE = "model.pte"
# Read before the file is loaded: the runtime trusts the weights' part of a .pte and may crash on a damaged one.
DIGEST_FILE = "model.pte.sha256"
# Names of the inputs behind the cache, in order, where the program has room for adapters.
ADAPTER_FILE = "adapter_inputs.json"
# Not `decode`: a stock runner that finds it takes it for its own, with two inputs and the cache inside.
METHOD_NAMES = {"prefill": "prefill_rows", "decode": "decode_rows"}
STOCK_METHOD = "forward"
# Constant method of a file whose methods take a cache of any number of rows.
ANY_ROWS = "get_any_cache_rows"


class ExecutorchBackend:
    """Writes model.pte: our two methods, and the one that stock runners call, over one copy of the weights."""

    name = "executorch"
    compilers = ("executorch", "torchao")
    separate_files = False
    adapter_suffix = ".safetensors"

    def unavailable(self) -> str | None:
        return None if importlib.util.find_spec("executorch") else f"executorch is not installed: {INSTALL}"

    def write(self, decoder: Decoder, target: Target, folder: Path, metadata: dict[str, Any]) -> Written:
        from mobileicsa_export.executorch_graph import prepare

        folder.mkdir(parents=True, exist_ok=True)
        shared: dict[int, Tensor] = {}
        methods = method_lengths(target)
        programs = {METHOD_NAMES[m]: export_method(decoder, target, m, any_rows=True) for m in methods}
        programs[STOCK_METHOD] = export_stateful(decoder, target)
        forms = {name: prepare(program, shared) for name, program in programs.items()}
        constants = constant_methods(decoder.spec, target, metadata) | {
            "get_max_context_len": free_slots(decoder, target),
            ANY_ROWS: 1,
        }
        lowered = _lower(programs, constants)
        facts = {name: {**_facts(lowered, name), "forms": form} for name, form in forms.items()}
        programs.clear()
        path = folder / MODEL_FILE
        _save(lowered, path)
        size, files = path.stat().st_size, [path, folder / DIGEST_FILE]
        factors = list(adapter_inputs(decoder))
        if factors:
            files.append(folder / ADAPTER_FILE)
            write_bytes(folder / ADAPTER_FILE, json.dumps({"inputs": factors}, indent=1).encode() + b"\n")
        return Written(files=tuple(files), facts={"bytes": size, **facts[METHOD_NAMES["decode"]], "methods": facts})

    def write_stages(self, programs: Mapping[str, ExportedProgram], target: Target, folder: Path) -> Written:
        from mobileicsa_export.executorch_stages import write_stages

        return write_stages(programs, folder)

    def open_stages(self, folder: Path, names: Sequence[str], *, threads: int | None = None) -> StageSession:
        from mobileicsa_export.executorch_stages import ExecutorchStages

        return ExecutorchStages(folder, names, threads=threads)

    def write_adapter(self, inputs: Mapping[str, Tensor], path: Path) -> None:
        write_tensors(path, inputs)

    def open(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> Session:
        from mobileicsa_export.executorch_session import ExecutorchSession

        return ExecutorchSession(folder, spec, target, threads=threads)

    def placement(self, folder: Path, target: Target) -> dict[str, Any]:
        from mobileicsa_export.executorch_placement import placement

        return placement(folder / MODEL_FILE)


def stored_name(method: str, present: Collection[str]) -> str:
    """What a file with the methods `present` calls prefill or decode: the first ones called them just so."""
    name = METHOD_NAMES.get(method, method)
    return name if name in present else method


def constant_methods(spec: ModelSpec, target: Target, metadata: dict[str, Any]) -> dict[str, Any]:
    """Methods that return a constant, named as ExecuTorch's own LLM runners read them, and ours."""
    return {
        **identity(spec, target),
        "get_eos_ids": list(metadata["eos_ids"]) or [-1],
        "get_prefix_ids": list(metadata["prefix_ids"]) or [-1],
        "use_kv_cache": True,
    }


def identity(spec: ModelSpec, target: Target) -> dict[str, int]:
    """The constants that tell whether a file belongs to this model and target; no BOS reads -1."""
    return {
        "get_bos_id": -1 if spec.bos_id is None else spec.bos_id,
        "get_vocab_size": spec.vocab_size,
        "get_n_layers": spec.num_layers,
        "get_max_seq_len": target.context,
        "get_prefill_chunk": target.prefill_chunk,
    }


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lower(programs: dict[str, ExportedProgram], constants: dict[str, Any]) -> EdgeProgramManager:
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from mobileicsa_export.executorch_partition import OneDelegatePartitioner

    with warnings.catch_warnings(), _shared_provenance(), _open_size_kept(), writing_scratch():
        warnings.simplefilter("ignore")
        return to_edge_transform_and_lower(
            programs,
            partitioner=[OneDelegatePartitioner()],
            # The validity check knows neither choose_qparams nor its kin.
            compile_config=EdgeCompileConfig(_check_ir_validity=False),
            constant_methods=constants,
        )


@contextmanager
def _shared_provenance() -> Iterator[None]:
    """Each of some thirty passes deep-copies every node's chain of origins, half of the lowering's time; share them."""
    from torch.fx.traceback import NodeSource

    NodeSource.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del NodeSource.__deepcopy__  # type: ignore[attr-defined]


@contextmanager
def _open_size_kept() -> Iterator[None]:
    """The lowering traces a whole program again where any operator is in its table; a size that is left open is, and
    comes out as it was."""
    import torch
    from executorch.exir.program import _program

    whole = _program._default_decomposition_table

    def without() -> dict[Any, Any]:
        return {op: rule for op, rule in whole().items() if op is not torch.ops.aten.sym_size.int}

    _program._default_decomposition_table = without
    try:
        yield
    finally:
        _program._default_decomposition_table = whole


def _facts(lowered: EdgeProgramManager, method: str) -> dict[str, Any]:
    calls = [n for n in lowered.exported_program(method).graph.nodes if n.op == "call_function"]
    names = Counter(getattr(n.target, "__name__", str(n.target)) for n in calls)
    delegates = names.pop("executorch_call_delegate", 0)
    names.pop("getitem", None)
    return {"delegates": delegates, "ops_outside_delegates": dict(sorted(names.items()))}


def _save(lowered: EdgeProgramManager, path: Path) -> None:
    """The program and, behind it, its digest; WriteFault where the disk is full."""
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    from mobileicsa_export.executorch_segments import store_equal_bytes_once

    # Inputs are read where the caller has them: the cache is never copied. A stock runner's is written in place.
    planning = MemoryPlanningPass(alloc_graph_input=False)
    config = ExecutorchBackendConfig(memory_planning_pass=planning, run_reinplace_pass=True)
    try:
        with warnings.catch_warnings(), writing_scratch():
            # Rightly: a row of the cache is read only after it was written.
            warnings.filterwarnings("ignore", message="Mutation on a buffer in the model is detected")
            program = lowered.to_executorch(config)
    except RuntimeError as error:
        if "Missing out variants" not in str(error):
            raise
        raise Unsupported(str(error).partition(": ")[2], "ExecuTorch has no kernel for it") from error
    with writing(path):
        with path.open("wb") as file:
            program.write_to_file(file)
        store_equal_bytes_once(path)
    write_bytes(path.with_name(DIGEST_FILE), f"{sha256(path)}  {path.name}\n".encode())

"""The ExecuTorch back end: what it writes, read from the file itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mobileicsa_export.executorch as executorch_backend
import pytest
import torch
import torch.nn.functional as F
from executorch.runtime import Runtime
from mobileicsa_export.executorch import (
    METHOD_NAMES,
    MODEL_FILE,
    STOCK_METHOD,
    ExecutorchBackend,
    _lower,
    _save,
    constant_methods,
    stored_name,
)
from mobileicsa_export.executorch_placement import delegate_graphs, placement
from mobileicsa_export.executorch_segments import store_equal_bytes_once
from tiny_frozen import CHUNK, CONTEXT, VOCAB, target, tiny_frozen, tiny_spec
from torch import Tensor, nn

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import LayerSpec
from mobileicsa.program.frozen import FrozenModel, build_decoder

METADATA: dict[str, Any] = {"bos_id": 1, "eos_ids": [2], "prefix_ids": [1, 5], "context": CONTEXT}
METHODS = ("prefill", "decode")
# One layer, but of weights that outweigh the rest of the file.
SHAPE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_heads": 12,
    "layers": (LayerSpec(),),
}
# Token and position arithmetic, rows gathered from the tables of tokens, cos and sin, the mask of as many cached rows.
OUTSIDE = {
    "_to_dim_order_copy": 1,
    "add": 1,
    "clamp": 1,
    "embedding": 4,
    "expand_copy": 1,
    "lt": 1,
    "slice_copy": 2,
    "sym_size": 1,
    "unsqueeze_copy": 1,
    "where": 1,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def frozen() -> FrozenModel:
    return tiny_frozen("w8a8", **SHAPE)


@pytest.fixture(scope="module")
def written(frozen: FrozenModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("w8a8")
    facts = ExecutorchBackend().write(build_decoder(frozen, primitive=False), target(), folder, METADATA).facts
    return folder / MODEL_FILE, facts


@pytest.fixture(scope="module")
def model(written: tuple[Path, dict[str, Any]]) -> Path:
    return written[0]


def integers(frozen: FrozenModel) -> int:
    return sum(frozen.tensors[name].numel() for name in frozen.plan.weights)


def constant(path: Path, method: str) -> Any:
    (value,) = Runtime.get().load_program(path).load_method(method).execute([])
    return value


def test_all_methods_share_one_copy_of_the_weights(
    frozen: FrozenModel, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executorch_backend, "method_lengths", lambda target: {"decode": 1})
    ExecutorchBackend().write(build_decoder(frozen, primitive=False), target(), tmp_path, METADATA)
    alone = (tmp_path / MODEL_FILE).stat().st_size
    assert {*METHOD_NAMES.values(), STOCK_METHOD} <= Runtime.get().load_program(model).method_names
    assert integers(frozen) < alone < model.stat().st_size < alone + 0.25 * integers(frozen)


def test_a_tied_table_is_stored_once(frozen: FrozenModel, model: Path) -> None:
    table, data = frozen.tensors["embed.weight"], model.read_bytes()
    assert data.count(F.pad(table, (0, 2)).numpy().tobytes()) == 1
    assert data.count(table.numpy().tobytes()) == 0


def test_storing_equal_bytes_once_leaves_a_second_time_nothing_to_do(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / MODEL_FILE
    copy.write_bytes(model.read_bytes())
    assert store_equal_bytes_once(copy) == 0
    assert copy.read_bytes() == model.read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_every_weight_is_multiplied_by_an_integer_kernel_of_the_one_delegate(model: Path, method: str) -> None:
    found = placement(model, method)
    assert len(delegate_graphs(model, method)) == 1
    # Seven linears of the layer and the head; q·k over cached and new slots, probs·v over both together.
    assert found["products"] == {"integer": 8, "float": 3}
    assert found["by_op"]["FullyConnected"] == {"integer": 8, "float": 3}  # the mean of each norm
    assert found["fallbacks"] == []


def test_a_stock_runners_method_is_one_delegate_too_and_writes_its_cache_in_place(model: Path) -> None:
    found = placement(model, STOCK_METHOD)
    assert len(delegate_graphs(model, STOCK_METHOD)) == 1
    assert found["products"] == {"integer": 8, "float": 4}
    outside = {op: kinds["outside"] for op, kinds in found["by_op"].items() if "outside" in kinds}
    assert outside["index_put_"] == 2
    assert {fallback["node"] for fallback in found["fallbacks"]} <= {"cat", "full", "index_put_"}


def test_files_whose_methods_have_the_first_names_are_still_read() -> None:
    assert stored_name("decode", {"prefill_rows", "decode_rows", "forward"}) == "decode_rows"
    assert stored_name("decode", {"prefill", "decode"}) == "decode"


@pytest.mark.parametrize("method", METHODS)
def test_only_addressing_stays_outside_of_the_delegate(model: Path, method: str) -> None:
    found = placement(model, method)
    assert {op: kinds["outside"] for op, kinds in found["by_op"].items() if "outside" in kinds} == OUTSIDE
    assert found["outside"] == sum(OUTSIDE.values())


def test_facts_say_what_is_in_the_file(written: tuple[Path, dict[str, Any]]) -> None:
    model, facts = written
    assert facts["bytes"] == model.stat().st_size
    assert facts["delegates"] == 1
    assert facts["forms"] == {"int8_to_int8": 5, "int8_to_float": 3, "int16_edges_in_float_arithmetic": 8}
    outside = {name.split(".")[-2]: count for name, count in facts["ops_outside_delegates"].items()}
    assert outside == OUTSIDE


def test_constant_methods_tell_a_runner_what_it_needs(model: Path) -> None:
    expected = {
        "get_bos_id": 1,
        "get_eos_ids": 2,
        "get_vocab_size": VOCAB,
        "get_max_seq_len": CONTEXT,
        "get_max_context_len": CONTEXT,
        "get_prefill_chunk": CHUNK,
        "get_n_layers": 1,
        "use_kv_cache": True,
    }
    assert {name: constant(model, name) for name in expected} == expected
    assert Runtime.get().load_program(model).load_method("get_prefix_ids").execute([]) == [1, 5]


def test_a_model_without_special_tokens_says_so_with_a_number() -> None:
    found = constant_methods(tiny_spec(bos_id=None, eos_ids=()), target(), {"eos_ids": [], "prefix_ids": []})
    assert (found["get_bos_id"], found["get_eos_ids"], found["get_prefix_ids"]) == (-1, [-1], [-1])


def test_constant_methods_of_an_artifact_repeat_its_plan(artifact: Path) -> None:
    model = artifact / "executorch" / MODEL_FILE
    plan = json.loads((artifact / "quant_plan.json").read_text())
    config = json.loads((artifact / "config.json").read_text())
    manifest = json.loads((artifact / "manifest.json").read_text())
    chosen = manifest["targets"][manifest["default_target"]]
    assert constant(model, "get_bos_id") == config["bos_token_id"]
    assert constant(model, "get_eos_ids") == config["eos_token_id"]
    assert constant(model, "get_vocab_size") == config["vocab_size"]
    assert constant(model, "get_n_layers") == config["num_hidden_layers"]
    assert constant(model, "get_max_seq_len") == chosen["context"]
    # What a stock runner may fill: the prefix takes the rest.
    assert constant(model, "get_max_context_len") == chosen["context"] - len(plan["prefix_ids"])
    assert constant(model, "get_prefill_chunk") == chosen["prefill_chunk"]
    program = Runtime.get().load_program(model)
    assert program.load_method("get_prefix_ids").execute([]) == (plan["prefix_ids"] or [-1])


def test_files_hold_no_path_of_the_machine(model: Path) -> None:
    root = str(Path(executorch_backend.__file__).resolve().parents[2]).encode()
    assert root not in model.read_bytes()


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ExecutorchBackend().unavailable() is None
    monkeypatch.setattr(executorch_backend.importlib.util, "find_spec", lambda name: None)
    line = ExecutorchBackend().unavailable()
    assert line is not None
    assert "pip install 'mobileicsa[executorch]'" in line


class _Foreign(nn.Module):
    """A product with a float weight, and an operator that XNNPACK does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.cumsum(self.linear(x), -1),)


def test_what_is_not_integer_or_not_delegated_is_listed_as_a_fallback(tmp_path: Path) -> None:
    program = torch.export.export(_Foreign().eval(), (torch.zeros(1, 8),), strict=False)
    _save(_lower({"decode": program}, {}), tmp_path / MODEL_FILE)
    assert placement(tmp_path / MODEL_FILE)["fallbacks"] == [
        {"node": "FullyConnected of 8 channels", "reason": "its weight is in float"},
        {"node": "cumsum", "reason": "runs outside of the delegate"},
    ]


def test_a_method_that_is_not_there_is_a_verification_error(model: Path) -> None:
    with pytest.raises(VerificationError, match="no method train"):
        placement(model, "train")

"""A cache of fewer rows than the context gives what the whole one gives, on every runtime that takes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from mobileicsa_export.executorch import ExecutorchBackend
from mobileicsa_export.onnx import OnnxBackend
from mobileicsa_export.onnx_load import load_graph
from mobileicsa_export.onnx_rows import free_rows
from mobileicsa_export.onnx_session import OnnxSession
from tiny_frozen import CHUNK, CONTEXT, Step, generate, target, tiny_frozen

from mobileicsa.core.spec import LayerSpec
from mobileicsa.program import generate as generating
from mobileicsa.program.backend import Session
from mobileicsa.program.frozen import build_decoder
from mobileicsa.program.generate import TokenRunner
from mobileicsa.program.methods import LEAST_ROWS
from mobileicsa.program.simulator import SimulatorSession

BACKENDS = {"onnx": OnnxBackend, "executorch": ExecutorchBackend}
# The second layer sees four tokens: its mask has the window's edge among the cached rows.
FROZEN = tiny_frozen("w4a8", layers=(LayerSpec(), LayerSpec(sliding_window=4)))
SPEC = FROZEN.plan.spec
DECODER = build_decoder(FROZEN, primitive=False)
METADATA = {"bos_id": 1, "eos_ids": [2], "prefix_ids": [], "context": CONTEXT}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("written")
    for name, backend in BACKENDS.items():
        backend().write(build_decoder(FROZEN, primitive=False), target(), made / name, METADATA)
    return made


@pytest.fixture(params=[*BACKENDS, "simulator"])
def session(request: pytest.FixtureRequest, folder: Path) -> Session:
    if request.param == "simulator":
        return SimulatorSession(DECODER, target())
    return BACKENDS[request.param]().open(folder / request.param, SPEC, target(), threads=1)


def just_enough(step: Step) -> Step:
    def trimmed(method: str, ids: np.ndarray, position: int, cache: list[np.ndarray]) -> Any:
        rows = max(position, LEAST_ROWS)
        return step(method, ids, position, [np.ascontiguousarray(c[:, :, :rows]) for c in cache])

    return trimmed


def test_as_many_rows_as_are_valid_give_the_integers_of_the_whole_cache(session: Session) -> None:
    assert session.any_rows
    whole, trimmed = generate(DECODER, session.run), generate(DECODER, just_enough(session.run))
    for (logits, rows), (fewer_logits, fewer_rows) in zip(whole, trimmed, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(rows, fewer_rows, strict=True))
        assert np.array_equal(logits, fewer_logits)


class Recorded:
    """A session that keeps how many rows it was given."""

    def __init__(self, session: SimulatorSession, *, any_rows: bool) -> None:
        self.session, self.any_rows, self.seen = session, any_rows, []

    def run(self, method: str, ids: np.ndarray, position: int, cache: list[np.ndarray]) -> Any:
        self.seen.append({c.shape[2] for c in cache})
        return self.session.run(method, ids, position, cache)

    def close(self) -> None: ...


def conversation(session: Recorded) -> np.ndarray:
    empty = [np.zeros((1, SPEC.num_kv_heads, 1, SPEC.head_dim), np.int8)] * (2 * SPEC.num_layers)
    runner = TokenRunner(session, replace(target(), context=CONTEXT), empty, None)
    logits = [runner.prefill(range(CHUNK + 2), last_only=True)[0]]
    logits += [runner.decode(token) for token in range(6)]
    runner.reset()
    return np.stack([*logits, runner.prefill(range(3), last_only=True)[0]])


def test_the_cache_grows_with_the_conversation_and_starts_small_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "CACHE_STEP", 4)
    growing = Recorded(SimulatorSession(DECODER, target()), any_rows=True)
    fixed = Recorded(SimulatorSession(DECODER, target()), any_rows=False)
    assert np.array_equal(conversation(growing), conversation(fixed))
    assert fixed.seen == [{CONTEXT}] * 9
    # One prefix row; two chunks (7 and 9 rows behind them), six tokens; then the next conversation's first chunk.
    assert growing.seen == [{4}, {8}, {12}, {12}, {12}, {12}, {16}, {16}, {4}]


def test_a_prompts_first_chunks_give_their_rows_without_the_vocabularys_product(folder: Path) -> None:
    session = OnnxSession(folder / "onnx", SPEC, threads=1)
    empty = [np.zeros((1, SPEC.num_kv_heads, 0, SPEC.head_dim), np.int8)] * (2 * SPEC.num_layers)
    ids = range(2 * CHUNK + 3)
    runner = TokenRunner(session, target(), empty, None)
    last, whole = runner.prefill(ids, last_only=True), [rows.copy() for rows in runner.cache]
    runner.reset()
    every = runner.prefill(ids)
    assert np.array_equal(last[0], every[-1])
    assert all(np.array_equal(a, b) for a, b in zip(whole, runner.cache, strict=True))
    calls: list[str] = []
    run, fill = session.run, session.fill
    session.run = lambda *arguments: calls.append("run") or run(*arguments)
    session.fill = lambda *arguments: calls.append("fill") or fill(*arguments)
    runner.reset()
    runner.prefill(ids, last_only=True)
    assert calls == ["fill", "fill", "run"]


def test_another_graph_keeps_its_rows() -> None:
    value = ir.Value(name="past_key_values.0.key", type=ir.TensorType(ir.DataType.INT8), shape=ir.Shape((1, 2, 8, 4)))
    node = ir.node("Identity", [value])
    graph = ir.Graph([value], node.outputs, nodes=[node], name="other")
    assert not free_rows(graph)
    assert value.shape == ir.Shape((1, 2, 8, 4))


def test_as_written_means_the_rows_that_are_written(folder: Path) -> None:
    assert not OnnxSession(folder / "onnx", SPEC, threads=1, numerics="as_written").any_rows
    assert load_graph(folder / "onnx" / "model.onnx").graph.inputs[2].shape[2] == CONTEXT

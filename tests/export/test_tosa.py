"""The TOSA back end: what it writes, that nothing real-valued is left, and that the reference model agrees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import family_spec
from tiny_frozen import CHUNK, CONTEXT, float_decoder, freeze, generate, target, tiny_frozen, tiny_spec

from mobileicsa.core.errors import InputError, MobileICSAError, SchemeError, VerificationError
from mobileicsa.program.frozen import build_decoder
from mobileicsa.program.simulator import SimulatorSession

pytest.importorskip("tosa_reference_model", reason="tosa-tools is not installed")

from mobileicsa_export.tosa import TosaBackend
from mobileicsa_export.tosa_census import census
from mobileicsa_export.tosa_shards import INDEX

TARGET = target(nonlinear="primitive")
SCHEMES = ("w8a8", "w4a8", "w4a16")
SHARDS = ("entry", "layers-00-00", "layers-01-01", "head")


def change(path: Path, field: str, value: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=SCHEMES)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp(request.param)
    decoder = build_decoder(tiny_frozen(request.param), primitive=True)
    made = TosaBackend().write(decoder, TARGET, folder, {})
    assert all(path.is_file() for path in made.files)
    return request.param, folder, made.facts


def test_no_tensor_is_real_valued_and_weights_have_their_bits(written: tuple[str, Path, dict[str, Any]]) -> None:
    scheme, folder, facts = written
    assert facts["float_tensors"] == 0
    assert facts["unsupported"] == []
    assert facts["delegated_share"] == 1.0
    dtypes = {method: facts["dtypes"][method] for method in ("prefill", "decode")}
    assert all(set(found) <= {"BOOL", "INT4", "INT8", "INT16", "INT32"} for found in dtypes.values())
    # Seven linears and a zero point in each of two layers; the head has 8 bits.
    assert [found.get("INT4", 0) for found in dtypes.values()] == [0 if scheme == "w8a8" else 16] * 2
    for method in dtypes:
        found = [census((folder / f"{method}-{shard}.tosa").read_bytes()) for shard in SHARDS]
        assert sum(c.real_valued for c in found) == 0
        assert all(integer for c in found for _, integer in c.operators)


def test_the_census_sees_a_real_valued_tensor() -> None:
    import tosa_serializer as ts

    graph = ts.TosaSerializer("")
    graph.addInputTensor(ts.TosaSerializerTensor("x", [2], ts.DType.FP32))
    graph.currRegion.currBasicBlock.addTensor("y", [2], ts.DType.FP32)
    attribute = ts.TosaSerializerAttribute()
    attribute.ExpAttribute()
    graph.addOperator(ts.Op.EXP, ["x"], ["y"], attribute)
    found = census(graph.serialize())
    assert found.real_valued == 2
    assert found.operators == (("EXP", False),)


def test_the_reference_model_agrees_with_the_simulator(written: tuple[str, Path, dict[str, Any]]) -> None:
    scheme, folder, _ = written
    frozen = tiny_frozen(scheme)
    session = TosaBackend().open(folder, frozen.plan.spec, TARGET)
    simulator = SimulatorSession(build_decoder(frozen, primitive=True), TARGET)
    pairs = list(zip(generate(simulator.decoder, session.run), generate(simulator.decoder, simulator.run), strict=True))
    rows = [np.abs(a.astype(int) - b) for (_, x), (_, y) in pairs for a, b in zip(x, y, strict=True)]
    assert max(int(r.max()) for r in rows) <= 1
    assert np.mean([(r == 0).mean() for r in rows]) > 0.98
    step = frozen.plan.edges["head.logits"].scale[0]
    for (found, _), (expected, _) in pairs:
        assert found.dtype == np.float32
        # A flipped 8-bit input of the head moves many of its 16-bit outputs, by little.
        assert np.abs(found - expected).max() <= 0.01 * 65536 * step
        assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.9


def test_a_second_write_goes_on_where_the_first_was_stopped(
    written: tuple[str, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, folder, facts = written
    lost, damaged = folder / "decode-head.json", folder / "prefill-head.tosa"
    before = damaged.read_bytes()
    lost.unlink()
    damaged.write_bytes(before[:-1])
    lowered: list[str] = []
    import mobileicsa_export.tosa_shards as module

    real = module.lower
    monkeypatch.setattr(module, "lower", lambda p, i, o: lowered.append(o[0]) or real(p, i, o))
    again = TosaBackend().write(build_decoder(tiny_frozen(scheme), primitive=True), TARGET, folder, {})
    assert lowered == ["logits", "logits"]
    assert damaged.read_bytes() == before
    assert again.facts == facts


def test_other_weights_are_lowered_anew(written: tuple[str, Path, dict[str, Any]], tmp_path: Path) -> None:
    import mobileicsa_export.tosa_shards as module

    from mobileicsa.program.shards import shards

    scheme, folder, _ = written
    decoder = build_decoder(tiny_frozen(scheme), primitive=True)
    decoder.layers[1].mlp.up_proj.weight[0, 0] += 1  # type: ignore[union-attr,index,operator]
    changed = {
        shard.name: module.content_of(shard)
        != json.loads((folder / f"decode-{shard.name}.json").read_text())["content"]
        for shard in shards(decoder, TARGET, "decode")
    }
    assert changed == {"entry": True, "layers-00-00": False, "layers-01-01": True, "head": False}


def test_placement_counts_integer_operators_only(written: tuple[str, Path, dict[str, Any]]) -> None:
    scheme, folder, _ = written
    found = TosaBackend().placement(folder, TARGET)
    assert (found["float"], found["outside"], found["fallbacks"]) == (0, 0, [])
    # 15 linears, q·k, and probs·v of 16-bit probabilities as two products; with 16-bit activations two for each.
    assert found["products"] == {"integer": 38 if scheme == "w4a16" else 21, "float": 0}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "decode-head.tosa").write_bytes(b"x"), "damaged or exchanged"),
        (lambda folder: (folder / "decode-head.tosa").unlink(), "missing or unreadable"),
        (lambda folder: (folder / "decode-head.json").write_text("{}"), "malformed.*'file'"),
        (lambda folder: change(folder / "decode-head.json", "file", 1), "decode-head.json: malformed: file"),
        (lambda folder: change(folder / "decode-head.json", "file", "../x.tosa"), "outside the folder"),
        (lambda folder: change(folder / INDEX, "methods", {"decode": ["../x"]}), "outside the folder"),
        (lambda folder: change(folder / INDEX, "methods", {}), "methods.decode is missing"),
        (lambda folder: change(folder / INDEX, "methods", {"decode": [1]}), "methods is missing or malformed"),
        (lambda folder: change(folder / INDEX, "logits", {"scale": 1.0}), "logits.zero_point is missing"),
    ],
)
def test_damage_is_found_before_anything_runs(
    written: tuple[str, Path, dict[str, Any]], tmp_path: Path, damage: Any, message: str
) -> None:
    _, folder, _ = written
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damage(copy)
    cache = [np.zeros((1, 2, CONTEXT, 16), np.int8)] * 4
    with pytest.raises((VerificationError, InputError), match=message):
        TosaBackend().open(copy, tiny_spec(), TARGET).run("decode", np.array([[1]]), 0, cache)


def test_files_of_another_model_or_target_are_refused(written: tuple[str, Path, dict[str, Any]]) -> None:
    _, folder, _ = written
    with pytest.raises(VerificationError, match="model differs"):
        TosaBackend().open(folder, tiny_spec(vocab_size=97), TARGET)
    with pytest.raises(MobileICSAError):
        TosaBackend().open(folder / "nothing", tiny_spec(), TARGET)
    assert json.loads((folder / INDEX).read_text())["chunk"] == CHUNK


def test_a_float_model_or_a_fused_target_is_refused(tmp_path: Path) -> None:
    for decoder, chosen in (
        (float_decoder(tiny_spec(), primitive=True), TARGET),
        (float_decoder(tiny_spec()), target()),
    ):
        with pytest.raises(SchemeError, match="every inner edge encoded"):
            TosaBackend().write(decoder, chosen, tmp_path, {})


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import mobileicsa_export.tosa as module

    assert TosaBackend().unavailable() is None
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'mobileicsa[arm]'" in str(TosaBackend().unavailable())


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "mistral", "phi3"])
def test_sliding_windows_and_caps_have_an_integer_form(family: str, tmp_path: Path) -> None:
    decoder = build_decoder(freeze(family_spec(family)), primitive=True)
    small = target(int4_storage="int4", nonlinear="primitive")
    made = TosaBackend().write(decoder, small, tmp_path, {})
    assert made.facts["float_tensors"] == 0
    session = TosaBackend().open(tmp_path, decoder.spec, small)
    pairs = zip(generate(decoder, session.run), generate(decoder, SimulatorSession(decoder, small).run), strict=True)
    rows = [np.abs(a.astype(int) - b) for (_, x), (_, y) in pairs for a, b in zip(x, y, strict=True)]
    assert max(int(steps.max()) for steps in rows) <= 2
    assert np.mean([float((steps == 0).mean()) for steps in rows]) >= 0.95

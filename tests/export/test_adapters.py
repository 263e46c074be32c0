"""Adapters beside one integer base: padded exactly, changed at run time, the same integers on both runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_frozen import eager, generate, target, tiny_frozen

from mobileicsa.core.errors import InputError, VerificationError
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.adapters import PlanAdapter, padded, room_for, use
from mobileicsa.program.backend import AdaptingBackend, AdaptingSession, ExactBackend, find_backend
from mobileicsa.program.frozen import FrozenModel, build_adapted, build_decoder
from mobileicsa.program.simulator import prepare_for_eager

LINEARS = {
    "attn.q_proj": (64, 64),
    "attn.v_proj": (64, 32),
    "attn.o_proj": (64, 64),
    "mlp.up_proj": (64, 80),
    "mlp.down_proj": (80, 64),
}
METADATA = {"bos_id": 1, "eos_ids": [2], "prefix_ids": [], "context": 24, "scheme": "w8a8"}

Calls = list[tuple[np.ndarray[Any, Any], list[np.ndarray[Any, Any]]]]


def adapter(name: str, rank: int, seed: int, linears: tuple[str, ...] = tuple(LINEARS)) -> PlanAdapter:
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for linear in linears:
            inputs, outputs = LINEARS[linear]
            path = f"layers.{layer}.{linear}"
            tensors[f"{path}.a"] = 0.05 * torch.randn(inputs, rank, generator=random)
            tensors[f"{path}.b"] = 0.1 * torch.randn(rank, outputs, generator=random)
            tensors[f"{path}.range"] = torch.tensor([-0.8, 0.8])
    return PlanAdapter(name, tensors, {})


FIRST, SECOND = adapter("first", 2, 1), adapter("second", 3, 2, ("attn.q_proj", "mlp.down_proj"))


def same(one: Calls, other: Calls) -> bool:
    return all(
        np.array_equal(x, y) and all(map(np.array_equal, rows, others))
        for (x, rows), (y, others) in zip(one, other, strict=True)
    )


def equal_share(one: Calls, other: Calls) -> float:
    pairs = [(x, y) for (_, a), (_, b) in zip(one, other, strict=True) for x, y in zip(a, b, strict=True)]
    return float(np.mean([np.mean(x == y) for x, y in pairs]))


def simulated(decoder: Decoder, chosen: PlanAdapter | None) -> Calls:
    use(decoder, None if chosen is None else padded(chosen, decoder))
    calls = generate(decoder, eager(decoder))
    use(decoder, None)
    return calls


@pytest.mark.parametrize("primitive", [False, True])
def test_zeros_change_nothing_and_wider_room_neither(primitive: bool) -> None:
    frozen = tiny_frozen()
    base = generate(build_decoder(frozen, primitive=primitive), eager(build_decoder(frozen, primitive=primitive)))
    both = build_adapted(frozen, [FIRST, SECOND], primitive=primitive)
    assert same(simulated(both, None), base)
    nothing = PlanAdapter("nothing", {n: torch.zeros_like(t) for n, t in FIRST.tensors.items()}, {})
    assert same(simulated(both, nothing), base)
    with_it = simulated(both, FIRST)
    assert not same(with_it, base)
    if not primitive:  # there the other adapter's numbers have a part in the encodings
        assert same(with_it, simulated(build_adapted(frozen, [FIRST], primitive=False), FIRST))


def test_the_float_path_is_the_weight_with_the_product_added() -> None:
    """x W^T + (x A) B is x (W^T + A B): only the sum's rounding to the output's grid lies between."""
    frozen = tiny_frozen()
    decoder = build_adapted(frozen, [FIRST], primitive=False)
    use(decoder, padded(FIRST, decoder))
    linear = decoder.get_submodule("layers.0.mlp.up_proj")
    x = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(3))
    product = FIRST.tensors["layers.0.mlp.up_proj.a"] @ FIRST.tensors["layers.0.mlp.up_proj.b"]
    expected = linear.out(x @ (linear.effective_weight().T + product))
    step = linear.out.encoding.scale[0]
    assert float((linear(x) - expected).abs().max()) <= 1.001 * step
    assert float((linear(x) != expected).float().mean()) < 0.01


def test_the_integer_path_is_near_the_float_path() -> None:
    frozen = tiny_frozen()
    decoder = build_adapted(frozen, [FIRST], primitive=True)
    linear = decoder.get_submodule("layers.0.mlp.up_proj")
    grid = linear.lora.inner.encoding.scale[0]
    assert linear.lora.a.encoding.bits == 8
    assert grid == pytest.approx(1 / 127)
    use(decoder, padded(FIRST, decoder))
    x = 0.7 * torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(3))
    a, b = (FIRST.tensors[f"layers.0.mlp.up_proj.{part}"] for part in "ab")
    base = torch.zeros(1, 5, 80)
    error = linear.lora(x, base) - linear.lora.base(base) - (x @ a) @ b
    assert 0 < float(error.abs().mean()) < 0.1 * float(((x @ a) @ b).abs().mean())


@pytest.fixture(scope="module", params=["onnx", "executorch", "onnx, integers"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    name, primitive = request.param.partition(",")[0], "integers" in request.param
    back_end = find_backend(name)
    reason = back_end.unavailable()
    if reason is not None:
        pytest.skip(reason)
    assert isinstance(back_end, AdaptingBackend)
    folder = tmp_path_factory.mktemp("adapters") / name
    frozen = tiny_frozen()
    goal = target(nonlinear="primitive" if primitive else "fused")
    decoder = build_adapted(frozen, [FIRST, SECOND], primitive=primitive)
    back_end.write(decoder, goal, folder, METADATA)
    files = {}
    for one in (FIRST, SECOND):
        files[one.name] = folder / f"{one.name}{back_end.adapter_suffix}"
        back_end.write_adapter(padded(one, decoder), files[one.name])
    session = back_end.open(folder, frozen.plan.spec, goal, threads=1)
    assert isinstance(session, AdaptingSession)
    return back_end, folder, goal, frozen, decoder, files, session


def test_both_runtimes_change_adapters_and_come_back_to_the_same_integers(written: tuple[Any, ...]) -> None:
    """A, B, A: identical; each as near to the simulator as the base is."""
    _, _, goal, frozen, decoder, files, session = written
    before: dict[str | None, Calls] = {}
    for chosen in (None, FIRST, SECOND, FIRST, None):
        name = None if chosen is None else chosen.name
        session.use_adapter(None if name is None else files[name])
        calls = generate(decoder, session.run)
        if name in before:
            assert same(calls, before[name]), name
        before[name] = calls
        assert equal_share(calls, simulated(decoder, chosen)) > 0.95, name
    base = generate(decoder, eager(build_decoder(frozen, primitive=goal.nonlinear == "primitive")))
    assert equal_share(before[None], base) == 1.0
    assert equal_share(before["first"], base) < 0.9
    assert equal_share(before["first"], before["second"]) < 0.9


def test_the_exact_arithmetic_gives_the_simulators_integers_with_an_adapter(written: tuple[Any, ...]) -> None:
    back_end, folder, goal, frozen, decoder, files, _ = written
    if not isinstance(back_end, ExactBackend):
        pytest.skip("has no exact arithmetic")
    session = back_end.open_exact(folder, frozen.plan.spec, goal)
    assert isinstance(session, AdaptingSession)
    session.use_adapter(files["first"])
    twin = build_adapted(frozen, [FIRST, SECOND], primitive=goal.nonlinear == "primitive")
    prepare_for_eager(twin)
    assert equal_share(generate(decoder, session.run), simulated(twin, FIRST)) > 0.999


def test_no_weight_runs_in_float_because_of_adapters(written: tuple[Any, ...]) -> None:
    back_end, folder, goal, *_ = written
    assert back_end.placement(folder, goal)["fallbacks"] == []


def test_an_adapter_that_does_not_fit_the_program_is_refused(written: tuple[Any, ...], tmp_path: Path) -> None:
    back_end, _, _, frozen, decoder, files, session = written
    with pytest.raises(InputError, match=r"q_proj has rank 5, the program has room for 3"):
        padded(adapter("wide", 5, 3), decoder)
    broken = tmp_path / files["first"].name
    broken.write_bytes(files["first"].read_bytes()[:100])
    with pytest.raises(VerificationError, match="first"):
        session.use_adapter(broken)
    if back_end.name == "executorch":
        wide = adapter("wide", 5, 3)
        other = build_adapted(frozen, [wide], primitive=False)
        back_end.write_adapter(padded(wide, other), broken)
        with pytest.raises(VerificationError, match="shape"):
            session.use_adapter(broken)


def test_room_is_the_largest_rank_of_each_linear() -> None:
    frozen: FrozenModel = tiny_frozen()
    room = room_for(frozen.plan, [FIRST, SECOND], primitive=False)
    assert room.ranks["layers.0.attn.q_proj"] == 3
    assert room.ranks["layers.0.mlp.up_proj"] == 2
    assert room.grids == {}

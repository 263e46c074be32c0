"""What a build says that it needs before it starts: memory by stage and shape, and the way out of too much."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_artifact import write_checkpoint

from mobileicsa.artifact import plan_build
from mobileicsa.artifact.needs import estimate, saving_memory
from mobileicsa.artifact.plan_build import BuildOptions, BuildPlan
from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.core.spec import LayerSpec, ModelSpec
from mobileicsa.io import machine
from mobileicsa.quantize.recipe import Learning, load_recipe

GIB = 1 << 30


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> BuildPlan:
    folder = tmp_path_factory.mktemp("needs")
    model = str(write_checkpoint(folder / "checkpoint"))
    options = BuildOptions(model=model, scheme="w4a8", output=folder / "out", overrides=("learn.1.batch=64",))
    return plan_build.plan_build(options)


@pytest.fixture
def large(plan: BuildPlan) -> ModelSpec:
    """The shape of Llama 3.2 1B."""
    shape = {"hidden_size": 2048, "intermediate_size": 8192, "num_heads": 32, "num_kv_heads": 8, "head_dim": 64}
    return replace(plan.spec, **shape, vocab_size=128_256, layers=(LayerSpec(rope=0),) * 16)


def memory(spec: ModelSpec, *stages: Learning) -> int:
    recipe = load_recipe("learned", ()).model_copy(update={"learn": stages})
    return estimate(spec, recipe, None, ())[0]


def test_a_model_that_learns_whole_needs_most_and_recomputed_blocks_much_less(large: ModelSpec) -> None:
    block, latent, scale = (
        Learning(scope="block", weights="latent", lr_weights=0.02),
        Learning(weights="latent"),
        Learning(),
    )
    alone = memory(large)
    assert alone < memory(large, block) < memory(large, scale) < memory(large, latent)
    assert memory(large, block, scale) == memory(large, scale)  # one after the other
    saved = memory(large, Learning(save_memory=True))
    assert saved < memory(large, scale)
    assert memory(large, Learning(save_memory=True)) < 24 * GIB < memory(large, latent)


def test_memory_grows_with_the_batch(large: ModelSpec) -> None:
    one, four = (memory(large, Learning(batch=batch)) for batch in (1, 4))
    assert one < four


def test_the_way_out_is_named_where_it_is_one(plan: BuildPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lean = estimate(plan.spec, saving_memory(plan.recipe), plan.limits, plan.targets)[0]
    assert lean < plan.memory_bytes
    options = replace(plan.options, output=tmp_path / "other")
    for available, words in ((lean, "learn.N.save_memory=true"), (lean - 1, "hint: close other programs")):
        for module in (machine, plan_build):
            monkeypatch.setattr(module, "available_memory", lambda available=available: available)
        with pytest.raises(EnvironmentFault, match="MiB of memory") as raised:
            plan_build.plan_build(options)
        assert words in str(raised.value)
        assert ("save_memory" in str(raised.value)) == (available == lean)
    monkeypatch.setattr(machine, "available_memory", lambda: plan.memory_bytes)
    plan_build.plan_build(options)

"""ReeFL's parts: losses by hand, joining, budgets, LoRA, a ViT of transformers as a start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from mobileicsa.core.errors import InputError
from mobileicsa.methods.loop import MovingMean
from mobileicsa.methods.lora import fold_adapters, put_adapters
from mobileicsa.methods.reefl.config import SMALL, ReeflConfig
from mobileicsa.methods.reefl.losses import all_teach_all, best_exit_teaches, last_exit, ramp
from mobileicsa.methods.reefl.models import build, read, write
from mobileicsa.methods.reefl.start import read_vit
from mobileicsa.methods.reefl.variants import MOMENTUM, VARIANTS, budget, join, takes_part
from mobileicsa.methods.updates import Update
from mobileicsa.models.early_exit_vit import ExitVit, ExitVitSpec

SPEC = ExitVitSpec(
    channels=1, height=8, width=8, patch=4, dim=24, blocks=4, heads=4, head_dim=6, classes=3, exits=(1, 2, 3, 4)
)
LABELS = torch.tensor([0, 1, 2, 0])


def logits(count: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, generator=draw).requires_grad_() for _ in range(count)]


def kl(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    return kl_div(log_softmax(student, -1), softmax(teacher, -1), reduction="batchmean")


def test_distillation_grows_from_next_to_nothing_to_its_whole_weight() -> None:
    assert [round(ramp(r, 300), 4) for r in (0, 150, 300, 900)] == [0.0067, 0.2865, 1.0, 1.0]


def test_the_exit_with_the_least_moving_mean_teaches_and_is_not_taught() -> None:
    exits = logits(3)
    means = [MovingMean(0.8) for _ in exits]
    means[1].add(-100.0)  # far below what this batch adds
    loss = best_exit_teaches(exits, LABELS, 0.5, means)
    plain = sum(cross_entropy(exit, LABELS) for exit in exits)
    expected = plain + 0.5 * (kl(exits[1], exits[0]) + kl(exits[1], exits[2]))
    assert loss.item() == pytest.approx(float(expected), rel=1e-5)
    loss.backward()
    own = torch.autograd.grad(cross_entropy(exits[1], LABELS), exits[1])[0]
    torch.testing.assert_close(exits[1].grad, own)


def test_a_client_with_one_exit_has_no_teacher() -> None:
    only = logits(1)
    loss = best_exit_teaches(only, LABELS, 1.0, [MovingMean(0.8)])
    assert loss.item() == pytest.approx(float(cross_entropy(only[0], LABELS)))


def test_depthfl_lets_every_exit_teach_every_other() -> None:
    exits = logits(3)
    pairs = sum(kl(a, b) for a in exits for b in exits if a is not b)
    expected = sum(cross_entropy(exit, LABELS) for exit in exits) + 0.5 * pairs / 2
    assert all_teach_all(exits, LABELS, 0.5, [MovingMean(0.8)] * 3).item() == pytest.approx(float(expected), rel=1e-5)


def test_inclusivefl_trains_the_deepest_exit_only() -> None:
    exits = logits(3)
    last_exit(exits, LABELS, 1.0, []).backward()
    assert [exit.grad is not None for exit in exits] == [False, False, True]


def test_budgets_go_round_and_exclusivefl_takes_the_deepest() -> None:
    assert [budget(number, 4) for number in range(6)] == [1, 2, 3, 4, 1, 2]
    config = replace(SMALL, exits=4)
    taken = [number for number in range(8) if takes_part(number, VARIANTS["exclusivefl"], config)]
    assert taken == [3, 7]


def test_inclusivefl_moves_a_border_block_by_the_blocks_behind_it() -> None:
    spec = replace(SPEC, kind="own", modulation=False, exits=(2, 4))
    state = {f"blocks.{n}.w": np.zeros(1, np.float32) for n in range(4)}
    moved = {key: np.full(1, value, np.float32) for key, value in zip(state, (1.0, 2.0, 3.0, 5.0), strict=True)}
    joined = join(VARIANTS["inclusivefl"], spec, state, [Update(client="a", round=0, examples=1, arrays=moved)])
    expected = [1.0, (1 - MOMENTUM) * 2 + MOMENTUM * 4, 3.0, 5.0]
    assert [float(value[0]) for value in joined.values()] == pytest.approx(expected)


def test_scalefls_narrow_models_are_corners_of_the_whole() -> None:
    variant = VARIANTS["scalefl"]
    assert [variant.spec(SPEC, exits).heads for exits in range(1, 5)] == [2, 2, 3, 4]
    config = replace(SMALL, regime="full")
    whole, parameters = build(variant.spec(SPEC, 4), {}, config, 0)
    _, fewer = build(variant.spec(SPEC, 1), whole.state_dict(), config, 0)
    assert fewer["blocks.0.attn.q.weight"].shape == (12, 12)
    torch.testing.assert_close(fewer["blocks.0.attn.q.weight"], parameters["blocks.0.attn.q.weight"][:12, :12])
    arrays = {name: array + 1 for name, array in read(parameters).items()}
    write(arrays, fewer)
    torch.testing.assert_close(fewer["blocks.0.up.weight"], parameters["blocks.0.up.weight"][:48, :12] + 1)


@pytest.mark.parametrize(
    ("regime", "kinds"), [("frozen", {"exits"}), ("lora", {"exits", "blocks"}), ("full", {"exits", "blocks", "embed"})]
)
def test_a_regime_trains_its_own_parameters(regime: str, kinds: set[str]) -> None:
    _, learned = build(SPEC, {}, replace(SMALL, regime=regime), 0)  # type: ignore[arg-type]
    assert {name.partition(".")[0] for name in learned} == kinds
    if regime == "lora":
        assert all(".adapter." in name for name in learned if name.startswith("blocks"))


def test_lora_starts_as_the_model_and_folds_into_it() -> None:
    torch.manual_seed(0)
    model = ExitVit(SPEC).eval()
    inputs = torch.randn(2, 1, 8, 8)
    names, before = set(model.state_dict()), model(inputs)[-1]
    put_adapters(model, ("q", "v"), 2, 4.0)
    torch.testing.assert_close(model(inputs)[-1], before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("adapter.b"):
                parameter.normal_()
    adapted = model(inputs)[-1]
    assert not torch.allclose(adapted, before, atol=1e-3)
    fold_adapters(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model(inputs)[-1], adapted, atol=1e-5, rtol=1e-4)


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=8,
        patch_size=4,
        num_channels=1,
        layer_norm_eps=1e-6,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_a_vit_of_transformers_is_the_same_backbone(vit: Path) -> None:
    from transformers import ViTModel

    theirs = ViTModel.from_pretrained(vit, add_pooling_layer=False).eval()
    spec = replace(SPEC, modulation=False)
    model, _ = build(spec, read_vit(vit, spec), ReeflConfig(), 0)
    inputs = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = theirs(inputs, output_hidden_states=True).hidden_states[1:]
        state, history = inputs, None
        for exit in range(4):
            _, state, history = model.eval().stage(exit)(state, history)
            torch.testing.assert_close(state, expected[exit], atol=1e-5, rtol=1e-4)


def test_a_start_of_another_shape_is_refused(vit: Path) -> None:
    with pytest.raises(InputError, match="needed is"):
        read_vit(vit, replace(SPEC, patch=8))
    with pytest.raises(InputError, match="ViT of transformers"):
        read_vit(vit.parent, SPEC)

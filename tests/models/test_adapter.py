"""Peft LoRA folders: read as peft itself would apply them, or refused before anything else happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapter import CONFIG, MODULES, write_adapter
from tiny_artifact import write_checkpoint

from mobileicsa.artifact.adapter_plan import merge
from mobileicsa.core.errors import InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.io.checkpoint import open_checkpoint
from mobileicsa.models.adapter import check_base, read_adapter
from mobileicsa.models.load import FloatWeights, read_spec


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(scope="module")
def spec(checkpoint: Path) -> ModelSpec:
    return read_spec(open_checkpoint(str(checkpoint)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "tiny")


def test_an_adapter_merges_as_peft_merges_it(tmp_path: Path, checkpoint: Path) -> None:
    """Rank and alpha patterns and rsLoRA; the merged weights are peft's, to float32's last bits."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install 'mobileicsa[federated]'")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    changes = {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"layers.1.mlp.down_proj": 5}, "use_rslora": True}
    folder = write_adapter(tmp_path / "patterns", **changes)
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    theirs = peft.PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    opened = open_checkpoint(str(checkpoint))
    ours, adapter = merge(opened, read_spec(opened), folder)
    assert adapter is not None
    assert ours.identity != opened.identity
    assert sorted(adapter.updates) == sorted(MODULES)
    for name in ours.tensors.names():
        assert torch.allclose(ours.tensors.get(name), theirs[name], atol=1e-6), name
    changed = [n for n in ours.tensors.names() if not torch.equal(ours.tensors.get(n), opened.tensors.get(n))]
    assert changed == sorted(f"{module}.weight" for module in MODULES)


def test_the_canonical_update_is_that_of_the_canonical_weight(folder: Path, checkpoint: Path, spec: ModelSpec) -> None:
    """The attention scale that the weights hold is in the update too."""
    opened = open_checkpoint(str(checkpoint))
    merged, adapter = merge(opened, spec, folder)
    assert adapter is not None
    before, after = FloatWeights(spec, opened.tensors), FloatWeights(spec, merged.tensors)
    updates = adapter.canonical(spec)
    assert sorted(updates) == ["layers.0.attn.q_proj", "layers.1.attn.v_proj", "layers.1.mlp.down_proj"]
    for linear, update in updates.items():
        moved = after.get(f"{linear}.weight") - before.get(f"{linear}.weight")
        assert torch.allclose(update.up @ update.down, moved, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": -1}, "lora_alpha"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern"),
        ({"a_field_of_2031": True}, "a_field_of_2031"),
        ({"target_modules": ["q_proj", "v_proj"]}, "down_proj"),
        ({"target_modules": [*CONFIG["target_modules"], "nonsense"]}, "nonsense"),
    ],
)
def test_a_config_that_asks_for_more_is_refused_by_field(
    folder: Path, spec: ModelSpec, changes: dict[str, Any], said: str
) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    with pytest.raises(InputError) as caught:
        read_adapter(folder, spec)
    assert "adapter_config.json" in caught.value.message
    assert said in caught.value.message
    assert caught.value.hint or "expected" in caught.value.message


def _poisoned(tensors: dict[str, torch.Tensor]) -> None:
    tensors[next(iter(tensors))][0, 0] = float("nan")


def _embedding(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 259)


def _headed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(4, 32)
    tensors["base_model.model.lm_head.lora_B.weight"] = torch.zeros(259, 4)


def _halved(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]


def _other_model(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"] = torch.zeros(4, 64)


def _other_rank(tensors: dict[str, torch.Tensor]) -> None:
    name = "base_model.model.model.layers.1.mlp.down_proj"
    tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = torch.zeros(2, 48), torch.zeros(32, 2)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_poisoned, ("NaN", "lora_A")),
        (_embedding, ("embed_tokens",)),
        (_headed, ("lm_head",)),
        (_halved, ("q_proj", "lora_B")),
        (_other_model, ("down_proj", "[4, 64]", "[4, 48]")),
        (_other_rank, ("down_proj", "[2, 48]", "[4, 48]")),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_module(
    folder: Path, spec: ModelSpec, harm: Callable[[dict[str, torch.Tensor]], None], said: tuple[str, ...]
) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    harm(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "target_modules": None}))
    with pytest.raises(InputError) as caught:
        read_adapter(folder, spec)
    for words in said:
        assert words in caught.value.message


def test_a_pickle_is_never_read(folder: Path, spec: ModelSpec) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InputError, match=r"adapter_model\.bin: is a Python pickle"):
        read_adapter(folder, spec)


def test_an_update_that_outweighs_the_weight_is_refused(folder: Path, checkpoint: Path, spec: ModelSpec) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "lora_alpha": 1e6}))
    with pytest.raises(InputError, match=r"q_proj: the update has norm"):
        merge(open_checkpoint(str(checkpoint)), spec, folder)


def test_alpha_0_is_said_and_changes_nothing(folder: Path, checkpoint: Path, spec: ModelSpec) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "lora_alpha": 0}))
    adapter = read_adapter(folder, spec)
    assert "does nothing" in adapter.notes[0]
    assert all(not update.up.any() for update in adapter.updates.values())


def test_another_base_is_named(tmp_path: Path, spec: ModelSpec) -> None:
    adapter = read_adapter(write_adapter(tmp_path / "x", base_model_name_or_path="org/Other-7B"), spec)
    said = check_base(adapter, "smollm2-135m")
    assert said is not None
    assert "org/Other-7B" in said
    same = read_adapter(
        write_adapter(tmp_path / "y", base_model_name_or_path="HuggingFaceTB/SmolLM2-135M-Instruct"), spec
    )
    assert check_base(same, "smollm2-135m") is None

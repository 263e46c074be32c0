"""Adapters: one vector, peft's own folder, merged weights; what is refused."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_artifact import write_checkpoint

from mobileicsa.core.errors import InputError
from mobileicsa.methods.peft_vector import PeftVector
from mobileicsa.models.adapter import LowRank
from mobileicsa.models.adapter_config import CONFIG_FILE
from mobileicsa.models.adapter_tensors import TENSOR_FILE

# Module -> (rank, out, in) in the tiny Llama.
SHAPES = {
    "model.layers.0.self_attn.q_proj": (2, 32, 32),
    "model.layers.1.self_attn.k_proj": (3, 16, 32),
    "model.layers.1.mlp.down_proj": (2, 32, 48),
}
Q, K, DOWN = SHAPES


def make(seed: int = 0, **more: Any) -> PeftVector:
    draw = torch.Generator().manual_seed(seed)
    updates = {
        name: LowRank(torch.randn(r, inner, generator=draw), torch.randn(out, r, generator=draw))
        for name, (r, out, inner) in SHAPES.items()
    }
    return PeftVector(updates=updates, **more)


def same(a: PeftVector, b: PeftVector) -> bool:
    return a.table() == b.table() and torch.equal(a.vector(), b.vector())


def test_a_vector_and_back_is_the_same_adapter() -> None:
    adapter = make()
    assert adapter.vector().shape == (adapter.parameters,) == (2 * 64 + 3 * 48 + 2 * 80,)
    assert same(make(1).with_vector(adapter.vector()), adapter)
    with pytest.raises(InputError, match=r"shape \[3\], expected \[432\]"):
        adapter.with_vector(torch.zeros(3))


def test_a_folder_and_back_is_the_same_adapter(tmp_path: Path) -> None:
    adapter = make(base="some/model", base_identity="ab" * 32)
    adapter.save(tmp_path)
    again = PeftVector.load(tmp_path)
    assert same(again, adapter)
    assert (again.base, again.base_identity) == ("some/model", "ab" * 32)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["rank_pattern"] == {K: 3}


def test_stock_peft_reads_the_folder_as_we_merge_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    transformers = pytest.importorskip("transformers")
    write_checkpoint(tmp_path / "base")
    adapter = make(base=str(tmp_path / "base"))
    adapter.save(tmp_path / "adapter")
    ids = torch.arange(5, 25).view(2, 10)

    def base() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()

    merged = base()
    weights = {name: merged.get_submodule(name).weight.detach() for name in SHAPES}
    for name, weight in adapter.merge(weights).items():
        merged.get_submodule(name).weight.data = weight
    with torch.no_grad():
        plain = base()(ids).logits
        loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter")(ids).logits
        expected = merged(ids).logits
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(loaded, expected, atol=1e-4, rtol=1e-4)


def test_what_peft_writes_reads_back_with_its_factors(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
    transformers = pytest.importorskip("transformers")
    write_checkpoint(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2}, use_rslora=True
    )
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "adapter")
    adapter = PeftVector.load(tmp_path / "adapter")
    assert adapter.ranks == {
        f"model.layers.{i}.{m}": r for i in (0, 1) for m, r in (("mlp.down_proj", 2), ("self_attn.q_proj", 4))
    }
    for name, update in adapter.updates.items():
        delta = model.get_submodule(f"base_model.model.{name}").get_delta_weight("default")
        torch.testing.assert_close(update.product(), delta.detach(), atol=1e-6, rtol=1e-5)


def test_alpha_zero_warns_and_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make().save(tmp_path)
    edit(tmp_path, lora_alpha=0, alpha_pattern={})
    with caplog.at_level(logging.WARNING):
        adapter = PeftVector.load(tmp_path)
    assert all(not update.product().any() for update in adapter.updates.values())
    assert "alpha is 0" in caplog.text


def edit(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def damage(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / TENSOR_FILE)
        change(tensors)
        save_file(tensors, folder / TENSOR_FILE)

    return apply


def as_pickle(folder: Path) -> None:
    (folder / TENSOR_FILE).rename(folder / "adapter_model.bin")


A_OF_Q = f"base_model.model.{Q}.lora_A.weight"
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "NaN": (damage(lambda t: t[A_OF_Q].fill_(math.nan)), rf"{Q}.*NaN"),
    "huge": (damage(lambda t: t[A_OF_Q].mul_(1e7)), rf"{Q}.*norm"),
    "rank 0": (lambda f: edit(f, r=0), "r is 0"),
    "no B": (damage(lambda t: t.pop(A_OF_Q.replace("_A", "_B"))), rf"{Q}.*no lora_B"),
    "shapes": (damage(lambda t: t.update({A_OF_Q: torch.ones(5, 32)})), rf"{Q}.*rank 5.*says 2"),
    "pickle": (as_pickle, "adapter_model.bin.*pickle"),
    "no config": (lambda f: (f / CONFIG_FILE).unlink(), "not found"),
    "cut off": (lambda f: (f / TENSOR_FILE).write_bytes((f / TENSOR_FILE).read_bytes()[:-9]), "bytes of tensors"),
    "foreign tensor": (damage(lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2, 2)})), "lm_head"),
    "other method": (lambda f: edit(f, peft_type="IA3"), "IA3"),
    "dora": (lambda f: edit(f, use_dora=True), "use_dora"),
    "bias": (lambda f: edit(f, bias="all"), "bias"),
    "pattern": (lambda f: edit(f, alpha_pattern={"layers.(a": 3}), "patterns of module names"),
    "alpha text": (lambda f: edit(f, lora_alpha="4"), "lora_alpha"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_broken_folder_is_refused(tmp_path: Path, name: str) -> None:
    make().save(tmp_path)
    spoil, words = REFUSED[name]
    spoil(tmp_path)
    with pytest.raises(InputError, match=words) as raised:
        PeftVector.load(tmp_path)
    assert raised.value.exit_code == 3


def test_another_base_is_refused_with_both_shapes() -> None:
    adapter = make(base_identity="a" * 64)
    shapes = {name: (out, inner) for name, (_, out, inner) in SHAPES.items()}
    adapter.check_base(shapes, "a" * 64)
    with pytest.raises(InputError, match=rf"{DOWN}.*\[32, 48\].*\[32, 64\]"):
        adapter.check_base({**shapes, DOWN: (32, 64)})
    with pytest.raises(InputError, match=f"{K}.*no linear"):
        adapter.check_base({name: shape for name, shape in shapes.items() if name != K})
    with pytest.raises(InputError, match="made for base aaaa"):
        adapter.check_base(shapes, "b" * 64)


def test_an_adapter_without_modules_is_refused() -> None:
    with pytest.raises(InputError, match="no module"):
        PeftVector(updates={})

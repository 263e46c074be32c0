"""An artifact with adapters: built, listed, run, verified; a later adapter follows; too much saturation is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapter import write_adapter
from tiny_artifact import TEXT, Silent, prefix_fixed, write_checkpoint

from mobileicsa.artifact import plan_build as planning
from mobileicsa.artifact.adapter_choice import chosen
from mobileicsa.artifact.adapter_plan import check_adapting
from mobileicsa.artifact.adapters import read_prepared
from mobileicsa.artifact.build import build
from mobileicsa.artifact.exported import export_artifact
from mobileicsa.artifact.manifest import read_manifest
from mobileicsa.artifact.model import QuantizedModel, read_checked
from mobileicsa.artifact.plan_build import BuildOptions, plan_build
from mobileicsa.artifact.verify import verify
from mobileicsa.core.errors import InputError, Unsupported, UsageError, VerificationError
from mobileicsa.core.target import Target
from mobileicsa.program.backend import find_backend
from mobileicsa.quantize.steps import Quiet
from mobileicsa.report.contents import contents

GOAL = Target(name="small", description="", backends=("onnx",), int4_storage="int8", context=64, prefill_chunk=16)
OVERRIDES = ("calibration.samples=2", "calibration.length=32", "prefix_tokens=1", "alphas=[0.5]")

pytestmark = pytest.mark.skipif(
    find_backend("onnx").unavailable() is not None, reason="needs the onnx back end: pip install 'mobileicsa[onnx]'"
)


def loud(folder: Path, factor: float) -> Path:
    """The adapter with its updates that many times as large."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: t * factor if "lora_B" in n else t for n, t in tensors.items()}, path)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    write_checkpoint(folder / "checkpoint")
    (folder / "calibration.txt").write_text(TEXT)
    loud(write_adapter(folder / "first"), 3.0)
    loud(write_adapter(folder / "second", r=2, use_rslora=True), -4.0)
    loud(write_adapter(folder / "later", r=3), 5.0)
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_target() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "find_target", lambda name: GOAL)
        yield


def options(root: Path, output: str, **changes: Any) -> BuildOptions:
    given: dict[str, Any] = {"recipe": "prefix", "calibration": root / "calibration.txt", "overrides": OVERRIDES}
    return BuildOptions(
        model=str(root / "checkpoint"), scheme="w8a8", output=root / output, targets=("small",), **{**given, **changes}
    )


@pytest.fixture(scope="module")
def artifact(root: Path) -> Path:
    adapters = (root / "first", root / "second")
    with prefix_fixed(1, 86):
        build(
            plan_build(options(root, "artifact", adapters=adapters, max_adapter_saturation=1.0)),
            Silent(),
            lambda folder: None,
        )
    return root / "artifact"


def test_the_artifact_lists_its_adapters(artifact: Path) -> None:
    assert read_manifest(artifact)["adapters"] == ["first", "second"]
    listed = contents(artifact)["adapters"]
    assert list(listed) == ["first", "second"]
    assert listed["first"]["rank"] == {"least": 4, "most": 4}
    assert listed["first"]["linears"] == 3
    worst = listed["first"]["saturation"]["worst"]
    assert worst == sorted(worst, key=lambda row: -row["added"])
    files = contents(artifact)["targets"]["small"]["onnx"]["files"]
    assert {"adapters/first.onnx_adapter", "adapters/second.onnx_adapter"} <= set(files)


def test_ranks_fill_the_range_of_the_integer_path_on_calibration_text(artifact: Path) -> None:
    (first,) = read_prepared(artifact, ["first"])
    low, high = first.tensors["layers.1.mlp.down_proj.range"]
    assert low < 0 < high
    assert "prefix.0.key" in first.tensors


def test_an_adapter_changes_what_is_written_and_none_changes_it_back(artifact: Path) -> None:
    texts: dict[str | None, list[list[int]]] = {}
    for backend in ("simulator", "onnx"):
        model = QuantizedModel.from_pretrained(artifact, backend=backend)
        for name in (None, "first", "second", "first", None):
            model.use_adapter(name)
            made = [model.generate(text, max_new_tokens=10).token_ids for text in ("The quick", "dog")]
            assert texts.setdefault(name, made) == made
        model.close()
    assert len({str(made) for made in texts.values()}) == 3


def test_verify_replays_an_adapter_and_swaps_it(artifact: Path) -> None:
    result = verify(artifact, adapter="first", greedy=False)
    assert result["ok"], result
    for row in result["backends"].values():
        assert row["adapter"] == "first"
        assert row["swap"] == {"identical": True, "through": ["second", "no adapter"]}
    assert result["backends"]["onnx"]["equal_share"] > 0.9
    assert verify(artifact, greedy=False)["ok"]


def test_an_adapter_that_is_not_there_is_named(artifact: Path) -> None:
    with pytest.raises(InputError, match="--adapter third: the artifact has first, second"):
        QuantizedModel.from_pretrained(artifact, adapter="third")


def test_a_damaged_adapter_is_no_adapter(artifact: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "copy"))
    path = copy / "adapters" / "first" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match=r"adapters/first/adapter\.safetensors"):
        QuantizedModel.from_pretrained(copy, adapter="first")


def test_a_later_adapter_follows_the_finished_artifact(artifact: Path, root: Path, tmp_path: Path) -> None:
    """Exported from the artifact alone; the given one of the same name as at the build has the build's own factors."""
    adapters = chosen(artifact, [str(root / "later"), "first"], root / "calibration.txt", 1.0, Quiet())
    assert [adapter.name for adapter in adapters] == ["later", "first"]
    export_artifact(artifact, GOAL, tmp_path / "out", Quiet(), adapters=adapters)
    _, frozen = read_checked(artifact)
    models = [
        QuantizedModel.of_frozen(artifact, frozen, GOAL, backend, files=tmp_path / "out" / "onnx", adapters=adapters)
        for backend in ("simulator", "onnx")
    ]
    for name in ("later", "first"):
        texts = []
        for model in models:
            model.use_adapter(name)
            texts.append(model.generate("The quick", max_new_tokens=10).token_ids)
        assert texts[0] == texts[1]
    again = chosen(artifact, [str(root / "first")], root / "calibration.txt", 1.0, Quiet())[0]
    own = read_prepared(artifact, ["first"])[0]
    product = [t["layers.0.attn.q_proj.a"] @ t["layers.0.attn.q_proj.b"] for t in (again.tensors, own.tensors)]
    assert torch.allclose(*product, atol=1e-6)


def test_too_much_saturation_is_refused_with_edge_and_flag(root: Path) -> None:
    loud(write_adapter(root / "loud"), 60.0)
    with (
        prefix_fixed(1, 86),
        pytest.raises(InputError, match=r"adapter loud: .*% of layers\..* saturate") as caught,
    ):
        build(plan_build(options(root, "refused", adapters=(root / "loud",))), Silent(), lambda folder: None)
    assert "--max-adapter-saturation" in str(caught.value.hint)
    assert not (root / "refused").exists()


def test_two_adapters_of_one_name_and_targets_without_adapters_are_refused_first(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_adapter(root / "elsewhere" / "first")
    with pytest.raises(UsageError, match="named first"):
        plan_build(options(root, "new", adapters=(root / "first", other)))
    plain = Target(name="npu", description="", backends=("tosa",), context=64, prefill_chunk=16)
    with pytest.raises(Unsupported, match="back end tosa takes no adapters"):
        check_adapting([plain])

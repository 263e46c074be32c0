"""A disk that fills up while a back end writes: one error that names the file and the remedy, and nothing is left."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import mobileicsa_export.tosa_compilers as compilers
import pytest
import torch
from full_disk import full_disk
from qnn_models import METADATA, htp_target
from tiny_frozen import target, tiny_frozen

from mobileicsa.core.spec import LayerSpec
from mobileicsa.core.target import Target
from mobileicsa.io.atomic import WriteFault
from mobileicsa.io.staging import Staging
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.backend import find_backend
from mobileicsa.program.frozen import build_decoder

INTEGER_ONLY = target(nonlinear="primitive")
# Back end, its target, the largest file in bytes, the file that is larger and written first.
FULL = [
    ("onnx", target(), 20_000, "model.onnx.data"),
    ("onnx", target(), 40_000, "encodings_0.6.1.json"),
    ("onnx", INTEGER_ONLY, 40_000, "model_prefill.onnx"),
    ("openvino", target(), 20_000, "model.onnx.data"),
    ("executorch", target(), 40_000, tempfile.gettempdir()),  # where ExecuTorch writes before
    ("tosa", INTEGER_ONLY, 20_000, "prefill-layers-00-00.tosa"),
    ("qnn-htp", htp_target(), 110_000, "prefill_ctx.onnx: it or its context binary"),
    ("qnn-htp", htp_target(), 40_000, "portable/model_prefill.onnx"),
]


def decoder_for(wanted: Target) -> Decoder:
    return build_decoder(tiny_frozen("w8a8", layers=(LayerSpec(),)), primitive=wanted.nonlinear == "primitive")


@pytest.mark.parametrize(("name", "wanted", "size", "file"), FULL, ids=[f"{row[0]}-{row[3]}" for row in FULL])
def test_fault_39_a_full_disk_is_named_with_its_file(
    tmp_path: Path, name: str, wanted: Target, size: int, file: str
) -> None:
    back_end = find_backend(name)
    if back_end.unavailable() is not None:
        pytest.skip(str(back_end.unavailable()))
    torch.set_num_threads(1)
    decoder = decoder_for(wanted)

    def write() -> None:
        with Staging(tmp_path / "out", "0123") as staging, full_disk(size):
            back_end.write(decoder, wanted, staging.folder / name, METADATA)

    with pytest.raises(WriteFault, match="cannot be written") as caught:
        write()
    assert caught.value.exit_code == 4
    assert file in caught.value.message.partition(" cannot be written")[0]
    assert "free some disk space" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_fault_39_a_program_that_does_not_fit_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executorch = pytest.importorskip("mobileicsa_export.executorch")
    if executorch.ExecutorchBackend().unavailable() is not None:
        pytest.skip(str(executorch.ExecutorchBackend().unavailable()))
    save = executorch._save

    def fills(*given: Any) -> None:
        with full_disk(40_000):
            save(*given)

    monkeypatch.setattr(executorch, "_save", fills)
    with pytest.raises(WriteFault, match=r"model\.pte: cannot be written"):
        executorch.ExecutorchBackend().write(decoder_for(target()), target(), tmp_path, METADATA)


@pytest.mark.parametrize(("name", "suffix"), [("onnx", ".onnx_adapter"), ("executorch", ".safetensors")])
def test_fault_39_an_adapter_that_does_not_fit_names_its_file(tmp_path: Path, name: str, suffix: str) -> None:
    back_end: Any = find_backend(name)
    if back_end.unavailable() is not None:
        pytest.skip(str(back_end.unavailable()))
    path = tmp_path / f"news{suffix}"
    with pytest.raises(WriteFault, match=rf"news\{suffix}: cannot be written"), full_disk(10_000):
        back_end.write_adapter({"factor": torch.zeros(50_000)}, path)


@pytest.mark.parametrize("words", ["OSError: [Errno 28] No space left on device", "Error writing to file"])
def test_fault_39_a_compiler_whose_scratch_folder_is_full_has_not_refused_the_shard(words: str) -> None:
    """Else the export would end well, with a shard that is said to have no NPU form."""
    with pytest.raises(WriteFault, match=f"cannot be written: {re.escape(words)}") as caught:
        compilers.run(["sh", "-c", f"echo '{words}' >&2; exit 1"])
    assert "TMPDIR" in str(caught.value.hint)

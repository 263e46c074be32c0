"""The contenders of a speed benchmark: what is made for each in the work folder, and how it is opened."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy.peers import torchao_8da4w
from mobileicsa.artifact import layout
from mobileicsa.artifact.exported import TARGET_FILE, export_artifact, target_json
from mobileicsa.artifact.model import FloatModel
from mobileicsa.core.errors import EnvironmentFault
from mobileicsa.core.plan import QuantPlan
from mobileicsa.core.target import Target
from mobileicsa.io.checkpoint import BUNDLED, bundled_file, open_checkpoint
from mobileicsa.io.json_file import read_json, write_json
from mobileicsa.program.backend import find_backend
from mobileicsa.program.targets import find_target

BACKENDS = ("onnx", "executorch")
# Of the ONNX folder: what our runtime reads, and what stock clients do.
OWN_FILES, CLIENTS_FILE = ("model.onnx", "model_prefill.onnx"), "model_dynamic.onnx"
GROUP = 32  # columns a scale, of 8da4w
BUILDER_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Setting:
    """What a whole benchmark is about. `artifacts`: finished ones by scheme; `libraries`: of llama.cpp, or None."""

    work: Path
    model: str
    artifacts: dict[str, Path]
    context: int
    threads: int
    libraries: Path | None

    @property
    def target(self) -> Target:
        return replace(find_target("host-cpu"), context=self.context)

    @property
    def plan(self) -> QuantPlan:
        folder = next(iter(self.artifacts.values()))
        return QuantPlan.from_json(read_json(folder / layout.PLAN, max_bytes=layout.MAX_JSON_BYTES), layout.PLAN)


@dataclass(frozen=True)
class Contender:
    """`files`: what its runtime reads. `scored`: has a perplexity of its own."""

    name: str
    kind: str
    settings: dict[str, Any]
    files: tuple[Path, ...]
    scored: bool = True

    @property
    def file_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


class Silent:
    def step(self, title: str, total: int) -> Callable[[], None]:
        return lambda: None


def ours(setting: Setting) -> list[Contender]:
    """Each artifact on each back end, exported again for this benchmark's context; and its ONNX file in genai."""
    made = []
    for scheme, artifact in setting.artifacts.items():
        exported = setting.work / f"ours-{scheme}"
        if not (exported / TARGET_FILE).is_file():
            export_artifact(artifact, setting.target, exported, Silent(), overwrite=True)
        common = {"artifact": str(artifact), "exported": str(exported), "threads": setting.threads}
        for backend in BACKENDS:
            made.append(
                Contender(
                    f"ours {scheme} {backend}",
                    "ours",
                    {**common, "backend": backend},
                    runtime_files(exported / backend, CLIENTS_FILE),
                )
            )
        made.append(_in_genai(f"ours {scheme} in genai", exported / "onnx", artifact, setting, scored=False))
    return made


def llama_cpp(setting: Setting) -> list[Contender]:
    from benchmarks.speed.llama_cpp import FILE_TYPES, quantize

    if setting.libraries is None:
        raise EnvironmentFault("no folder of llama.cpp's libraries was given")
    source = _gguf(setting.model)
    made = []
    for kind in FILE_TYPES:
        file = setting.work / f"llama-{kind}.gguf"
        if not file.is_file():
            part = file.with_suffix(".part")
            quantize(setting.libraries, source, part, kind)
            part.rename(file)
        settings = {**_text(setting), "libraries": str(setting.libraries), "file": str(file)}
        made.append(Contender(f"llama.cpp {kind}", "llama.cpp", settings, (file,)))
    return made


def genai_int4(setting: Setting) -> list[Contender]:
    """By onnxruntime-genai's own builder, from the same float model."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        raise EnvironmentFault("onnxruntime-genai is not installed: pip install 'mobileicsa[stock]'")
    folder = setting.work / "genai-int4"
    if not (folder / "genai_config.json").is_file():
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(_hf_folder(setting))]
        command += ["-o", str(folder), "-p", "int4", "-e", "cpu", "-c", str(setting.work / "cache")]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=BUILDER_TIMEOUT_S)
        if found.returncode:
            raise EnvironmentFault(f"its builder ended with code {found.returncode}: {_last_line(found.stderr)}")
    return [_in_genai("genai int4", folder, next(iter(setting.artifacts.values())), setting)]


def executorch_8da4w(setting: Setting) -> list[Contender]:
    """Dynamic 8-bit activations, 4-bit weights in groups, by torchao and XNNPACK; the cache is float32."""
    folder = setting.work / "executorch-8da4w"
    artifact = next(iter(setting.artifacts.values()))
    if not (folder / TARGET_FILE).is_file():
        model = FloatModel.from_pretrained(setting.model)
        torchao_8da4w(model, GROUP)
        spec = model.spec
        metadata = {"bos_id": spec.bos_id, "eos_ids": list(spec.eos_ids), "prefix_ids": [], "scheme": "8da4w"}
        find_backend("executorch").write(model.decoder, setting.target, folder / "executorch", metadata)
        write_json(folder / TARGET_FILE, target_json(setting.target))
    settings: dict[str, Any] = {"artifact": str(artifact), "exported": str(folder), "threads": setting.threads}
    settings |= {"backend": "executorch", "dtype": "float32"}
    return [Contender("executorch 8da4w", "ours", settings, runtime_files(folder / "executorch"))]


def torch_float(setting: Setting) -> list[Contender]:
    return [Contender("torch float32", "torch", {"model": setting.model, "threads": setting.threads}, ())]


GROUPS: dict[str, Callable[[Setting], list[Contender]]] = {
    "ours": ours,
    "llama.cpp": llama_cpp,
    "genai int4": genai_int4,
    "executorch 8da4w": executorch_8da4w,
    "torch float32": torch_float,
}


def prepare(setting: Setting, groups: list[str]) -> tuple[list[Contender], dict[str, str]]:
    """Contenders, and for each group that cannot take part the reason."""
    setting.work.mkdir(parents=True, exist_ok=True)
    found: list[Contender] = []
    skipped = {}
    for name in groups:
        try:
            found += GROUPS[name](setting)
        except Exception as error:  # whatever a peer's tool chain does: the others are measured
            skipped[name] = f"{type(error).__name__}: {error}"
    return found, skipped


def _text(setting: Setting) -> dict[str, Any]:
    artifact = next(iter(setting.artifacts.values()))
    tokens = {"tokenizer": str(artifact), "bos_id": setting.plan.spec.bos_id}
    return {**tokens, "context": setting.context, "threads": setting.threads}


def _in_genai(name: str, folder: Path, artifact: Path, setting: Setting, *, scored: bool = True) -> Contender:
    settings = {**_text(setting), "folder": str(folder), "tokenizer": str(artifact)}
    if not scored:
        settings["context"] = read_json(folder / "genai_config.json")["model"]["context_length"]
    return Contender(name, "genai", settings, runtime_files(folder, *() if scored else OWN_FILES), scored)


def runtime_files(folder: Path, *others: str) -> tuple[Path, ...]:
    """What a runtime reads there; `others` are for another client."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    return tuple(folder / name for name in layout.runtime_files(sizes) if name not in others)


def _gguf(model: str) -> Path:
    """The GGUF file of a model that is one: llama.cpp's formats are made from it."""
    path = bundled_file(model) if model in BUNDLED else Path(model)
    if path.suffix != ".gguf":
        raise EnvironmentFault(f"{model}: is not a GGUF file, and nothing here converts it to one")
    return path


def _hf_folder(setting: Setting) -> Path:
    """The float model as a Hugging Face folder, which the builder reads."""
    if Path(setting.model).is_dir():
        return Path(setting.model)
    folder = setting.work / "float"
    if not (folder / "config.json").is_file():
        from transformers import AutoModelForCausalLM

        file = _gguf(setting.model)
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype="float32")
        # It is float now; as it stands, transformers would refuse to save it.
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        open_checkpoint(setting.model).write_tokenizer(folder)
        model.save_pretrained(folder)
    return folder


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"

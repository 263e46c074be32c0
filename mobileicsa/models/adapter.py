"""A peft LoRA folder becomes the low-rank updates of a model's linears, checked against that model."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.io.hashing import sha256_file, sha256_parts
from mobileicsa.io.json_file import read_json
from mobileicsa.io.paths import inside
from mobileicsa.models.adapter_config import CONFIG_FILE, MERGE_HINT, AdapterConfig, check_known, read_config
from mobileicsa.models.adapter_tensors import TENSOR_FILE, read_factors, scaled
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.families import family_named
from mobileicsa.models.load import empty_weights
from mobileicsa.models.sources import LLAMA_LAYER, Source

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REMEDY = "save the adapter again with peft's save_pretrained, as a plain LoRA"
# An update with more than this share of its weight's own norm is no fine-tuning: a wrong scale, or broken numbers.
MAX_NORM_RATIO = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowRank:
    """W + up @ down: down (r, in), up (out, r), float32, the adapter's scale in `up`."""

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return int(self.up.shape[0]), int(self.down.shape[1])

    def product(self) -> Tensor:
        """(out, in) float32: what is added to the weight."""
        return self.up @ self.down

    def norm(self) -> float:
        """Frobenius norm of the product."""
        down, up = self.down.double(), self.up.double()
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())


@dataclass(frozen=True, kw_only=True)
class PeftAdapter:
    """An adapter as it was given. `updates`: by the checkpoint's own name of the linear, without `.weight`."""

    name: str
    sha256: str
    config: AdapterConfig
    updates: dict[str, LowRank]
    notes: tuple[str, ...]

    def canonical(self, spec: ModelSpec) -> dict[str, LowRank]:
        """Updates of the canonical float weights (see `FloatWeights`), by the linear's path in the decoder."""
        found = {}
        for name, source in _linears(spec).items():
            update = self.updates.get(source.names[0].removesuffix(".weight"))
            if update is None:
                continue
            up = update.up if source.rows is None else update.up[source.rows.start : source.rows.stop]
            scaled = name.endswith("attn.q_proj") and not spec.qk_norm
            found[name] = LowRank(update.down, up * spec.attention_scale if scaled else up)
        return found


def read_adapter(folder: Path, spec: ModelSpec) -> PeftAdapter:
    """A peft LoRA folder, of this model; InputError naming file, field or module, and a remedy."""
    try:
        return _read(folder, spec)
    except InputError as error:
        # Readers of JSON and of headers serve other files too, and know no remedy for this one.
        error.hint = error.hint or _REMEDY
        raise


def _read(folder: Path, spec: ModelSpec) -> PeftAdapter:
    name = folder.resolve().name
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", hint="give a folder that peft's save_pretrained wrote")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{folder}: {name[:80]!r} cannot name an adapter", hint="rename it: up to 64 of A-Z a-z 0-9 . _ -"
        )
    config_path, path = inside(folder, CONFIG_FILE), inside(folder, TENSOR_FILE)
    config = read_config(read_json(config_path), str(config_path))
    updates = _updates(path, config, spec)
    notes = []
    if not any(bool(update.up.any()) and bool(update.down.any()) for update in updates.values()):
        notes.append(f"{folder}: the adapter does nothing: lora_alpha or its tensors are 0")
    digest = sha256_parts((file.name, sha256_file(file)) for file in (config_path, path))
    return PeftAdapter(name=name, sha256=digest, config=config, updates=updates, notes=tuple(notes))


def check_norms(adapter: PeftAdapter, updates: Mapping[str, LowRank], norm_of: Callable[[str], float]) -> None:
    """InputError where an update outweighs its linear's own weight, whose norm `norm_of` gives."""
    for module, update in updates.items():
        found, own = update.norm(), norm_of(module)
        if found > MAX_NORM_RATIO * max(own, 1e-12):
            raise InputError(
                f"adapter {adapter.name}: {module}: the update has norm {found:.4g}, the weight itself {own:.4g}",
                hint=f"at most {MAX_NORM_RATIO:g} times the weight's is read: check lora_alpha and how it was trained",
            )


def check_base(adapter: PeftAdapter, model: str) -> str | None:
    """What to say where the adapter names another base than `model`; names prove nothing, shapes were checked."""
    ours, theirs = (
        re.sub(r"[^a-z0-9]", "", name.rstrip("/").rpartition("/")[2].lower())
        for name in (model, adapter.config.base_name)
    )
    if not theirs or ours in theirs or theirs in ours:
        return None
    return (
        f"{adapter.config.where}: base_model_name_or_path is {adapter.config.base_name[:80]!r}, the model here "
        f"{model[:80]!r}: an adapter of another model computes nonsense"
    )


def _updates(path: Path, config: AdapterConfig, spec: ModelSpec) -> dict[str, LowRank]:
    factors, shapes = read_factors(path), linear_shapes(spec)
    known = sorted({name.rpartition(".")[2] for name in (*shapes, *LLAMA_LAYER.values()) if name.endswith("proj")})
    for module in factors:
        if module not in shapes:
            raise InputError(
                f"{path}: module {module!r} is no linear of this model's layers",
                hint=f"{MERGE_HINT}; adapters are read of {', '.join(known)}",
            )
    check_known(config, list(factors), known)
    found = {}
    for module, (down, up) in factors.items():
        _check_shapes(path, module, config.rank_of(module), tuple(down.shape), tuple(up.shape), shapes[module])
        found[module] = LowRank(down, scaled(up, config, module))
    return found


def _check_shapes(
    path: Path, module: str, rank: int, down: tuple[int, ...], up: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    expected = (rank, weight[1]), (weight[0], rank)
    if (down, up) != expected:
        raise InputError(
            f"{path}: module {module} has lora_A {list(down)} and lora_B {list(up)}, rank {rank} on a weight of "
            f"{list(weight)} asks for {list(expected[0])} and {list(expected[1])}",
            hint="the adapter was trained for another model, or r and rank_pattern are another adapter's",
        )


def _linears(spec: ModelSpec) -> dict[str, Source]:
    """Where the weight of each linear of the layers comes from, by its canonical path."""
    sources = family_named(spec.model_type, "model spec").tensors(spec)
    named = {name.removesuffix(".weight"): source for name, source in sources.items() if name.endswith("_proj.weight")}
    return {name: source for name, source in named.items() if name.startswith("layers.")}


def linear_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shape (out, in) of every linear that can have an adapter, by the checkpoint's name of it."""
    with empty_weights():
        canonical = {name: tuple(value.shape) for name, value in Decoder(spec, primitive=False).state_dict().items()}
    return {
        source.names[0].removesuffix(".weight"): source.shape_of_each(canonical[f"{name}.weight"])
        for name, source in _linears(spec).items()
    }

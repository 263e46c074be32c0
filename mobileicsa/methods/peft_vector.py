"""`PeftVector`: LoRA weights by module, as one vector, as a peft adapter folder, and merged into a base.

What research methods make and compare; `models.adapter` reads the same folders against a model, for the route.

The folder is peft's own format: `adapter_config.json` with `rank_pattern` where ranks differ, and
`adapter_model.safetensors`. What multiplies an update (alpha / r, learned scales) is folded into B, and alpha equals
the rank in what is written, so that no reader can drop a factor.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mobileicsa.core.errors import InputError
from mobileicsa.io.atomic import write_tensors, writing
from mobileicsa.io.json_file import read_json, write_json
from mobileicsa.io.paths import inside
from mobileicsa.models.adapter import LowRank
from mobileicsa.models.adapter_config import CONFIG_FILE, read_config
from mobileicsa.models.adapter_tensors import TENSOR_FILE, read_factors, scaled

PREFIX = "base_model.model."
# The base that an adapter was made for; a file of its own, for peft warns of unknown keys in its configuration.
ORIGIN_FILE = "mobileicsa.json"
# Frobenius norm of one module's update above which an adapter is taken for damaged.
MAX_UPDATE_NORM = 1e6

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PeftVector:
    """Updates by the module's Hugging Face name ("model.layers.3.self_attn.q_proj"), and the base that they belong to.

    `base` is the name or folder of the base model; `base_identity` its `Checkpoint.identity`, "" if not known.
    Invariants: at least one module; names are sorted; ranks are at least 1, values finite.
    """

    updates: Mapping[str, LowRank]
    base: str = ""
    base_identity: str = ""

    def __post_init__(self) -> None:
        if not self.updates:
            raise InputError("adapter: holds no module", hint="give it a larger rank budget")
        object.__setattr__(self, "updates", {name: self.updates[name] for name in sorted(self.updates)})
        for name, update in self.updates.items():
            _check(name, update)

    @property
    def ranks(self) -> dict[str, int]:
        return {name: update.rank for name, update in self.updates.items()}

    @property
    def parameters(self) -> int:
        """Number of numbers in all updates."""
        return sum(tensor.numel() for _, tensor in self._tensors())

    def table(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of every tensor, in the order of `vector`."""
        return tuple((name, tuple(tensor.shape)) for name, tensor in self._tensors())

    def vector(self) -> Tensor:
        """All numbers (parameters,) float32, in the order of `table`."""
        return torch.cat([tensor.reshape(-1) for _, tensor in self._tensors()])

    def with_vector(self, vector: Tensor) -> PeftVector:
        """The same modules and ranks with the numbers of `vector` (parameters,); InputError for another length."""
        if vector.shape != (self.parameters,):
            raise InputError(f"adapter: a vector of shape {list(vector.shape)}, expected [{self.parameters}]")
        parts = iter(torch.split(vector.float(), [tensor.numel() for _, tensor in self._tensors()]))
        updates = {
            name: LowRank(next(parts).view_as(update.down), next(parts).view_as(update.up))
            for name, update in self.updates.items()
        }
        return PeftVector(updates=updates, base=self.base, base_identity=self.base_identity)

    def check_base(self, shapes: Mapping[str, tuple[int, int]], identity: str = "") -> None:
        """InputError unless every module is a linear of the base, of the same shape (out, in)."""
        if identity and self.base_identity and identity != self.base_identity:
            raise InputError(
                f"adapter: made for base {self.base_identity[:16]}, this one is {identity[:16]}",
                hint="give the base model that the adapter was trained on",
            )
        for name, update in self.updates.items():
            if name not in shapes:
                raise InputError(f"adapter: module {name!r} is no linear of the base", hint="is it for another model?")
            if update.shape != tuple(shapes[name]):
                raise InputError(
                    f"adapter: module {name!r} is for a weight {list(update.shape)}, the base has {list(shapes[name])}",
                    hint="is it for another model?",
                )

    def merge(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The base's weights (out, in) by module name, each plus its update where there is one; new tensors."""
        self.check_base({name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()})
        return {
            name: weight + self.updates[name].product().to(weight.dtype) if name in self.updates else weight.clone()
            for name, weight in weights.items()
        }

    def save(self, folder: Path) -> None:
        """Write a folder that stock peft loads; the configuration last."""
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / TENSOR_FILE, {f"{PREFIX}{name}.weight": tensor for name, tensor in self._tensors()})
        write_json(folder / ORIGIN_FILE, {"base": self.base, "base_identity": self.base_identity})
        common = Counter(self.ranks.values()).most_common(1)[0][0]
        others = {name: rank for name, rank in self.ranks.items() if rank != common}
        write_json(folder / CONFIG_FILE, _config(self, common, others))

    @classmethod
    def load(cls, folder: Path) -> PeftVector:
        """Read a LoRA folder written here or by peft, its factors folded into B.

        Raises InputError for anything but plain LoRA on linears, for a pickle, for NaN, a huge norm, rank 0, shapes
        that contradict each other or the configuration, and for tensors that are no factor.
        """
        where = inside(folder, CONFIG_FILE)
        config = read_config(read_json(where), str(where))
        updates: dict[str, LowRank] = {}
        for name, (a, b) in read_factors(inside(folder, TENSOR_FILE)).items():
            if config.rank_of(name) != a.shape[0]:
                raise InputError(
                    f"{folder}: module {name!r} has rank {a.shape[0]}, {CONFIG_FILE} says {config.rank_of(name)}",
                    hint="config and tensors belong to two adapters: save it again",
                )
            if config.scale_of(name) == 0:
                log.warning("%s: alpha is 0 for module %r: the adapter does nothing there", folder, name)
            updates[name] = LowRank(a, scaled(b, config, name))
        origin = read_json(folder / ORIGIN_FILE) if (folder / ORIGIN_FILE).exists() else {}
        identity = origin.get("base_identity", "")
        return cls(updates=updates, base=config.base_name, base_identity=identity if isinstance(identity, str) else "")

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, update in self.updates.items():
            yield f"{name}.lora_A", update.down
            yield f"{name}.lora_B", update.up


def _config(adapter: PeftVector, rank: int, others: Mapping[str, int]) -> dict[str, Any]:
    """peft's configuration: `rank` where `others` says nothing, alpha equal to it everywhere."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "target_modules": list(adapter.updates),
        "rank_pattern": dict(others),
        "alpha_pattern": dict(others),
    }


def _check(name: str, update: LowRank) -> None:
    where, a, b = f"adapter: module {name!r}", update.down, update.up
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise InputError(f"{where}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit together")
    if update.rank < 1:
        raise InputError(f"{where}: rank 0", hint="leave the module out of the adapter")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise InputError(f"{where}: holds NaN or infinity", hint="the adapter is damaged; train or copy it again")
    norm = float(a.double().norm() * b.double().norm())
    if norm > MAX_UPDATE_NORM:
        raise InputError(
            f"{where}: an update of norm up to {norm:.3g}, the limit is {MAX_UPDATE_NORM:g}",
            hint="did its training diverge?",
        )

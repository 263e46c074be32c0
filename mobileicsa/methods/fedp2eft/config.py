"""Sizes of a FedP2EFT run; the defaults are the paper's constants, on the data and the model that are at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from mobileicsa.core.errors import InputError
from mobileicsa.methods.base import RunConfig
from mobileicsa.methods.fedp2eft.texts import PUD_LANGUAGES, XCOPA_LANGUAGES, Parts

Variant = Literal[
    "fedp2eft", "uniform", "random", "adalora", "bayestune", "unit_scales", "learned_scales", "mean_scale"
]
Stage1 = Literal["factor", "local_rate", "scale_rate", "scale_epsilon", "start_scale", "sparsity"]


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """One run.

    - `base`: any model that `quantize --model` takes; `adapted_layers`: its last blocks, which get adapters;
    - `languages`: of the seen and the unseen clients (PUD); `new_languages`: of clients of other text (XCOPA);
    - `length`: tokens of a window; `train`, `validation`, `test`: windows of a client; `batch`: windows of a step;
    - `rank`: the largest rank of a module; `budgets`: uniform ranks r whose parameter counts are the budgets;
    - `rounds`, `per_round`: of the federation; `local_steps`, `factor` (alpha / r), `local_rate`, `scale_rate`: stage 1
      on a client; `scale_epsilon`: what Adam adds to the root of a scale's squared gradient;
    - `alone`: (setting, value) of stage 1 of a client that learns its scales alone, where they differ;
    - `generator_steps`, `generator_rate`: stage 2;
    - `start_scale`: what all scales are before the first round;
    - `significance`, `sparsity`: weights of the two parts of the prior;
    - `keep_scales`: whether kept ranks are multiplied by their scales, or are plain LoRA's;
    - `steps`, `rate`: of the personal fine-tune at alpha / r = `factor`; `tuned`: (variant, budget, alpha / r, rate) in
      their place. Each fine-tune is done `repeats` times, with other batches, and its losses averaged;
    - `scored`: the test text of every pool, or the validation text of the seen clients in the place of each pool.
    """

    base: str = "smollm2-135m"
    device: Literal["cpu", "cuda"] = "cpu"
    adapted_layers: int = 30
    languages: tuple[str, ...] = PUD_LANGUAGES
    new_languages: tuple[str, ...] = XCOPA_LANGUAGES
    length: int = 64
    train: int = 100
    validation: int = 16
    test: int = 50
    batch: int = 32
    rank: int = 16
    budgets: tuple[int, ...] = (2, 4, 8)
    factor: float = 2.0
    rounds: int = 150
    per_round: int = 3
    local_steps: int = 8
    local_rate: float = 1e-4
    scale_rate: float = 1e-2
    scale_epsilon: float = 1e-8
    alone: tuple[tuple[Stage1, float], ...] = ()
    start_scale: float = 1e-4
    generator_steps: int = 10
    generator_rate: float = 1e-4
    significance: float = 100.0
    sparsity: float = 0.01
    keep_scales: bool = True
    steps: int = 8
    rate: float = 1e-4
    tuned: tuple[tuple[Variant, int, float, float], ...] = (("adalora", 2, 2.0, 1e-3),)
    repeats: int = 1
    scored: Literal["test", "validation"] = "test"

    def __post_init__(self) -> None:
        for name in ("length", "train", "validation", "test", "batch", "rank", "per_round", "steps", "repeats"):
            if getattr(self, name) < 1:
                raise InputError(f"fedp2eft: {name} is {getattr(self, name)}, must be at least 1")
        for name in ("rounds", "local_steps", "generator_steps"):
            if getattr(self, name) < 0:
                raise InputError(f"fedp2eft: {name} is {getattr(self, name)}, must be at least 0")
        if not self.budgets or not all(1 <= budget <= self.rank for budget in self.budgets):
            raise InputError(f"fedp2eft: budgets {list(self.budgets)} must lie within 1 and rank {self.rank}")
        tuned = [value for _, _, *values in self.tuned for value in values]
        own = [value for name, value in self.alone if name != "sparsity"]
        if not all(0 < value < math.inf for value in (self.rate, self.factor, *tuned, *own)):
            raise InputError("fedp2eft: rate, factor and those of tuned and alone must be positive numbers")
        for name, keys in (("tuned", [line[:2] for line in self.tuned]), ("alone", [line[0] for line in self.alone])):
            if len(set(keys)) < len(keys):
                raise InputError(f"fedp2eft: {name} has two lines of one kind")
        for name, known in (("languages", PUD_LANGUAGES), ("new_languages", XCOPA_LANGUAGES)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise InputError(f"fedp2eft: {name}: {', '.join(unknown)} unknown", hint=f"known: {', '.join(known)}")
        if not self.languages:
            raise InputError("fedp2eft: languages is empty")

    @property
    def parts(self) -> Parts:
        return Parts(train=self.train, validation=self.validation, test=self.test)

    def fine_tuning(self, variant: str, budget: int) -> tuple[float, float]:
        """(alpha / r, rate) of a variant's fine-tune."""
        found = (values for name, rank, *values in self.tuned if (name, rank) == (variant, budget))
        factor, rate = next(found, (self.factor, self.rate))
        return factor, rate

    def by_itself(self) -> Config:
        """With stage 1 as it is on a client that learns its scales alone."""
        changes: dict[str, Any] = dict(self.alone)
        return replace(self, **changes)

    @property
    def clients(self) -> list[str]:
        """pool:language of every client."""
        pools = {"seen": self.languages, "unseen": self.languages, "new": self.new_languages}
        return [f"{pool}:{language}" for pool, languages in pools.items() for language in languages]


# The paper's start at the scales' floor makes the prior millions of times the cross entropy, and all scales grow alike
# for hundreds of rounds, whatever the text. So few rounds start well above it, with a prior that pulls less than the
# cross entropy does on most ranks, and with an epsilon by which a scale grows by how much its rank matters: without one
# Adam moves all scales at one pace. Alpha / r is so large that the best rates leave A near its start; at the paper's 2
# they write it anew, and with it what was learned of a rank. At larger `local_rate` LoRA of all ranks overshoots, and
# the scales of the modules that matter most are turned down; in the longer stage 1 of a client alone they are so
# at this one already.
# Chosen on the seen clients' validation text with seeds of their own (benchmarks/LOG.md). `tuned`: every variant had as
# many tries, six at rank 2 and eight at rank 8, with seed 100, two of the best again with seed 101; the control four.
# Two blocks over cached states: a step of 64 tokens costs some 20 ms of one core.
SMALL = Config(
    adapted_layers=2,
    new_languages=("et", "sw", "th", "vi"),
    length=16,
    train=32,
    validation=144,
    test=96,
    batch=4,
    budgets=(2, 8),
    rounds=15,
    local_steps=12,
    factor=32.0,
    local_rate=1e-4,
    scale_rate=5e-2,
    scale_epsilon=5e-4,
    alone=(("local_rate", 1e-5), ("scale_rate", 0.5), ("scale_epsilon", 1e-3), ("sparsity", 5e-6)),
    start_scale=0.1,
    generator_steps=20,
    significance=1e-4,
    sparsity=5e-5,
    keep_scales=False,
    steps=12,
    rate=1e-3,
    tuned=(
        ("fedp2eft", 2, 32.0, 1.6e-3),
        ("uniform", 2, 32.0, 1.6e-3),
        ("random", 2, 32.0, 2.5e-3),
        ("adalora", 2, 0.5, 6e-2),
        ("bayestune", 2, 32.0, 1.6e-3),
        ("learned_scales", 2, 8.0, 2.5e-3),
        ("fedp2eft", 8, 128.0, 2.5e-4),
        ("uniform", 8, 128.0, 4e-4),
    ),
    repeats=2,
)
SMOKE = replace(
    SMALL,
    seeds=1,
    adapted_layers=1,
    languages=("de", "hi"),
    new_languages=("vi",),
    length=12,
    train=6,
    validation=2,
    test=4,
    batch=2,
    rank=4,
    budgets=(1, 2),
    rounds=2,
    per_round=2,
    local_steps=2,
    generator_steps=10,
    generator_rate=1e-3,
    steps=2,
    rate=3e-3,
    tuned=(("adalora", 1, 32.0, 3e-2),),
    repeats=1,
)
SIZES: Mapping[str, Config] = {"smoke": SMOKE, "small": SMALL, "full": Config()}

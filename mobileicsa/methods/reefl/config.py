"""ReeFL's settings: the class's defaults are the paper's, small and smoke are for two cores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mobileicsa.methods.base import RunConfig

Task = Literal["cifar10", "fsdd", "cifar100", "speech_commands"]
Baseline = Literal["depthfl", "inclusivefl", "scalefl", "exclusivefl", "no-distillation", "no-modulation"]
BASELINES: tuple[Baseline, ...] = (
    "depthfl",
    "inclusivefl",
    "scalefl",
    "exclusivefl",
    "no-distillation",
    "no-modulation",
)
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=100.0)]


@dataclass(frozen=True, kw_only=True)
class ReeflConfig(RunConfig):
    """Each task is run by itself with the same settings.

    - `regime`: what learns beside the exits: nothing ("frozen"), LoRA on q and v, or all ("full");
    - `side`: inputs are resized to it; None: as they are. `patch`: None: the task's own;
    - `start`: folder of a ViT (transformers' format) for the backbone; None: it learns for `start_steps` on a part of
      the training data (`start_share`, whole speakers where there are any) that no client holds;
    - `per_class`: at most so many training examples of a class;
    - `local_steps`: of a client's round, over its data again where it is short; None: one pass;
    - `optimizer`: of a client's round, begun anew each time; `lr` falls to `end_lr` over the rounds;
    - `rates`: (baseline, its first rate in the place of `lr`), so that rivals are tuned too; they fall alike;
    - `held_out`: share of each client's examples that it does not train on; `scored`: these, or the test split;
    - `ramp`: rounds until distillation has its full weight; `teacher_keep`: of the moving mean that picks the teacher.
    """

    tasks: tuple[Task, ...] = ("cifar100", "speech_commands")
    baselines: tuple[Baseline, ...] = BASELINES
    regime: Literal["frozen", "lora", "full"] = "frozen"
    dim: Positive = 384
    blocks: Positive = 12
    heads: Positive = 6
    exits: Positive = 4
    side: Positive | None = 224
    patch: Positive | None = 16
    start: Path | None = None
    start_share: Share = 0.0
    start_steps: Annotated[int, Field(ge=0)] = 0
    start_lr: Rate = 1e-3
    per_class: Positive | None = None
    clients: Positive = 100
    per_round: Positive = 10
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0
    held_out: Share = 0.1
    scored: Literal["test", "held_out"] = "test"
    rounds: Positive = 1000
    local_steps: Positive | None = None
    batch: Positive = 32
    lr: Rate = 0.05
    end_lr: Rate = 0.001
    rates: tuple[tuple[Baseline, Rate], ...] = ()
    clip_value: Rate = 1.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    ramp: Positive = 300
    teacher_keep: Share = 0.8
    lora_rank: Positive = 32
    lora_alpha: Rate = 64.0

    def tuned(self, variant: str) -> ReeflConfig:
        """With this variant's own first rate, if it has one, and a last rate in proportion."""
        lr = dict[str, float](self.rates).get(variant, self.lr)
        return replace(self, lr=lr, end_lr=self.end_lr * lr / self.lr)


FULL = ReeflConfig()
SMALL = ReeflConfig(
    tasks=("cifar10", "fsdd"),
    regime="frozen",
    dim=64,
    blocks=8,
    heads=4,
    side=None,
    patch=8,
    start_share=0.5,
    start_steps=800,
    clients=20,
    per_round=5,
    rounds=200,
    local_steps=2,
    batch=16,
    ramp=60,
    optimizer="adam",
    lr=0.004,
    end_lr=0.0004,
    rates=(("depthfl", 0.05), ("inclusivefl", 0.05), ("scalefl", 0.05), ("exclusivefl", 0.05)),
    lora_rank=8,
    lora_alpha=16.0,
)
SMOKE = ReeflConfig(
    tasks=("cifar10", "fsdd"),
    regime="frozen",
    dim=16,
    blocks=4,
    heads=2,
    exits=4,
    side=None,
    patch=8,
    start_share=0.5,
    start_steps=4,
    per_class=20,
    clients=4,
    per_round=4,
    rounds=2,
    local_steps=2,
    ramp=1,
    optimizer="adam",
    lr=0.003,
    end_lr=0.0005,
    seeds=1,
    lora_rank=2,
    lora_alpha=4.0,
)
SIZES = {"smoke": SMOKE, "small": SMALL, "full": FULL}

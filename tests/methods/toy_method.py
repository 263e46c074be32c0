"""A method that trains nothing: what the runner needs, with numbers known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mobileicsa.io.staging import Staging
from mobileicsa.methods.base import Plan, RunConfig, Step, Tick, Trial
from mobileicsa.methods.result import Metrics, Verdict, judge_above


@dataclass(frozen=True, kw_only=True)
class ToyConfig(RunConfig):
    gain: float = 0.5
    rates: tuple[float, ...] = (0.1,)


@dataclass
class Toy:
    """Scores gain + seed / 100, its baseline seed / 100; `ran` lists what was run, `fail_at` fails once there."""

    name: str = "toy"
    ran: list[tuple[str, int]] = field(default_factory=list)
    fail_at: tuple[str, int] | None = None
    sizes: Mapping[str, ToyConfig] = field(
        default_factory=lambda: {"smoke": ToyConfig(seeds=1), "small": ToyConfig(), "full": ToyConfig(seeds=5)}
    )

    def check(self, config: ToyConfig) -> str:
        return "nothing read"

    def plan(self, config: ToyConfig) -> Plan:
        return Plan(
            prepare=Step(name="prepare", ticks=1), variants=(Step(name="toy", ticks=2), Step(name="zero", ticks=2))
        )

    def prepare(self, config: ToyConfig, seed: int, tick: Tick) -> Mapping[str, Tensor]:
        self.ran.append(("prepare", seed))
        return {"start": torch.tensor([seed / 100])}

    def run(self, config: ToyConfig, variant: str, seed: int, shared: Mapping[str, Tensor], tick: Tick) -> Trial:
        if self.fail_at == (variant, seed):
            self.fail_at = None
            raise KeyboardInterrupt
        self.ran.append((variant, seed))
        score = float(shared["start"]) + (config.gain if variant == "toy" else 0.0)
        return Trial(metrics={"score": score, "score_at_2": score}, tensors={"weight": shared["start"]}, notes={"n": 1})

    def judge(self, config: ToyConfig, table: Mapping[str, Metrics]) -> Verdict:
        return judge_above("toy scores above zero", "score", table["toy"], {"zero": table["zero"]})

    def write(self, config: ToyConfig, trials: Mapping[str, Sequence[Trial]], staging: Staging) -> Mapping[str, str]:
        staging.write_tensors("model/weights.safetensors", trials["toy"][0].tensors)
        return {"model": "model"}


METHOD: Any = Toy()

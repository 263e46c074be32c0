"""What a training run is asked for: size of the model, seed, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass

from mobileicsa.core.errors import UsageError

WINDOW = 256
BATCH = 8
HEAD_DIM = 64
# A fixed prefix and BOS come before a window of text, and targets hold 512 positions.
CONTEXT = 2 * WINDOW


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One of `minutes` and `steps` is the limit. A step is BATCH windows of WINDOW tokens.

    `hidden` is a multiple of 128: heads of 64, two to a key/value head. The defaults make 5.5 million parameters; one
    core with bfloat16 products trained them at 2,600 to 3,200 tokens a second, with other work beside it.
    """

    minutes: float | None = 25
    steps: int | None = None
    seed: int = 0
    hidden: int = 256
    layers: int = 6
    vocab: int = 4096

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give minutes or steps")
        if self.minutes is not None and not self.minutes > 0:
            raise UsageError(f"--minutes {self.minutes:g}: must be above 0")
        for name, least in (("steps", 1), ("seed", 0), ("layers", 1), ("vocab", 260)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"--{name} {value}: must be at least {least}")
        if self.hidden < 2 * HEAD_DIM or self.hidden % (2 * HEAD_DIM):
            raise UsageError(f"--hidden {self.hidden}: must be a multiple of {2 * HEAD_DIM}")

    @property
    def inner(self) -> int:
        """Inner size of the MLP: 8/3 of hidden, up to the next multiple of 64."""
        return -(-8 * self.hidden // 3 // 64) * 64

    @property
    def total(self) -> int:
        """Length of the run in `unit`s."""
        if self.minutes is not None:
            return max(round(60 * self.minutes), 1)
        assert self.steps is not None
        return self.steps

    @property
    def unit(self) -> str:
        return "steps" if self.minutes is None else "seconds"

    def share(self, steps: int, seconds: float) -> float:
        """Part of the run that is done, 1 and more when it is over."""
        return (steps if self.minutes is None else seconds) / self.total

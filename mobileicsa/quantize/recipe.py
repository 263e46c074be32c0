"""Recipes: what a quantisation run does, as a small YAML file; the resolved recipe is kept in the artifact."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mobileicsa.core.errors import InputError, SchemeError, UsageError
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.io.atomic import write_bytes

MAX_RECIPE_BYTES = 64 * 1024


class Calibration(BaseModel):
    """How much text, and of what length (tokens, BOS included).

    Learning stages see `learning_samples` windows, of which the first `samples` are those that all else sees. Where the
    user gives a text, the model still writes the share `written` of them, and what a short text lacks. The share
    `spread` of all windows stands somewhere further on in the context than right behind the prefix; "auto" is what the
    scheme needs (see `stages_for`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    samples: int = Field(default=32, ge=1, le=65536)
    learning_samples: int = Field(default=0, ge=0, le=65536)
    length: int = Field(default=256, ge=2, le=32768)
    written: float = Field(default=0.0, ge=0.0, lt=1.0, exclude_if=lambda share: share == 0.0)
    spread: float | Literal["auto"] = Field(default=0.0, exclude_if=lambda share: share == 0.0)

    @field_validator("spread", mode="before")
    @classmethod
    def _share_or_auto(cls, value: Any) -> Any:
        """What once was `true` is no share of 1."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value != "auto" and not (number and 0.0 <= value <= 1.0):
            raise ValueError(f"{value!r} is no share from 0 to 1, nor auto")
        return value

    def share(self) -> float:
        """`spread` of a recipe that `stages_for` made."""
        if self.spread == "auto":
            raise ValueError("spread: auto is for stages_for to decide")
        return self.spread


class Learning(BaseModel):
    """One learning stage on the calibration windows, after the model is quantised. A rate of 0 leaves that part alone.

    - scope: "block" (one decoder block after another, each towards the float block's output, as OmniQuant and
      EfficientQAT) or "model" (end to end, as MobileQuant); `steps` are those of one block or of the model;
    - loss of scope "model": "hidden" (squared error of the last block's output, MobileQuant's) or "logits" (KL to the
      float model's most likely tokens); a block's is its output's squared error;
    - weights: "scale" (integers stay, their scales learn), "clip" (MobileQuant's: round to nearest in a learned range)
      or "latent" (real-valued weights learn and are rounded in every pass);
    - lr_*: AdamW's peak rate for ranges (log), weight scales (log) or clips (logit), latent weights (in steps of their
      own grid), norm gains, equivalent scalings (log), the prefix's keys and values;
    - save_memory: with scope "model", blocks are computed again for their gradient (a third more time).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    scope: Literal["block", "model"] = "model"
    steps: int = Field(default=128, ge=1, le=1_000_000)
    batch: int = Field(default=1, ge=1, le=64)
    loss: Literal["hidden", "logits"] = "logits"
    weights: Literal["scale", "clip", "latent"] = "scale"
    lr_ranges: float = Field(default=0.0, ge=0.0, le=1.0)
    lr_scales: float = Field(default=0.0, ge=0.0, le=1.0)
    lr_weights: float = Field(default=0.0, ge=0.0, le=1.0)
    lr_gains: float = Field(default=0.0, ge=0.0, le=1.0)
    lr_equivalent: float = Field(default=0.0, ge=0.0, le=1.0)
    lr_prefix: float = Field(default=0.0, ge=0.0, le=1.0)
    save_memory: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Learning:
        if self.weights == "scale" and self.lr_equivalent:
            raise ValueError(
                "lr_equivalent moves columns, which integers that stay cannot follow: weights clip or latent"
            )
        if self.weights != "latent" and self.lr_weights:
            raise ValueError("lr_weights needs weights: latent")
        return self


class Recipe(BaseModel):
    """One quantisation run. Unknown keys are errors.

    - prefix_tokens: most tokens that the sink-prefix search may fix after BOS; 0 fixes none, not even BOS;
    - rotation: "hadamard" folds rotations of the residual stream and of each head's values into the weights; "learned"
      turns these to where rounding is expected to cost least, behind the prefix (as SpinQuant, by another loss);
    - smoothing: "off", "fixed" (first alpha at every norm, as SmoothQuant) or "search" (per site by output error);
    - ranges: "minmax", or "mse" (8-bit edges shrink to the least error on a sample);
    - weights: "nearest", "clip" (activation-aware clip before rounding), or "gptq" (that, and error feedback on the
      inputs that the quantised model has, for weights of less than 8 bits);
    - codes of 4-bit weights: "narrow" (-7 to 7), or "full" (-8 to 7), which not every target takes;
    - learn: learning stages after that, in order;
    - asymmetric: with "gptq", how far weights move to make up for those inputs' own error (0 GPTQ, 1 least squares);
    - headroom: by what 8-bit activation ranges are widened once found (1: not), for massive tokens of unseen text; all
      other values round as much more coarsely;
    - bias_correction: after learning, each linear's mean output error on the calibration windows goes into its bias.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1, max_length=64)
    description: str = ""
    prefix_tokens: int = Field(default=0, ge=0, le=16)
    rotation: Literal["off", "hadamard", "learned"] = "off"
    smoothing: Literal["off", "fixed", "search"] = "off"
    alphas: tuple[Annotated[float, Field(ge=0.0, le=1.0)], ...] = Field(default=(0.5,), min_length=1, max_length=64)
    ranges: Literal["minmax", "mse"] = "minmax"
    weights: Literal["nearest", "clip", "gptq"] = "nearest"
    asymmetric: float = Field(default=0.0, ge=0.0, le=1.0)
    # Three that are not kept where they are off: runs from before there was a choice keep their identity.
    codes: Literal["narrow", "full"] = Field(default="narrow", exclude_if=lambda codes: codes == "narrow")
    headroom: float = Field(default=1.0, ge=1.0, le=2.0, exclude_if=lambda factor: factor == 1.0)
    bias_correction: bool = Field(default=False, exclude_if=lambda on: not on)
    calibration: Calibration = Calibration()
    learn: tuple[Learning, ...] = Field(default=(), max_length=8)

    @field_validator("rotation", "smoothing", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML reads a bare off as false."""
        return "off" if value is False else value


def windows_of(recipe: Recipe) -> int:
    """How many calibration windows a run needs."""
    amount = recipe.calibration
    return max(amount.samples, amount.learning_samples if recipe.learn else 0)


def from_text(recipe: Recipe) -> int:
    """How many of these the user's text gives, if there is one: at least one."""
    return max(1, round(windows_of(recipe) * (1.0 - recipe.calibration.written)))


# At 8 bits the loss to learn away is a quarter of that at 4 bits: what learns must move less, but for ranges, which
# start as far away (SmolLM2, 128 steps: KL 0.044 -> 0.033 with these).
RATES_AT_8_BITS = {"lr_scales": 0.25, "lr_gains": 0.25, "lr_prefix": 0.25}
# 4-bit weights learn what fits the positions they see: of SmolLM2, from the first 256 alone, 0.02 nats more are lost
# at position 1,750 than at 0; from windows of which half stand further on, none (0.0027 +- 0.0024 nats a doubling up
# to 2,048; a quarter of them: 0.0064 +- 0.0025). At 8 bits loss does not depend on the position (0.0007 +- 0.0014).
SPREAD_AT_4_BITS = 0.5


def stages_for(recipe: Recipe, scheme: QuantScheme) -> Recipe:
    """The recipe as a scheme runs it: at 8 bits latent weights do not learn, for their rounding costs next to
    nothing there (SmolLM2's blocks: error 0.0064 before, 0.0063 after, in eight minutes), and the rest but ranges
    learns in smaller steps; nor do they get one more code. Windows are spread of themselves at 4 bits only."""
    eight = scheme.weight_bits >= 8
    if recipe.calibration.spread == "auto":
        amount = recipe.calibration.model_copy(update={"spread": 0.0 if eight else SPREAD_AT_4_BITS})
        recipe = recipe.model_copy(update={"calibration": amount})
    if not eight:
        return recipe
    stages = (stage for stage in recipe.learn if stage.weights != "latent")
    return recipe.model_copy(update={"learn": tuple(_smaller_steps(stage) for stage in stages), "codes": "narrow"})


def codes_for(scheme: QuantScheme, recipe: Recipe) -> QuantScheme:
    """The scheme with the codes of a recipe that `stages_for` made for it."""
    return replace(scheme, narrow_weights=recipe.codes == "narrow")


def _smaller_steps(stage: Learning) -> Learning:
    return stage.model_copy(update={rate: getattr(stage, rate) * by for rate, by in RATES_AT_8_BITS.items()})


_SECTIONS: dict[str, type[BaseModel]] = {"calibration": Calibration, "learn": Learning}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for a file
        return False


def bundled_recipes() -> list[str]:
    folder = files("mobileicsa") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A bundled recipe by name, or a YAML file; `overrides` are key=value (dots reach inside, values are YAML)."""
    if name in bundled_recipes():
        text, where = (files("mobileicsa") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"), f"recipe {name}"
    else:
        path = Path(name)
        if not _is_file(path):
            near = difflib.get_close_matches(name, bundled_recipes(), n=1)
            raise InputError(
                f"--recipe {name}: neither a bundled recipe ({', '.join(bundled_recipes())}) nor a file",
                hint=f"did you mean {near[0]}?" if near else None,
            )
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise InputError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes, not a recipe")
        try:
            text, where = path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 at byte {error.start}") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-99-99
        raise InputError(f"{where}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{where}: must be a mapping of recipe fields")
    data.setdefault("name", Path(name).stem)
    for override in overrides:
        _override(data, override)
    return _validated(data, where)


def _override(data: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise SchemeError(f"recipe override {override!r}: must be key=value")
    *parents, leaf = key.split(".")
    place: Any = data
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else place[_position(place, parent, override)]
    at: str | int = leaf if isinstance(place, dict) else _position(place, leaf, override)
    try:
        place[at] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SchemeError(f"recipe override {override!r}: {error}") from error


def _position(place: Any, number: str, override: str) -> int:
    """Which entry of a list an override means, counted from 0."""
    if not isinstance(place, list):
        raise SchemeError(f"recipe override {override!r}: nothing is inside of {place!r}")
    if not number.isdecimal() or int(number) >= len(place):
        raise SchemeError(f"recipe override {override!r}: no entry {number!r}; there are {len(place)}, from 0")
    return int(number)


def _validated(data: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe(**data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        model = _SECTIONS.get(str(first["loc"][0]), Recipe) if first["loc"] else Recipe
        near = difflib.get_close_matches(str(first["loc"][-1]), list(model.model_fields), n=1)
        hint = f"did you mean {near[0]}?" if near and first["type"] == "extra_forbidden" else None
        raise SchemeError(f"{where}: field {field}: {first['msg']}", hint=hint) from error
    except TypeError as error:
        raise SchemeError(f"{where}: {error}") from error


def copy_recipe(name: str, destination: Path) -> None:
    """Copy a bundled recipe's text to a new file."""
    load_recipe(name)
    if destination.exists():
        raise UsageError(f"{destination}: exists", hint="choose another file name")
    text = (files("mobileicsa") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    write_bytes(destination, text.encode())

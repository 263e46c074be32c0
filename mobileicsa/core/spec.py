"""`ModelSpec`: everything that distinguishes one decoder family from another, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from mobileicsa.core.errors import InputError

Norm = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary embedding: one inverse frequency (radians per position) for each rotated pair.

    Invariants: 2 * len(inv_freq) is the number of rotated dimensions of a head (the first ones);
    `attention_factor` multiplies cos and sin (YaRN, LongRoPE), 1 otherwise.
    """

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """What may differ from layer to layer: index into `ModelSpec.ropes` (None = NoPE) and the window."""

    rope: int | None = 0
    sliding_window: int | None = None


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A causal decoder. Shapes follow from these fields alone.

    Invariants: num_heads is a multiple of num_kv_heads; len(layers) > 0; every `layers[i].rope`
    indexes `ropes`. Canonical weights already hold family quirks such as Gemma's gain offset of 1.

    - qk_norm: "head" normalises each head of q and k, "per_head" too but with a gain for each head (StableLM),
      "full" the whole projection (OLMo 2), None neither;
    - pre_norm / post_norm: norms before, and on the output of, attention and MLP (Gemma has both, OLMo 2 only post);
    - parallel_residual: attention and MLP read the same norm's output (StableLM option);
    - attention_scale multiplies q·k; attention_softcap / logit_softcap c mean c * tanh(x / c);
    - embed_scale multiplies embedding rows (Gemma: sqrt(hidden_size));
    - head_mix: a square linear between the last norm and the head (a rotated model with a tied head has one).
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    norm: Norm = "rms"
    norm_eps: float = 1e-6
    norm_bias: bool = False
    activation: Activation = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["head", "per_head", "full"] | None = None
    pre_norm: bool = True
    post_norm: bool = False
    parallel_residual: bool = False
    attention_scale: float
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embed_scale: float = 1.0
    tied_head: bool = True
    head_bias: bool = False
    head_mix: bool = False
    max_context: int = 2048
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"model: {name} must be at least 1, is {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise InputError(f"model: num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if not self.layers:
            raise InputError("model: num_hidden_layers must be at least 1")
        for layer in self.layers:
            if layer.rope is not None and not 0 <= layer.rope < len(self.ropes):
                raise InputError(f"model: layer names rope {layer.rope} of {len(self.ropes)}")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def decoder_weight_count(self) -> int:
        """Number of linear weights inside decoder layers (no embedding, no head, no norms)."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelSpec:
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise InputError(f"model spec: unknown fields {unknown}", hint="made by a newer mobileicsa?")
        try:
            values = dict(data)
            values["layers"] = tuple(LayerSpec(**layer) for layer in data["layers"])
            values["ropes"] = tuple(
                RopeSpec(inv_freq=tuple(r["inv_freq"]), attention_factor=r["attention_factor"]) for r in data["ropes"]
            )
            values["eos_ids"] = tuple(data.get("eos_ids", ()))
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise InputError(f"model spec: malformed: {error}") from error

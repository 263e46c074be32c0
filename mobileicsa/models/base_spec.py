"""The fields that every family shares, read into a `ModelSpec` that a family then adjusts."""

from __future__ import annotations

from mobileicsa.core.spec import Activation, LayerSpec, ModelSpec
from mobileicsa.models.config_reader import (
    MAX_CONTEXT,
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_HIDDEN,
    MAX_INNER,
    MAX_LAYERS,
    MAX_VOCAB,
    ConfigReader,
)
from mobileicsa.models.rope import read_rope

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def base_spec(
    reader: ConfigReader,
    *,
    model_type: str,
    tied: bool = False,
    head_dim: int | None = None,
    activation: tuple[str, str] = ("hidden_act", "silu"),
    eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
    default_theta: float = 10_000.0,
    default_partial: float | None = None,
    layer_type: str | None = None,
    trained_context: int | None = None,
    rope_renamed: dict[str, str] | None = None,
) -> ModelSpec:
    """A Llama-like spec: one RoPE for all layers, full attention, RMSNorm before each branch, no biases.

    The arguments are what the family assumes where the config is silent; pairs are (field, default).
    """
    hidden = reader.integer("hidden_size", MAX_HIDDEN)
    heads = reader.integer("num_attention_heads", MAX_HEADS)
    kv_heads = reader.integer("num_key_value_heads", MAX_HEADS, heads)
    if heads % kv_heads:
        raise reader.error("num_key_value_heads", f"a divisor of num_attention_heads {heads}")
    size = _head_dim(reader, hidden, heads, head_dim)
    context = reader.integer("max_position_embeddings", MAX_CONTEXT, 2048)
    rope = read_rope(
        reader,
        size,
        context,
        layer_type=layer_type,
        default_theta=default_theta,
        default_partial=default_partial,
        trained_context=trained_context,
        renamed=rope_renamed,
    )
    return ModelSpec(
        model_type=model_type,
        vocab_size=reader.integer("vocab_size", MAX_VOCAB),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size", MAX_INNER),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=size,
        layers=(LayerSpec(),) * reader.integer("num_hidden_layers", MAX_LAYERS),
        ropes=(rope.spec,),
        norm_eps=reader.number(eps[0], eps[1], maximum=1.0),
        activation=reader.choice(activation[0], ACTIVATIONS, activation[1]),
        attention_scale=size**-0.5,
        tied_head=reader.flag("tie_word_embeddings", tied),
        max_context=rope.max_context,
    )


def _head_dim(reader: ConfigReader, hidden: int, heads: int, default: int | None) -> int:
    if reader.value("head_dim") is None and default is None:
        if hidden % heads:
            raise reader.error(
                "hidden_size",
                f"a multiple of num_attention_heads {heads} (or a head_dim)",
                hint="check that config.json belongs to these weights",
            )
        default = hidden // heads
    size = reader.integer("head_dim", MAX_HEAD_DIM, default)
    if size % 2:
        raise reader.error("head_dim", f"an even head size for RoPE, not {size}")
    return size


def layer_windows(reader: ConfigReader, count: int, window: int | None, default: list[bool]) -> list[int | None]:
    """Each layer's sliding window from `layer_types`, or from the family's `default` (True = sliding)."""
    kinds = reader.items("layer_types", str, count)
    sliding = default
    if kinds is not None:
        if not set(kinds) <= {"full_attention", "sliding_attention"}:
            raise reader.error("layer_types", "only full_attention and sliding_attention")
        sliding = [kind == "sliding_attention" for kind in kinds]
        if any(sliding) and window is None:
            raise reader.error("layer_types", "full_attention only, since no sliding window is in use")
    return [window if slides else None for slides in sliding]


def windows_above(reader: ConfigReader, count: int) -> list[int | None]:
    """Qwen's rule: with `use_sliding_window`, the layers from `max_window_layers` on have the window."""
    window = optional_window(reader, 4096) if reader.flag("use_sliding_window", False) else None
    first = reader.integer("max_window_layers", MAX_LAYERS, 28, minimum=0)
    return layer_windows(reader, count, window, [window is not None and index >= first for index in range(count)])


def optional_window(reader: ConfigReader, default: int | None = None) -> int | None:
    """`sliding_window`; null means none, absence means `default`."""
    if not reader.has("sliding_window"):
        return default
    return None if reader.value("sliding_window") is None else reader.integer("sliding_window", MAX_CONTEXT)


def refuse_window(reader: ConfigReader) -> None:
    """For families whose every layer attends to the whole past."""
    reader.refuse("sliding_window", "this family has no sliding window")
    kinds = reader.value("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise reader.error("layer_types", "full_attention only: this family has no sliding window")

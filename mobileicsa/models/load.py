"""A checkpoint's config and tensors become a `ModelSpec` and the canonical float decoder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mobileicsa.core.errors import InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.io.checkpoint import Checkpoint
from mobileicsa.io.tensors import TensorSource
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.families import family_named, spec_from_config
from mobileicsa.models.sources import EMBEDDING, HEAD
from mobileicsa.models.special_tokens import special_tokens
from mobileicsa.models.tensor_names import PlainNames

logger = logging.getLogger(__name__)

EMBEDDING_WEIGHT, HEAD_WEIGHT = f"{EMBEDDING}.weight", f"{HEAD}.weight"
# What old checkpoints store although it follows from the config.
DERIVED_SUFFIX = ".rotary_emb.inv_freq"


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The spec of a checkpoint: its config, special tokens, and whether its head is really tied."""
    where = config_place(checkpoint)
    spec = spec_from_config(checkpoint.config, where)
    bos, eos = special_tokens(checkpoint.generation, checkpoint.config, spec.vocab_size, where)
    tied = _head_is_tied(spec, PlainNames(checkpoint.tensors), where)
    return replace(spec, bos_id=bos, eos_ids=eos, tied_head=tied)


def config_place(checkpoint: Checkpoint) -> str:
    """What messages call the config: the file where there is one (a GGUF holds it inside)."""
    return checkpoint.source_name if checkpoint.folder is None else str(checkpoint.folder / "config.json")


def _head_is_tied(spec: ModelSpec, names: PlainNames, where: str) -> bool:
    """The weights decide, not the flag: both wrong flags are seen in the wild."""
    if HEAD_WEIGHT not in names:
        if not spec.tied_head:
            raise InputError(
                f"{where}: tie_word_embeddings is false but tensor {HEAD_WEIGHT!r} is missing",
                hint="if the model shares its embedding with the head, set tie_word_embeddings to true",
            )
        return True
    if EMBEDDING_WEIGHT not in names or names.shape(EMBEDDING_WEIGHT) != names.shape(HEAD_WEIGHT):
        return False
    equal = torch.equal(names.get(EMBEDDING_WEIGHT), names.get(HEAD_WEIGHT))
    if equal != spec.tied_head:
        logger.warning(
            "%s: tie_word_embeddings is %s but the head %s the embedding: read as %s",
            where,
            str(spec.tied_head).lower(),
            "equals" if equal else "differs from",
            "tied" if equal else "not tied",
        )
    return equal


def check_tensors(spec: ModelSpec, source: TensorSource) -> list[str]:
    """Raise `InputError` for a missing or misshapen tensor, from headers alone; return the names nobody reads."""
    names = PlainNames(source)
    with empty_weights():
        shapes = {name: tuple(value.shape) for name, value in Decoder(spec, primitive=False).state_dict().items()}
    used = {HEAD_WEIGHT}
    for canonical, wanted in family_named(spec.model_type, "model spec").tensors(spec).items():
        for name in wanted.names:
            used.add(name)
            if name not in names:
                raise InputError(
                    f"checkpoint: tensor {name!r} is missing",
                    hint="check that config.json belongs to these weights and that no shard is missing",
                )
            expected = wanted.shape_of_each(shapes[canonical])
            if names.shape(name) != expected:
                raise InputError(
                    f"checkpoint: tensor {names.stored_name(name)!r} has shape {list(names.shape(name))}, "
                    f"config.json asks for {list(expected)}",
                    hint="check that config.json belongs to these weights",
                )
    return [names.stored_name(n) for n in names.names() if n not in used and not n.endswith(DERIVED_SUFFIX)]


class FloatWeights:
    """Canonical float32 weights of a checkpoint, one tensor at a time, the attention scale folded in.

    `Attention` expects that scale in q: in the gain of `q_norm` where there is one, else in `q_proj`.
    """

    def __init__(self, spec: ModelSpec, source: TensorSource) -> None:
        self.spec = spec
        self._names = PlainNames(source)
        self._sources = family_named(spec.model_type, "model spec").tensors(spec)

    def get(self, canonical: str) -> Tensor:
        """The tensor (float32, the caller's own); a tied head gives the embedding."""
        name = "embed.weight" if self._is_tied(canonical) else canonical
        tensor = self._sources[name].read(self._names)
        scaled = "q_norm" if self.spec.qk_norm else "q_proj"
        if name.rpartition(".")[0].endswith(f".attn.{scaled}"):
            tensor.mul_(self.spec.attention_scale)
        return tensor

    def fill(self, module: nn.Module, prefix: str) -> None:
        """Give `module`, whose path in `Decoder` is `prefix` ("layers.3.", "" for all), its weights without a copy."""
        state: dict[str, Tensor] = {}
        for name in module.state_dict():  # the embedding comes before the head that shares it
            shared = state.get("embed.weight") if self._is_tied(prefix + name) else None
            state[name] = self.get(prefix + name) if shared is None else shared
        module.load_state_dict(state, assign=True)

    def _is_tied(self, canonical: str) -> bool:
        return self.spec.tied_head and canonical == "head.proj.weight"


@contextmanager
def empty_weights() -> Iterator[None]:
    """Modules built inside get weights without memory, for `FloatWeights.fill`; their constants stay real."""

    class EmptyOnMeta(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.empty:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    with EmptyOnMeta():
        yield


def filled_decoder(spec: ModelSpec, fill: Callable[[nn.Module, str], None], *, primitive: bool = False) -> Decoder:
    """The whole float model, in evaluation mode, with the weights of a source's `fill` (`FloatWeights.fill`).

    A tied head and the embedding are one parameter, which another device then holds once.
    """
    with empty_weights():
        decoder = Decoder(spec, primitive=primitive)
    fill(decoder, "")
    if spec.tied_head:
        decoder.head.proj.weight = decoder.embed.weight
    return decoder.eval()


def load_decoder(checkpoint: Checkpoint, *, primitive: bool = False) -> Decoder:
    """The whole float model of a checkpoint, in evaluation mode."""
    spec = read_spec(checkpoint)
    unread = check_tensors(spec, checkpoint.tensors)
    if unread:
        logger.warning(
            "%s: %d tensors are not part of the model, e.g. %s",
            checkpoint.source_name,
            len(unread),
            ", ".join(unread[:3]),
        )
    return filled_decoder(spec, FloatWeights(spec, checkpoint.tensors).fill, primitive=primitive)

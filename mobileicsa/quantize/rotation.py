"""Offline rotations R1 (residual stream) and R2 (values of each head), folded into the weights: the same function.

R1 needs norms without bias whose gain can move into the linears behind them. A tied head keeps its table: what its
norm's gain and the rotation leave is one square linear before it, `head.mix` = R^T diag(gain) R.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mobileicsa.calibrate.stream import NamedWeights, WeightSource
from mobileicsa.core.spec import ModelSpec
from mobileicsa.quantize.rotation_math import random_hadamard

log = logging.getLogger(__name__)

# Linear -> the norm whose gain it takes over; the second is that of a parallel residual.
READERS: Mapping[str, tuple[str, ...]] = {
    "attn.q_proj": ("attn_norm",),
    "attn.k_proj": ("attn_norm",),
    "attn.v_proj": ("attn_norm",),
    "mlp.gate_proj": ("mlp_norm", "attn_norm"),
    "mlp.up_proj": ("mlp_norm", "attn_norm"),
}
WRITERS = ("attn.o_proj", "mlp.down_proj")
STREAM_NORMS = ("attn_norm", "mlp_norm")


def rotates_stream(spec: ModelSpec) -> str | None:
    """None where R1 can be folded, else why not."""
    if spec.norm != "rms" or spec.norm_bias:
        return "its norms subtract a mean or add a bias"
    if not spec.pre_norm or spec.post_norm:
        return "its norms lie behind attention and MLP, with gains that cannot be moved"
    return None


def rotated_spec(spec: ModelSpec) -> ModelSpec:
    """The spec of the rotated model."""
    return replace(spec, head_mix=spec.tied_head and rotates_stream(spec) is None)


@dataclass(frozen=True)
class Rotations:
    """Orthogonal float64: `stream` (hidden, hidden), None where it cannot be folded; `values` (layers, n, n), n the
    size of a head, each layer's for all of its heads."""

    stream: Tensor | None
    values: Tensor

    def turned(self, stream: Tensor | None, values: Tensor) -> Rotations:
        """These, then rotations of the same shapes; None leaves the stream."""
        return Rotations(
            self.stream if self.stream is None or stream is None else self.stream @ stream, self.values @ values
        )


def hadamard_rotations(spec: ModelSpec) -> Rotations:
    """The plain rotations: the same values' rotation in every layer."""
    stream = random_hadamard(spec.hidden_size) if rotates_stream(spec) is None else None
    return Rotations(stream, random_hadamard(spec.head_dim, seed=1).expand(spec.num_layers, -1, -1))


def rotate(spec: ModelSpec, weights: WeightSource) -> tuple[ModelSpec, Rotated]:
    """The model with the plain rotations: its spec and its weights, computed as they are asked for."""
    reason = rotates_stream(spec)
    if reason is not None:
        log.info("the residual stream is not rotated: %s", reason)
    return rotated_spec(spec), Rotated(spec, weights, hadamard_rotations(spec))


class Rotated:
    """Weights of `spec` (the model before) with rotations folded in."""

    def __init__(self, spec: ModelSpec, weights: NamedWeights, rotations: Rotations) -> None:
        self.spec, self.weights, self.rotations = spec, weights, rotations
        self.stream = None if rotations.stream is None else rotations.stream.float()
        self.values = rotations.values.float()

    def turned(self, stream: Tensor | None, values: Tensor) -> Rotated:
        """The same model, rotated further (see `Rotations.turned`)."""
        return Rotated(self.spec, self.weights, self.rotations.turned(stream, values))

    def get(self, name: str) -> Tensor:
        linear, _, parameter = name.rpartition(".")
        tensor = self._plain(name)
        if parameter == "weight":
            tensor = self.inputs(linear, tensor)
        return self.outputs(linear, tensor)

    def inputs(self, linear: str, rows: Tensor) -> Tensor:
        """Rows (n, in) over the inputs of a linear of the model before, as they meet the rotated model's inputs."""
        layer, module = _split_linear(linear)
        if module in READERS and self.stream is not None:
            norm = READERS[module][-1 if self.spec.parallel_residual else 0]
            rows = (rows * self.weights.get(f"{layer}.{norm}.weight")) @ self.stream
        if module == "attn.o_proj":
            rows = (rows.view(rows.shape[0], -1, self.spec.head_dim) @ self._value(layer)).reshape(rows.shape)
        return rows

    def outputs(self, linear: str, columns: Tensor) -> Tensor:
        """Columns (out, n), or (out,), over the outputs of a linear of the model before, as the rotated model's."""
        layer, module = _split_linear(linear)
        if module in WRITERS and self.stream is not None:
            columns = self.stream.T @ columns
        if module == "attn.v_proj":
            heads = columns.view(-1, self.spec.head_dim, columns[0].numel())
            columns = (self._value(layer).T @ heads).reshape(columns.shape)
        return columns

    def _value(self, layer: str) -> Tensor:
        return self.values[int(layer.removeprefix("layers."))]

    def _plain(self, name: str) -> Tensor:
        """R1's part of every tensor that is no linear's of a layer."""
        _, module = _split_linear(name.rpartition(".")[0])
        stream = self.stream
        if stream is None:
            return self.weights.get(name)
        if name == "head.mix.weight":
            return stream.T @ (self.weights.get("head.norm.weight")[:, None] * stream)
        if name == "embed.weight" or (name == "head.proj.weight" and self.spec.tied_head):
            return self.weights.get("embed.weight") @ stream
        if name == "head.proj.weight":
            return (self.weights.get(name) * self.weights.get("head.norm.weight")) @ stream
        if name == "head.norm.weight" or module in STREAM_NORMS:
            return torch.ones_like(self.weights.get(name))
        return self.weights.get(name)

    def fill(self, module: nn.Module, prefix: str) -> None:
        found: dict[str, Tensor] = {}
        for name in module.state_dict():
            tied = self.spec.tied_head and prefix + name == "head.proj.weight" and "embed.weight" in found
            found[name] = found["embed.weight"] if tied else self.get(prefix + name)
        module.load_state_dict(found, assign=True)


def _split_linear(name: str) -> tuple[str, str]:
    """ "layers.3.attn.q_proj" -> ("layers.3", "attn.q_proj"); no layer for what lies outside."""
    parts = name.split(".")
    return (".".join(parts[:2]), ".".join(parts[2:])) if parts[0] == "layers" else ("", name)

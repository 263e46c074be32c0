"""A Q/DQ graph run so that nothing but its roundings decides an integer.

Between two of them it is float64: products of integers and their sums are then exact, and the order of a sum, or a
library's exp, is far below what a rounding could see. A quantisation itself is float32's, as every runtime's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the operators)
from torch.utils._pytree import tree_map

_ops = torch.ops.quantized_decomposed
QUANTIZE = _ops.quantize_per_tensor.default
DEQUANTIZE = _ops.dequantize_per_tensor.default
DEQUANTIZE_CHANNEL = _ops.dequantize_per_channel.default


def run_exactly(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the graph gives for inputs as it takes them; real outputs are float32."""
    with torch.no_grad():
        found: tuple[Tensor, ...] = _Exact(graph).run(*inputs)
    return found


class _Exact(fx.Interpreter):
    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _wide(super().get_attr(target, args, kwargs))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        own = RULES.get(target)
        return super().call_function(target, args, kwargs) if own is None else own(*args)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        return tree_map(_narrow, super().output(target, args, kwargs))


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _narrow(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _quantize(x: Tensor, scale: float, zero: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    return (x.to(torch.float32) * (1.0 / scale)).round_().add_(zero).clamp_(low, high).to(dtype)


def _dequantize(q: Tensor, scale: float, zero: int, *_: Any) -> Tensor:
    return (q.double() - zero) * scale


def _dequantize_channel(q: Tensor, scale: Tensor, zero: Tensor, axis: int, *_: Any) -> Tensor:
    shape = [-1 if dimension == axis else 1 for dimension in range(q.dim())]
    return (q.double() - zero.reshape(shape)) * scale.double().reshape(shape)


RULES: dict[Any, Callable[..., Tensor]] = {
    QUANTIZE: _quantize,
    DEQUANTIZE: _dequantize,
    DEQUANTIZE_CHANNEL: _dequantize_channel,
}

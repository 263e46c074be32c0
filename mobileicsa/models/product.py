"""`linear` as PyTorch has it, by the library that uses the processor best.

PyTorch multiplies float32 matrices with MKL, which takes its AVX2 kernels on AMD's processors, also where they have
AVX-512; oneDNN, which comes with PyTorch too, asks the processor and not its maker, and is over twice as fast there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_FACTS = Path("/proc/cpuinfo")


@cache
def prefers_onednn() -> bool:
    """Whether MKL leaves half of this processor unused: an AMD with AVX-512. Known on Linux only."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not available:
        return False
    try:
        return "AuthenticAMD" in CPU_FACTS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) W^T + b, W (out, in), as F.linear, differentiable once; sums in another order.

    F.linear itself where a program is traced, also by a subclass of Tensor; torch.func's transforms are refused.
    """
    if not _plain(x, weight):
        return F.linear(x, weight, bias)
    y: Tensor = _Product.apply(x, weight)  # type: ignore[no-untyped-call]
    return y if bias is None else y + bias


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Both float32 on the CPU, real ones, and oneDNN is the faster of two."""
    return (
        not torch.compiler.is_compiling()  # first: a compiler cannot trace what follows
        and not torch._C._get_tracing_state()
        and prefers_onednn()
        and type(x) is Tensor
        and type(weight) in (Tensor, torch.nn.Parameter)
        and x.dtype is weight.dtype is torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() > 0  # a gradient over no rows has no oneDNN product
    )


def _multiply(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        return _multiply(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        of_x = _multiply(grad, weight.T) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_x, None
        return of_x, _multiply(grad.reshape(-1, grad.shape[-1]).T, x.reshape(-1, x.shape[-1]).T)

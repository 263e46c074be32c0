"""A device that is none: its tensors are CPU tensors in a wrapper, and an operator that mixes both kinds fails.

Shows without a GPU that code moves everything it computes with. PyTorch's name "lazy" is borrowed for it: the one
device besides the CPU for which gradients need no driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy")
# Operators that take tensors of two devices: copies, and indices on the CPU.
MIXING = ("aten._to_copy", "aten.copy_", "aten.index.Tensor")


class Moved(Tensor):
    """A tensor of the pretended device around `inner` on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Moved:
        made: Moved = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    def tolist(self) -> Any:
        return self.inner.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Pretending(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    moved = [x for x in given if isinstance(x, Moved)]
    if moved and not str(func).startswith(MIXING):
        strangers = [tuple(x.shape) for x in given if not isinstance(x, Moved) and x.dim()]
        assert not strangers, f"{func} mixes the pretended device with the CPU: {strangers}"
    wanted = kwargs.get("device")
    there = bool(moved) if wanted is None else torch.device(wanted) == DEVICE
    if str(func).startswith("aten.copy_"):
        there = isinstance(args[0], Moved)
    if wanted is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    known = {id(x.inner): x for x in moved}
    args, kwargs = tree_map(lambda x: x.inner if isinstance(x, Moved) else x, (args, kwargs))
    result = func(*args, **kwargs)
    if not there:
        return result

    def back(x: Any) -> Any:
        return (known[id(x)] if id(x) in known else Moved(x)) if isinstance(x, Tensor) else x

    return tree_map(back, result)


class _Generator(torch.Generator):
    """Of either device, the CPU's."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        return super().__new__(cls)


@contextmanager
def pretending() -> Iterator[torch.device]:
    """While it lasts, tensors can be moved to the device given."""
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    # A real device takes over a parameter's data in place; a wrapper can only take its place whole.
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with (
            patch("torch.optim.optimizer._get_fused_kernels_supported_devices", lambda: ["lazy", "cpu"]),
            patch("torch.lazy", torch.cpu, create=True),  # random states for recomputed blocks
            patch("torch.Generator", _Generator),
            _Pretending(),
        ):
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)

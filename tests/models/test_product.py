"""The product by oneDNN computes what F.linear does, forward and back, and never enters an exported program."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mobileicsa.models import product

pytestmark = pytest.mark.skipif(not torch._C._has_mkldnn, reason="PyTorch without oneDNN")


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """As on an AMD with AVX-512; the shapes that oneDNN multiplied."""
    seen: list[tuple[int, ...]] = []
    multiply = product._multiply

    def counted(x: Tensor, weight: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return multiply(x, weight)

    monkeypatch.setattr(product, "prefers_onednn", lambda: True)
    monkeypatch.setattr(product, "_multiply", counted)
    return seen


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 4, 5), (0, 5), (1, 2, 3, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_linear(
    shape: tuple[int, ...], bias: bool, by_onednn: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    ours = [torch.randn(shape, requires_grad=True), nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(7))]
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    if not bias:
        ours.pop(), exact.pop()
    y, wanted = product.linear(*ours), F.linear(*exact)
    assert y.shape == wanted.shape
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    wanted.backward(upstream.double())
    for mine, of_exact in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert of_exact.grad is not None
        torch.testing.assert_close(mine.grad.double(), of_exact.grad, rtol=1e-5, atol=1e-5)
    assert len(by_onednn) == (3 if y.numel() else 0)  # forward, and each factor's gradient


@given(rows=st.integers(1, 9), inner=st.integers(1, 300), out=st.integers(1, 40), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_integer_sums_are_exact(rows: int, inner: int, out: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(-255, 256, (rows, inner), generator=random).float()
    weight = torch.randint(-127, 128, (out, inner), generator=random).float()
    assert torch.equal(product._multiply(x, weight).double(), x.double() @ weight.double().T)


@pytest.mark.parametrize("transposed", [(True, False), (False, True), (True, True)])
def test_transposed_factors(transposed: tuple[bool, bool], by_onednn: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(6, 4), torch.randn(9, 4)
    views = (t.T.contiguous().T if turned else t for t, turned in zip((x, weight), transposed, strict=True))
    torch.testing.assert_close(product.linear(*views), F.linear(x, weight))
    assert len(by_onednn) == 1


def test_other_dtypes_and_constant_factors_take_the_usual_way(by_onednn: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(3, 5), torch.randn(7, 5)
    assert torch.equal(product.linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))
    assert torch.equal(product.linear(x.bfloat16(), weight.bfloat16()), F.linear(x.bfloat16(), weight.bfloat16()))
    assert by_onednn == []
    x.requires_grad_()
    product.linear(x, weight).sum().backward()
    assert len(by_onednn) == 2  # forward and x's gradient: the weight has none


@pytest.mark.parametrize("pretended", [True, False])
def test_a_traced_program_has_pytorchs_operator(pretended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if pretended:
        monkeypatch.setattr(product, "prefers_onednn", lambda: True)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(7, 5))

        def forward(self, x: Tensor) -> Tensor:
            return product.linear(x, self.weight)

    for strict in (True, False):
        graph = torch.export.export(Layer(), (torch.randn(2, 5),), strict=strict).graph
        called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
        assert called == ["aten.linear.default"]
    traced = torch.jit.trace(Layer(), torch.randn(2, 5))
    assert "aten::linear" in str(traced.inlined_graph)


def test_a_second_derivative_is_refused_and_not_wrong(by_onednn: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(3, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    (first,) = torch.autograd.grad(product.linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    assert by_onednn

"""Single operators of the TOSA lowering on Arm's reference model, against PyTorch's quantised operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the operators)

from mobileicsa.core.errors import Unsupported

reference_model = pytest.importorskip("tosa_reference_model", reason="tosa-tools is not installed")

from mobileicsa_export.tosa_arithmetic import Arithmetic  # noqa: E402
from mobileicsa_export.tosa_graph import Tensor as GraphTensor  # noqa: E402
from mobileicsa_export.tosa_graph import TosaGraph, fixed_point  # noqa: E402
from mobileicsa_export.tosa_lowering import lower  # noqa: E402
from mobileicsa_export.tosa_ties import common_ties, irregular_ties  # noqa: E402
from mobileicsa_export.tosa_values import Sum  # noqa: E402

OPS = torch.ops.quantized_decomposed
STEP8, STEP16 = 2.0**-4, 2.0**-11


def quantize(x: Tensor, scale: float, zero: int, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    made: Tensor = OPS.quantize_per_tensor(x, scale, zero, limits.min, limits.max, dtype)
    return made


def dequantize(codes: Tensor, scale: float, zero: int) -> Tensor:
    limits = torch.iinfo(codes.dtype)
    made: Tensor = OPS.dequantize_per_tensor(codes, scale, zero, limits.min, limits.max, codes.dtype)
    return made


class Program(nn.Module):
    def __init__(self, function: Callable[..., Tensor], **constants: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in constants.items():
            self.register_buffer(name, value)

    def forward(self, *codes: Tensor) -> Tensor:
        return self.function(self, *codes)


def difference(program: Program, *codes: Tensor) -> np.ndarray:
    """Steps between the reference model and PyTorch."""
    names = tuple(f"x{i}" for i in range(len(codes)))
    lowered = lower(torch.export.export(program.eval(), codes, strict=False), names, ("y",))
    (found,), status = reference_model.run(lowered.flatbuffer, [c.numpy() for c in codes], tosa_level="EIGHTK")
    assert status == reference_model.GraphStatus.TOSA_VALID
    return np.abs(found.astype(np.int64) - program(*codes).numpy().astype(np.int64))


def every_code(dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype)
    return torch.arange(limits.min, limits.max + 1).to(dtype)[None, :, None]


@pytest.mark.parametrize("mantissa", [1.0, 1.25, 1.5, 1.75, 79 / 64, 107 / 64])
@pytest.mark.parametrize("zero", [0, -20])
def test_ties_are_rounded_as_the_program_rounds_them(mantissa: float, zero: int) -> None:
    graph = TosaGraph()
    values = np.arange(-20_000, 20_001, dtype=np.int32)[None]
    x: GraphTensor = graph.input("x", values.shape, "INT32")
    scale = mantissa * 2.0**-8
    graph.output(Arithmetic(graph).quantize(Sum(x, 2.0**-15, 2**17), scale, zero, "INT8", "test"))
    (found,), _ = reference_model.run(graph.bytes(), [values], tosa_level="EIGHTK")
    expected = quantize(torch.from_numpy(values).to(torch.float32) * 2.0**-15, scale, zero, torch.int8).numpy()
    assert common_ties(2.0**-15, scale, 2**17) is not None
    assert np.array_equal(found, expected)


def test_only_some_short_scales_round_ties_otherwise_than_to_even() -> None:
    irregular = [m / 64 for m in range(64, 128) if irregular_ties(m / 64 * 2.0**-8, 3) is not None]
    assert 1.75 in irregular
    assert not {1.0, 1.25, 1.5} & set(irregular)


@pytest.mark.parametrize("function", [torch.sqrt, torch.reciprocal, torch.exp, torch.sigmoid, torch.tanh])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16])
def test_a_function_has_an_entry_for_every_code(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    lowest = torch.iinfo(dtype).min
    zero = 0 if function in (torch.sigmoid, torch.tanh) else lowest
    scale = 12.0 / (torch.iinfo(dtype).max - lowest)

    def program(self: Program, x: Tensor) -> Tensor:
        return quantize(function(dequantize(x, scale, zero)), scale, zero, dtype)

    # PyTorch computes it in float32, the table in float64 as the simulator does.
    found = difference(Program(program), every_code(dtype))
    assert found.max() <= 1
    assert (found == 0).mean() > 0.998


def test_a_chain_of_functions_becomes_one_table_with_each_rounding_in_it() -> None:
    def program(self: Program, x: Tensor) -> Tensor:
        eps = dequantize(self.eps, 2.0**-20, 0)
        shifted = dequantize(quantize(dequantize(x, STEP16, -32768) + eps, STEP16, -32768, torch.int16), STEP16, -32768)
        root = dequantize(quantize(torch.sqrt(shifted), 2.0**-13, -32768, torch.int16), 2.0**-13, -32768)
        return quantize(torch.reciprocal(root), 2.0**-11, -32768, torch.int16)

    made = Program(program, eps=torch.tensor([300], dtype=torch.int16))
    codes = every_code(torch.int16)
    lowered = lower(torch.export.export(made.eval(), (codes,), strict=False), ("x",), ("y",))
    assert lowered.operators == {"add.Tensor": 1, "sqrt.default": 1, "reciprocal.default": 1}
    assert difference(made, codes).max() == 0


@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.int8), (4, torch.int8), (8, torch.int16), (4, torch.int16)])
def test_a_linear_multiplies_both_bytes_of_its_input(bits: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    top = 2 ** (bits - 1) - 1
    limits = torch.iinfo(dtype)
    step = STEP8 if dtype == torch.int8 else STEP16

    def program(self: Program, x: Tensor) -> Tensor:
        weight = OPS.dequantize_per_channel(self.weight, self.scale, self.zeros, 0, -top, top, torch.int8)
        return quantize(nn.functional.linear(dequantize(x, step, 3), weight), 2.0**-11, 0, torch.int16)

    weight = torch.randint(-top, top + 1, (24, 256), generator=generator, dtype=torch.int8)
    scale = torch.rand(24, generator=generator) * 2.0**-10 + 1e-4
    # What `weight_scale` makes of a row of zeros; the other rows must not suffer from it.
    weight[5], scale[5] = 0, 1.0
    made = Program(program, weight=weight, scale=scale, zeros=torch.zeros(24, dtype=torch.int64))
    codes = torch.randint(limits.min, limits.max + 1, (1, 5, 256), generator=generator).to(dtype)
    # PyTorch sums in float32.
    found = difference(made, codes)
    assert found.max() <= 1
    assert (found == 0).mean() > 0.98


def test_a_row_of_zeros_does_not_cut_off_the_others() -> None:
    def program(self: Program, x: Tensor) -> Tensor:
        weight = OPS.dequantize_per_channel(self.weight, self.scale, self.zeros, 0, -127, 127, torch.int8)
        return quantize(nn.functional.linear(dequantize(x, 1.0, 0), weight), 2.0**-11, 0, torch.int16)

    weight = torch.full((2, 1024), 127, dtype=torch.int8)
    weight[1] = 0
    # The live row reaches 130,048 codes times 127, the end of 16 bits.
    scale = torch.tensor([2.0**-20, 1.0])
    made = Program(program, weight=weight, scale=scale, zeros=torch.zeros(2, dtype=torch.int64))
    codes = torch.stack([torch.full((1024,), code, dtype=torch.int8) for code in (-128, 0, 100, 127)])[None]
    assert int(made(codes)[0, 3, 0]) > 32_000
    assert difference(made, codes).max() <= 1


def test_sums_beyond_32_bits_are_refused() -> None:
    def program(self: Program, a: Tensor, b: Tensor) -> Tensor:
        product = torch.matmul(dequantize(a, STEP8, -128), dequantize(b, STEP8, -128))
        return quantize(product, 2.0**10, 0, torch.int8)

    slots = 33_026  # times 255 squared
    with pytest.raises(Unsupported, match="32 bits hold 2147483647"):
        difference(
            Program(program), torch.zeros((1, 1, slots), dtype=torch.int8), torch.zeros((1, slots, 1), dtype=torch.int8)
        )


def test_a_bias_on_another_grid_is_refused() -> None:
    def program(self: Program, x: Tensor) -> Tensor:
        weight = OPS.dequantize_per_channel(self.weight, self.scale, self.zeros, 0, -127, 127, torch.int8)
        bias = OPS.dequantize_per_channel(self.bias, self.scale, self.zeros, 0, -1000, 1000, torch.int32)
        return quantize(nn.functional.linear(dequantize(x, STEP8, 0), weight, bias), STEP8, 0, torch.int8)

    made = Program(
        program,
        weight=torch.ones((4, 8), dtype=torch.int8),
        scale=torch.ones(4),
        bias=torch.ones(4, dtype=torch.int32),
        zeros=torch.zeros(4, dtype=torch.int64),
    )
    with pytest.raises(Unsupported, match="input scale times weight scale"):
        difference(made, torch.zeros((1, 1, 8), dtype=torch.int8))


def test_a_product_of_16_and_8_bits_is_a_sum_of_two_byte_products() -> None:
    generator = torch.Generator().manual_seed(2)
    probs = torch.randint(0, 3000, (1, 2, 6, 24), generator=generator, dtype=torch.int16)
    values = torch.randint(-128, 128, (1, 2, 24, 16), generator=generator, dtype=torch.int8)

    def program(self: Program, a: Tensor, b: Tensor) -> Tensor:
        return quantize(torch.matmul(dequantize(a, 2.0**-15, 0), dequantize(b, STEP8, -9)), 2.0**-5, 4, torch.int8)

    assert difference(Program(program), probs, values).max() == 0


def test_a_squared_16_bit_tensor_does_not_overflow() -> None:
    def program(self: Program, x: Tensor) -> Tensor:
        real = dequantize(x, STEP16, -12_000)
        return quantize(real * real, 2.0**-5, -32768, torch.int16)

    assert difference(Program(program), every_code(torch.int16)).max() <= 1


def test_an_int4_weight_of_minus_8_is_refused() -> None:
    def program(self: Program, x: Tensor) -> Tensor:
        weight = OPS.dequantize_per_channel(self.weight, self.scale, self.zeros, 0, -8, 7, torch.int8)
        return quantize(nn.functional.linear(dequantize(x, STEP8, 0), weight), STEP8, 0, torch.int8)

    weight = torch.full((4, 8), -8, dtype=torch.int8)
    made = Program(program, weight=weight, scale=torch.ones(4), zeros=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(Unsupported, match="code -8, TOSA's INT4 ends at -7"):
        difference(made, torch.zeros((1, 1, 8), dtype=torch.int8))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda self, x: quantize(torch.cumsum(dequantize(x, STEP8, 0), -1), STEP8, 0, torch.int8), "no integer form"),
        (lambda self, x: quantize(dequantize(x, STEP8, 0) * self.raw, STEP8, 0, torch.int8), "stays real-valued"),
        (lambda self, x: quantize(dequantize(x, STEP8, 0) + 1e-6, STEP8, 0, torch.int8), "number without an encoding"),
        (lambda self, x: quantize(dequantize(x, STEP8, 0) * 3.0, STEP8, 0, torch.int8), "number without an encoding"),
        (lambda self, x: dequantize(x, STEP8, 0), "used as integers"),
        (lambda self, x: x[:, ::2], "leaves elements out"),
        (lambda self, x: quantize(torch.add(*[dequantize(x, STEP8, 0)] * 2, alpha=3), STEP8, 0, torch.int8), "alpha"),
        (lambda self, x: OPS.quantize_per_tensor(dequantize(x, STEP8, 0), 1.0, 0, -7, 7, torch.int8), "from -7 to 7"),
        (
            lambda self, x: quantize(
                torch.exp(OPS.dequantize_per_tensor(x, STEP8, 0, -7, 7, torch.int8)), STEP8, 0, torch.int8
            ),
            "from -7 to 7",
        ),
    ],
)
def test_what_has_no_integer_form_is_refused(function: Callable[..., Tensor], reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        difference(Program(function, raw=torch.tensor([0.1, 0.2])), torch.zeros((1, 3, 2), dtype=torch.int8))


@pytest.mark.parametrize("scale", [1.0, 2.0**-15, 0.3, 1e-9, 1e-12, 2.0**20])
def test_fixed_point_numbers_have_31_bits(scale: float) -> None:
    multiplier, shift = fixed_point(scale)
    assert 2 <= shift <= 62
    assert 0 <= multiplier < 2**31
    assert multiplier * 2.0**-shift == pytest.approx(scale, rel=2**-30 if scale > 1e-9 else 1e-3)

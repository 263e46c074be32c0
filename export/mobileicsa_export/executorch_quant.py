"""Passes that put quantised linears and 16-bit edges in the forms that XNNPACK can run.

XNNPACK knows no 16-bit integers. A 16-bit edge becomes float arithmetic that yields exactly the same grid points:
adding and subtracting 1.5 * 2**23 rounds half to even, a clamp saturates. It knows no linear from int8 to more
than 8 bits with static ranges either, but one that finds its input's range at run time; two more input columns
that hold the ends of the static range, against weights of 0, make it find exactly that range.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the operators)

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.executorch_editor import ProgramEditor, only_user, shape

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed
QUANTIZE = quantized.quantize_per_tensor.default
DEQUANTIZE = quantized.dequantize_per_tensor.default
DEQUANTIZE_CHANNEL = quantized.dequantize_per_channel.default
MOVES = (aten.view.default, aten.reshape.default, aten.transpose.int, aten.permute.default)

MAX_MULTIPLIER = 256  # XNNPACK writes a static linear with a larger one, and refuses to load it
MAX_BIAS = 2**30  # in steps of the sum: half of int32 is left to the sum itself
# float32 has steps of 1 here, so that adding it rounds half to even.
ROUNDER = 1.5 * 2**23


@dataclass(frozen=True)
class Grid:
    """The static arguments of a per-tensor quantise or dequantise node."""

    scale: float
    zero: int
    low: int
    high: int
    dtype: torch.dtype

    @classmethod
    def of(cls, node: fx.Node) -> Grid:
        return cls(*node.args[1:])  # type: ignore[arg-type]

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest real number."""
        return (self.low - self.zero) * self.scale, (self.high - self.zero) * self.scale


def nodes(editor: ProgramEditor, *targets: object) -> list[fx.Node]:
    return [n for n in editor.graph.nodes if n.op == "call_function" and n.target in targets]


def widen_int4(editor: ProgramEditor) -> dict[str, int]:
    """XNNPACK tells 4-bit weights by the range [-8, 7]; whether -8 is used changes nothing.

    It packs two to a byte across the ends of rows, so that rows of odd length come out shifted: those stay 8-bit.
    """
    odd = 0
    for node in nodes(editor, DEQUANTIZE_CHANNEL):
        if node.args[4:6] not in ((-7, 7), (-8, 7)):
            continue
        weight = node.args[0]
        assert isinstance(weight, fx.Node)
        if shape(weight)[-1] % 2:
            odd += 1
            node.args = (*node.args[:4], -128, 127, *node.args[6:])
        else:
            node.args = (*node.args[:4], -8, *node.args[5:])
    return {"odd_int4_rows_as_int8": odd} if odd else {}


class LinearPass:
    """Quantised linears: static where the output is 8-bit, pinned dynamic where it has more.

    `weights` holds the padded copies by the original's address, so that both methods share them.
    """

    def __init__(self, editor: ProgramEditor, weights: dict[int, Tensor]) -> None:
        self.editor = editor
        self.weights = weights
        self._inputs: dict[fx.Node, fx.Node] = {}
        self.counts = {"int8_to_int8": 0, "int8_to_float": 0, "int16_to_float": 0}

    def run(self) -> dict[str, int]:
        for node in nodes(self.editor, aten.linear.default):
            x, weight = node.args[0], node.args[1]
            assert isinstance(x, fx.Node)
            assert isinstance(weight, fx.Node)
            if weight.target is not DEQUANTIZE_CHANNEL:
                continue
            if x.target is not DEQUANTIZE:
                raise Unsupported(node.name, "a quantised linear's input has no encoding")
            grid = Grid.of(x)
            if grid.dtype == torch.int16:
                self._split(node, x, grid)
            elif not self._static(node, grid):
                self._pinned(node, x, grid)
        return {k: v for k, v in self.counts.items() if v}

    def _static(self, node: fx.Node, grid: Grid) -> bool:
        """True where the output goes, moved only, to one 8-bit quantise; that one is repeated at the linear."""
        if not self._bias_fits(node, grid):
            return False
        end = only_user(node)
        while end is not None and end.target in MOVES:
            end = only_user(end)
        if end is None or end.target is not QUANTIZE or Grid.of(end).dtype != torch.int8:
            return False
        if not self._multiplier_fits(node, grid, Grid.of(end)):
            return False
        self.counts["int8_to_int8"] += 1
        if end.args[0] is not node:
            user = only_user(node)
            assert user is not None
            with self.editor.standing_for(user):
                q = self.editor.call(QUANTIZE, node, *end.args[1:])
                y = self.editor.call(DEQUANTIZE, q, *end.args[1:])
            user.replace_input_with(node, y)
        return True

    def _bias_fits(self, node: fx.Node, grid: Grid) -> bool:
        """A static kernel adds the bias to its sum as int32."""
        bias = node.args[2] if len(node.args) > 2 else None
        if not isinstance(bias, fx.Node):
            return True
        value, scales = self.editor.value(bias), self.editor.value(node.args[1].args[1])  # type: ignore[union-attr, arg-type]
        assert value is not None
        assert scales is not None
        return bool((value.abs() / (scales * grid.scale)).max() < MAX_BIAS)

    def _multiplier_fits(self, node: fx.Node, grid: Grid, out: Grid) -> bool:
        """Of sums to output steps; a large weight that meets only zeros in calibration makes it large."""
        scales = self.editor.value(node.args[1].args[1])  # type: ignore[union-attr, arg-type]
        assert scales is not None
        return float(scales.max()) * grid.scale < MAX_MULTIPLIER * out.scale

    def _pinned(self, node: fx.Node, x: fx.Node, grid: Grid) -> None:
        edit = self.editor
        self.counts["int8_to_float"] += 1
        bias = node.args[2] if len(node.args) > 2 else None
        out = only_user(node)
        rounds = bias is None and out is not None and out.target is QUANTIZE and Grid.of(out).dtype == torch.int16
        with edit.standing_for(node):
            if x not in self._inputs:
                self._inputs[x] = self._with_ends(self._clamped(x, grid), [grid.ends])
            weight = self._padded(node.args[1], Grid.of(out).scale if rounds and out is not None else 1.0)
            if not rounds or out is None:
                edit.replace(node, self._dynamic(self._inputs[x], weight, bias))
                return
            # The output's scale is folded in the weight's, and the bias rounds: steps straight from the kernel.
            out_grid = Grid.of(out)
            y = self._dynamic(
                self._inputs[x], weight, edit.constant("rounder", torch.full((shape(node)[-1],), ROUNDER))
            )
            steps = edit.call(aten.sub.Tensor, saturate(edit, y, out_grid), edit.scalar(ROUNDER))
            real = edit.call(aten.mul.Tensor, steps, edit.scalar(out_grid.scale))
        for user in list(out.users):
            edit.replace(user, real)

    def _clamped(self, x: fx.Node, grid: Grid) -> fx.Node:
        """The dynamic quantiser does the rounding itself where nobody else reads the dequantised input."""
        q = x.args[0]
        assert isinstance(q, fx.Node)
        before = q.args[0]
        # A static linear needs the quantise behind it.
        static = isinstance(before, fx.Node) and before.target is aten.linear.default
        readers = all(user.target is aten.linear.default for user in x.users)
        if q.target is QUANTIZE and only_user(q) is x and readers and not static:
            return self.editor.call(aten.hardtanh.default, q.args[0], *grid.ends)
        return x

    def _split(self, node: fx.Node, x: fx.Node, grid: Grid) -> None:
        """A 16-bit input as two rows of 8 bits, high and low byte; the results add up."""
        edit = self.editor
        self.counts["int16_to_float"] += 1
        q = x.args[0]
        assert isinstance(q, fx.Node)
        high_zero, low_zero = grid.zero // 256, grid.zero % 256
        with edit.standing_for(node):
            rows = shape(x)[-2]
            if x not in self._inputs:
                steps = edit.call(aten.sub.Tensor, rounded(edit, q.args[0], grid), edit.scalar(ROUNDER - grid.zero))
                scaled = edit.call(aten.mul.Tensor, steps, edit.scalar(1 / 256))
                high = edit.call(aten.mul.Tensor, edit.call(aten.floor.default, scaled), edit.scalar(256.0))
                low = edit.call(aten.sub.Tensor, steps, high)
                parts = [
                    edit.call(aten.sub.Tensor, high, edit.scalar(256.0 * high_zero)),
                    edit.call(aten.sub.Tensor, low, edit.scalar(float(low_zero))),
                ]
                ends = [(256.0 * (-128 - high_zero), 256.0 * (127 - high_zero)), (0.0 - low_zero, 255.0 - low_zero)]
                self._inputs[x] = self._with_ends(edit.call(aten.cat.default, parts, -2), ends)
            weight = self._padded(node.args[1], 1 / grid.scale)
            y = self._dynamic(self._inputs[x], weight, None)
            halves = [
                edit.call(aten.slice.Tensor, y, y.meta["val"].dim() - 2, i * rows, (i + 1) * rows) for i in (0, 1)
            ]
            total = edit.call(aten.add.Tensor, *halves)
            if len(node.args) > 2 and node.args[2] is not None:
                total = edit.call(aten.add.Tensor, total, node.args[2])
            edit.replace(node, total)

    def _with_ends(self, x: fx.Node, ends: list[tuple[float, float]]) -> fx.Node:
        """Two more columns: the ends of the static range of each of len(ends) groups of rows."""
        *batch, rows, _ = shape(x)
        columns = torch.tensor(ends, dtype=torch.float32).repeat_interleave(rows // len(ends), 0)
        ends_node = self.editor.constant("range_ends", columns.expand(*batch, rows, 2).contiguous())
        return self.editor.call(aten.cat.default, [x, ends_node], -1)

    def _padded(self, weight: object, divisor: float) -> fx.Node:
        """The weight with two columns of 0 and its scales divided by `divisor`."""
        edit = self.editor
        assert isinstance(weight, fx.Node)
        integers, scale, zero = weight.args[:3]
        assert isinstance(integers, fx.Node)
        assert isinstance(scale, fx.Node)
        value, scales = edit.value(integers), edit.value(scale)
        if value is None or scales is None:
            raise Unsupported(weight.name, "a quantised linear's weight is not a constant")
        key = value.data_ptr()
        if key not in self.weights:
            self.weights[key] = F.pad(value, (0, 2))
        padded = edit.constant(f"{integers.name}_padded", self.weights[key])
        if divisor != 1.0:
            scale = edit.constant(f"{scale.name}_steps", scales / divisor)
        return edit.call(DEQUANTIZE_CHANNEL, padded, scale, zero, *weight.args[3:])

    def _dynamic(self, x: fx.Node, weight: fx.Node, bias: object) -> fx.Node:
        edit = self.editor
        limits = (-128, 127)
        found = edit.call(quantized.choose_qparams.tensor, x, *limits, torch.finfo(torch.float32).eps, torch.int8)
        scale, zero = edit.item(found, 0), edit.item(found, 1)
        q = edit.call(quantized.quantize_per_tensor.tensor, x, scale, zero, *limits, torch.int8)
        real = edit.call(quantized.dequantize_per_tensor.tensor, q, scale, zero, *limits, torch.int8)
        return edit.call(aten.linear.default, real, weight, *([] if bias is None else [bias]))


def saturate(editor: ProgramEditor, x: fx.Node, grid: Grid) -> fx.Node:
    """`x` is steps from zero plus ROUNDER."""
    return editor.call(aten.hardtanh.default, x, ROUNDER + grid.low - grid.zero, ROUNDER + grid.high - grid.zero)


def rounded(editor: ProgramEditor, x: object, grid: Grid) -> fx.Node:
    """Real values -> saturated steps from zero plus ROUNDER."""
    scaled = editor.call(aten.mul.Tensor, x, editor.scalar(1.0 / grid.scale))
    return saturate(editor, editor.call(aten.add.Tensor, scaled, editor.scalar(ROUNDER)), grid)


def express_int16(editor: ProgramEditor) -> int:
    """Every 16-bit quantise/dequantise pair as exact float arithmetic; how many there were.

    Those that the program hands on as integers stay: a kernel outside of the delegate writes them.
    """
    count = 0
    for q in nodes(editor, QUANTIZE):
        grid = Grid.of(q)
        users = list(q.users)
        if grid.dtype != torch.int16 or (users and all(user.op == "output" for user in users)):
            continue
        if any(user.target is not DEQUANTIZE for user in users):
            raise Unsupported(q.name, "16-bit integers leave the program or are moved as integers")
        count += 1
        if users:
            with editor.standing_for(q):
                steps = editor.call(aten.sub.Tensor, rounded(editor, q.args[0], grid), editor.scalar(ROUNDER))
                real = editor.call(aten.mul.Tensor, steps, editor.scalar(grid.scale))
            for user in users:
                editor.replace(user, real)
    return count

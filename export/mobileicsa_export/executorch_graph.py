"""Passes that rewrite float regions and attention so that a whole method becomes one XNNPACK delegate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from mobileicsa.core.errors import Unsupported
from mobileicsa_export.executorch_editor import ProgramEditor, only_user, shape
from mobileicsa_export.executorch_quant import (
    DEQUANTIZE,
    QUANTIZE,
    ROUNDER,
    Grid,
    LinearPass,
    aten,
    express_int16,
    nodes,
    rounded,
    widen_int4,
)

CONCATENATED = 5  # tensors at most in one concatenation of XNNPACK's


def prepare(program: ExportedProgram, weights: dict[int, Tensor]) -> dict[str, int]:
    """Rewrite `program` in place; counts of what was expressed in which form.

    `weights`: padded weights, shared by the methods of one file.
    """
    editor = ProgramEditor(program)
    _drop_annotations(editor)
    _infer_open_sizes(editor)
    _adapter_products(editor)
    counts = widen_int4(editor)
    counts |= LinearPass(editor, weights).run()
    _gather_from_padded(editor, weights)
    edges = express_int16(editor)
    if edges:
        counts["int16_edges_in_float_arithmetic"] = edges
    _mean_as_linear(editor)
    _tanh_gelu(editor)
    _flatten_concatenations(editor)
    _load_before_concatenation(editor)
    for node in nodes(editor, aten.matmul.default):
        _attention_product(editor, node)
    _core_operators(editor)
    editor.finish()
    return counts


def _drop_annotations(editor: ProgramEditor) -> None:
    asserts = (aten._assert_tensor_metadata.default, aten._assert_scalar.default)
    for node in nodes(editor, *asserts, aten.alias.default):
        if node.users:
            editor.replace(node, node.args[0])  # type: ignore[arg-type]
        else:
            editor.graph.erase_node(node)


def _core_operators(editor: ProgramEditor) -> None:
    """The few operators left that ExecuTorch would trace the whole program again for, to decompose them."""
    for node in nodes(editor, aten.transpose.int):
        order = list(range(len(shape(node))))
        first, second = (int(d) for d in node.args[1:3])  # type: ignore[arg-type]
        order[first], order[second] = order[second], order[first]
        with editor.standing_for(node):
            editor.replace(node, _permuted(editor, node.args[0], order))
    for node in nodes(editor, aten.permute.default):
        with editor.standing_for(node):
            editor.replace(node, _permuted(editor, *node.args))
    for node in nodes(editor, aten.flatten.using_ints, aten.reshape.default):
        (source,) = node.all_input_nodes
        if source.meta["val"].is_contiguous():
            with editor.standing_for(node):
                editor.replace(node, editor.call(aten.view.default, source, shape(node)))
    for node in nodes(editor, aten.softmax.int):
        with editor.standing_for(node):
            editor.replace(node, editor.call(aten._softmax.default, *node.args[:2], False))
    for node in nodes(editor, aten.where.Scalar):
        condition, *values = node.args
        with editor.standing_for(node):
            scalars = [editor.scalar(float(v)) for v in values]  # type: ignore[arg-type]
            editor.replace(node, editor.call(aten.where.self, condition, *scalars))


def _permuted(editor: ProgramEditor, x: object, order: object) -> fx.Node:
    """As a copy: it is contiguous, so that a reshape after it needs no clone."""

    def copy(value: Tensor, axes: list[int]) -> Tensor:
        # What permute_copy gives, but it would fix a size that is left open.
        return value.permute(axes).clone(memory_format=torch.contiguous_format)

    return editor.call(aten.permute_copy.default, x, order, meaning=copy)


def _infer_open_sizes(editor: ProgramEditor) -> None:
    """Shapes that are computed of a size left open: XNNPACK infers that one itself."""
    for node in nodes(editor, aten.view.default, aten.reshape.default):
        if any(isinstance(size, fx.Node) for size in node.args[1]):  # type: ignore[union-attr]
            node.args = (node.args[0], _sizes(shape(node)))


def _sizes(of: Sequence[int | torch.SymInt]) -> list[int]:
    """A view's sizes; at most one may be open."""
    return [size if isinstance(size, int) else -1 for size in of]


def _adapter_products(editor: ProgramEditor) -> None:
    """An adapter's factors are inputs, which XNNPACK multiplies in float only: it reads the 8-bit input of its linear
    as float arithmetic that yields the same grid points, as 16-bit edges have it."""
    real: dict[fx.Node, fx.Node] = {}
    for node in nodes(editor, aten.matmul.default):
        x, factor = node.args
        assert isinstance(x, fx.Node)
        assert isinstance(factor, fx.Node)
        if factor.op != "placeholder" or x.target is not DEQUANTIZE or Grid.of(x).dtype != torch.int8:
            continue
        q = x.args[0]
        if not isinstance(q, fx.Node) or q.target is not QUANTIZE:
            raise Unsupported(node.name, "an adapter's input is not quantised where it is read")
        if x not in real:
            grid = Grid.of(x)
            with editor.standing_for(node):
                steps = editor.call(aten.sub.Tensor, rounded(editor, q.args[0], grid), editor.scalar(ROUNDER))
                real[x] = editor.call(aten.mul.Tensor, steps, editor.scalar(grid.scale))
        node.replace_input_with(x, real[x])


def _gather_from_padded(editor: ProgramEditor, weights: dict[int, Tensor]) -> None:
    """A tied head's table is gathered from its padded form, so that the file need not hold the plain one too."""
    for node in nodes(editor, aten.embedding.default):
        table = node.args[0]
        assert isinstance(table, fx.Node)
        value = editor.value(table)
        padded = None if value is None else weights.get(value.data_ptr())
        if padded is not None:
            with editor.standing_for(node):
                rows = editor.call(
                    aten.embedding.default, editor.constant(f"{table.name}_padded", padded), *node.args[1:]
                )
                width = shape(table)[-1]
                editor.replace(node, editor.call(aten.slice.Tensor, rows, len(shape(node)) - 1, 0, width))


def _mean_as_linear(editor: ProgramEditor) -> None:
    """XNNPACK has no mean over the last dimension, but a product with a row of 1/N; epsilon becomes its bias."""
    for node in nodes(editor, aten.mean.dim):
        x = node.args[0]
        assert isinstance(x, fx.Node)
        size = shape(x)[-1]
        with editor.standing_for(node):
            row = editor.constant("mean_row", torch.full((1, size), 1.0 / size))
            after = only_user(node)
            if after is not None and after.target is aten.add.Tensor and isinstance(after.args[1], float):
                bias = editor.scalar(after.args[1])
                editor.replace(after, editor.call(aten.linear.default, x, row, bias))
                editor.graph.erase_node(node)
            else:
                editor.replace(node, editor.call(aten.linear.default, x, row))


def _tanh_gelu(editor: ProgramEditor) -> None:
    """GELU by tanh in its parts: XNNPACK's one operator computes the other GELU, by erf, whichever is asked for."""
    for node in nodes(editor, aten.gelu.default):
        x = node.args[0]
        if node.kwargs.get("approximate") != "tanh":
            continue
        with editor.standing_for(node):
            squared = editor.call(aten.mul.Tensor, x, x)
            bent = editor.call(
                aten.add.Tensor, editor.call(aten.mul.Tensor, squared, editor.scalar(0.044715)), editor.scalar(1.0)
            )
            inner = editor.call(
                aten.mul.Tensor, editor.call(aten.mul.Tensor, x, editor.scalar(math.sqrt(2 / math.pi))), bent
            )
            gate = editor.call(aten.add.Tensor, editor.call(aten.tanh.default, inner), editor.scalar(1.0))
            editor.replace(
                node, editor.call(aten.mul.Tensor, editor.call(aten.mul.Tensor, x, editor.scalar(0.5)), gate)
            )


def _flatten_concatenations(editor: ProgramEditor) -> None:
    """cat(cat(prefix, past), new) -> cat(prefix, past, new), where the delegate takes so many."""
    for node in nodes(editor, aten.cat.default):
        parts: list[fx.Node] = []
        for part in node.args[0]:  # type: ignore[union-attr]
            inner = part.target is aten.cat.default and part.args[1:] == node.args[1:]  # type: ignore[union-attr]
            parts.extend(part.args[0] if inner else [part])  # type: ignore[union-attr, arg-type, list-item]
        if len(parts) <= CONCATENATED:
            node.args = (parts, *node.args[1:])


def _load_before_concatenation(editor: ProgramEditor) -> None:
    """dequantise(cat(past, new)) -> cat(dequantise(past), dequantise(new)): integers are not concatenated."""
    for node in nodes(editor, DEQUANTIZE):
        cat = node.args[0]
        assert isinstance(cat, fx.Node)
        if cat.target is aten.cat.default:
            with editor.standing_for(node):
                parts = [editor.call(DEQUANTIZE, part, *node.args[1:]) for part in cat.args[0]]  # type: ignore[union-attr]
                editor.replace(node, editor.call(aten.cat.default, parts, *cat.args[1:]))


def _attention_product(editor: ProgramEditor, node: fx.Node) -> None:
    """matmul over cached and new slots -> one batched product for each, without copying the cache together."""
    left, right = node.args
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    *batch, rows, inner = shape(left)
    if shape(right)[:-2] != batch:
        return
    count = int(torch.tensor(batch).prod())
    turned = _swaps_last_two(right)
    source = right.args[0] if turned else right
    assert isinstance(source, fx.Node)
    along = source.target is aten.cat.default and source.args[1] == len(batch)
    parts = list(source.args[0]) if along else [source]  # type: ignore[arg-type]
    with editor.standing_for(node):
        a = editor.call(aten.view.default, left, _sizes([count, rows, inner]))
        folded = [editor.call(aten.view.default, p, _sizes([count, *shape(p)[-2:]])) for p in parts]
        if turned:
            columns = [editor.call(aten.transpose.int, keys, 1, 2) for keys in folded]
            y = _join([editor.call(aten.bmm.default, a, keys) for keys in columns], editor)
        elif any(not isinstance(shape(values)[1], int) for values in folded):
            # XNNPACK has no slice of open size: values are few then, and copied together.
            y = editor.call(aten.bmm.default, a, editor.call(aten.cat.default, folded, 1))
        else:
            y, start = None, 0
            for values in folded:
                slots = shape(values)[1]
                chosen = a if len(folded) == 1 else editor.call(aten.slice.Tensor, a, 2, start, start + slots)
                part = editor.call(aten.bmm.default, chosen, values)
                y = part if y is None else editor.call(aten.add.Tensor, y, part)
                start += slots
        editor.replace(node, editor.call(aten.view.default, y, _sizes(shape(node))))


def _swaps_last_two(node: fx.Node) -> bool:
    if node.target is not aten.transpose.int:
        return False
    _, first, second = node.args
    assert isinstance(first, int)
    assert isinstance(second, int)
    rank = len(shape(node))
    return {first % rank, second % rank} == {rank - 2, rank - 1}


def _join(parts: list[fx.Node], editor: ProgramEditor) -> fx.Node:
    return parts[0] if len(parts) == 1 else editor.call(aten.cat.default, parts, 2)

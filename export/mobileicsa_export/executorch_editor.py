"""`ProgramEditor`: insert, replace and drop nodes and constants of an exported program, metadata kept right."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument


class ProgramEditor:
    """Edits `program` in place; call `finish` once at the end.

    Invariant: every node made here has `meta["val"]` and the module path of the node it stands for.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.program = program
        self.graph = program.graph
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        self._specs = dict(zip((n.name for n in placeholders), program.graph_signature.input_specs, strict=True))
        user_inputs = [n for n in placeholders if self._specs[n.name].kind == InputKind.USER_INPUT]
        self._first_input = user_inputs[0]
        self._mode: FakeTensorMode = user_inputs[0].meta["val"].fake_mode
        self._scalars: dict[float, fx.Node] = {}
        self._origin: fx.Node | None = None

    @contextmanager
    def standing_for(self, node: fx.Node) -> Iterator[None]:
        """Nodes made inside go before `node` and carry its module path."""
        before, self._origin = self._origin, node
        with self.graph.inserting_before(node):
            yield
        self._origin = before

    def call(self, target: Callable[..., Any], *args: Any, meaning: Callable[..., Any] | None = None) -> fx.Node:
        """`meaning`: what gives the result's shape and type, if not `target` itself."""
        node: fx.Node = self.graph.call_function(target, args)
        with self._mode:
            node.meta["val"] = (meaning or target)(*fx.map_arg(args, lambda n: n.meta["val"]))
        assert self._origin is not None
        for key in ("nn_module_stack", "stack_trace"):
            if key in self._origin.meta:
                node.meta[key] = self._origin.meta[key]
        return node

    def item(self, node: fx.Node, index: int) -> fx.Node:
        made: fx.Node = self.graph.call_function(operator.getitem, (node, index))
        made.meta["val"] = node.meta["val"][index]
        return made

    def constant(self, name: str, value: Tensor) -> fx.Node:
        with self.graph.inserting_before(self._first_input):
            node: fx.Node = self.graph.placeholder(name)
        node.target = node.name
        node.meta["val"] = self._mode.from_tensor(value, static_shapes=True)
        self._specs[node.name] = InputSpec(InputKind.BUFFER, TensorArgument(node.name), node.name, persistent=False)
        self.program.constants[node.name] = value
        return node

    def scalar(self, value: float) -> fx.Node:
        """One-element float32 constant, one node a value."""
        if value not in self._scalars:
            self._scalars[value] = self.constant("scalar", torch.tensor([value], dtype=torch.float32))
        return self._scalars[value]

    def value(self, node: fx.Node) -> Tensor | None:
        """The tensor of a parameter, buffer or constant; None for anything computed."""
        spec = self._specs.get(node.name)
        if spec is None or spec.target is None:
            return None
        found: Tensor | None = self.program.state_dict.get(spec.target)
        return found if found is not None else self.program.constants.get(spec.target)

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.graph.erase_node(node)

    def finish(self) -> None:
        """Drop what has no user, rebuild the signature, check the graph."""
        self.graph.eliminate_dead_code()
        kept, specs = set(), []
        for node in [n for n in self.graph.nodes if n.op == "placeholder"]:
            spec = self._specs[node.name]
            if not node.users and spec.kind != InputKind.USER_INPUT:
                self.graph.erase_node(node)
                continue
            kept.add(spec.target)
            specs.append(spec)
        outputs = self.graph.output_node().args[0]
        output_specs = list(self.program.graph_signature.output_specs)
        assert isinstance(outputs, tuple | list)
        for spec, node in zip(output_specs, outputs, strict=True):
            spec.arg = TensorArgument(node.name)
        self.program._graph_signature = ExportGraphSignature(specs, output_specs)
        for store in (self.program.state_dict, self.program.constants):
            for name in [n for n in store if n not in kept]:
                del store[name]
        self.graph.lint()
        self.program.graph_module.recompile()


def shape(node: fx.Node) -> list[int]:
    value: FakeTensor = node.meta["val"]
    return list(value.shape)


def only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None

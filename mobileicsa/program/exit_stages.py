"""An early-exit model as quantised stage programs: integers cross every border between stages.

Stage 0 takes an input (1, channels, height, width) float32, a later one the hidden state and the CLS history as the
stage before gave them: integers, read with the encoding that they were written with. All histories have one encoding,
so that a row's integers never change on their way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from mobileicsa.core.encoding import TensorEncoding, activation
from mobileicsa.core.errors import SchemeError
from mobileicsa.core.plan import WeightEncoding
from mobileicsa.core.scheme import QuantScheme
from mobileicsa.models.early_exit_vit import Embedding, ExitVit, Stage
from mobileicsa.models.primitive_vit import primitive_form
from mobileicsa.program.backend import Array
from mobileicsa.program.exact import DEQUANTIZE, QUANTIZE, run_exactly
from mobileicsa.program.qdq import Dequantize, Quantize

if TYPE_CHECKING:
    from mobileicsa.quantize.pt2e_specs import Specs

HISTORY = "history"
ALL_EXITS = "all_exits"
LOGITS = "linear"  # last part of the name of the linears that give them


def stage_name(exit: int) -> str:
    return f"stage_{exit}"


def border_name(exit: int) -> str:
    """Of the hidden state that the stage of this exit hands on."""
    return f"stage_{exit}.state"


class PatchLinear(nn.Module):
    """The embedding's convolution, whose patches do not overlap, as the linear that it is."""

    def __init__(self, embed: Embedding) -> None:
        super().__init__()
        weight = embed.patch.weight
        self.size = weight.shape[-1]
        self.patch = nn.Linear(weight[0].numel(), len(weight))
        self.patch.weight = nn.Parameter(weight.detach().flatten(1))
        assert embed.patch.bias is not None
        self.patch.bias = nn.Parameter(embed.patch.bias.detach())
        self.cls, self.position = embed.cls, embed.position

    def forward(self, inputs: Tensor) -> Tensor:
        batch, channels, height, width = inputs.shape
        size = self.size
        patches = inputs.reshape(batch, channels, height // size, size, width // size, size).permute(0, 2, 4, 1, 3, 5)
        rows = self.patch(patches.reshape(batch, -1, channels * size * size))
        return torch.cat([self.cls.expand(batch, -1, -1), rows], dim=1) + self.position


def patched(stage: Stage) -> bool:
    """Whether the stage has an embedding, which is then a linear."""
    if stage.embed is None:
        return False
    stage.embed = PatchLinear(stage.embed)  # type: ignore[assignment]
    return True


class BorderedStage(nn.Module):
    """A stage between its borders; the last one gives logits (1, classes) alone, another (logits, state, history)."""

    def __init__(self, stage: Stage, borders: dict[str, TensorEncoding]) -> None:
        super().__init__()
        exit = stage.exit
        self.stage = stage
        if not patched(stage):
            self.load_state = Dequantize(borders[border_name(exit - 1)])
            self.load_history = Dequantize(borders[HISTORY])
        if not stage.last:
            self.store_state = Quantize(borders[border_name(exit)])
            self.store_history = Quantize(borders[HISTORY])

    def forward(self, state: Tensor, history: Tensor | None = None) -> tuple[Tensor, ...]:
        if history is not None:
            state, history = self.load_state(state), self.load_history(history)
        logits, state, history = self.stage(state, history)
        if self.stage.last:
            return (logits,)
        return logits, self.store_state(state), self.store_history(history)


class AllExits(nn.Module):
    """The stages in a row: an input to the logits of every exit; computes nothing else than they do."""

    def __init__(self, stages: list[fx.GraphModule]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        handed: tuple[Tensor, ...] = (inputs,)
        found = []
        for stage in self.stages:
            logits, *rest = stage(*handed)
            handed = tuple(rest)
            found.append(logits)
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class ExitProgram:
    """`borders`: encodings by `border_name` and HISTORY; `stages`: the Q/DQ graphs, which are the simulator too;
    `first_blocks`: number, in the model, of each stage's first block."""

    first_blocks: tuple[int, ...]
    borders: dict[str, TensorEncoding]
    stages: list[fx.GraphModule]

    def run(self, exit: int, handed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return run_exactly(self.stages[exit], handed)


def quantize_exits(model: ExitVit, inputs: Tensor, scheme: QuantScheme, *, primitive: bool = False) -> ExitProgram:
    """Quantise each stage on what the quantised ones before it hand on of `inputs` (samples, channels, h, w).

    `primitive`: norms and softmax taken apart, every edge inside encoded too, for integer-only compilers; weights and
    borders are the same. Needs torchao.
    """
    from mobileicsa.quantize.pt2e_specs import SchemeSpecs

    specs, samples = SchemeSpecs(scheme), [(each[None],) for each in inputs]
    borders = border_encodings(model, inputs, scheme)
    return quantized_stages(model, borders, samples, lambda exit: specs, primitive=primitive)


def quantized_stages(
    model: ExitVit,
    borders: dict[str, TensorEncoding],
    samples: Sequence[tuple[Tensor, ...]],
    specs_of: Callable[[int], Specs],
    *,
    primitive: bool,
) -> ExitProgram:
    """`samples`: what stage 0 takes of each; `specs_of` a stage: its encodings."""
    from mobileicsa.quantize.pt2e import SchemeQuantizer, quantize_module

    form = primitive_form(model) if primitive else model
    handed, stages = list(samples), []
    for exit in range(len(model.spec.exits)):
        bordered = BorderedStage(form.stage(exit), borders)
        quantizer = SchemeQuantizer(specs_of(exit), LOGITS, primitive=primitive)
        graph = quantize_module(bordered, handed, quantizer)
        with torch.no_grad():
            handed = [tuple(graph(*each)[1:]) for each in handed]
        stages.append(graph)
    return ExitProgram(borders=borders, stages=stages, first_blocks=first_blocks(model))


def first_blocks(model: ExitVit) -> tuple[int, ...]:
    return (0, *model.spec.exits[:-1])


def border_encodings(model: ExitVit, inputs: Tensor, scheme: QuantScheme) -> dict[str, TensorEncoding]:
    """From the float ranges of what crosses the borders."""
    ranges: dict[str, tuple[float, float]] = {}
    state, history = inputs, None
    with torch.no_grad():
        for exit in range(len(model.spec.exits) - 1):
            _, state, history = model.stage(exit)(state, history)
            assert history is not None
            ranges[border_name(exit)] = (float(state.min()), float(state.max()))
            low, high = ranges.get(HISTORY, (0.0, 0.0))
            ranges[HISTORY] = (min(low, float(history.min())), max(high, float(history.max())))
    bits, mantissa = scheme.bits("residual"), scheme.mantissa_bits("residual")
    return {name: activation(low, high, bits, mantissa) for name, (low, high) in ranges.items()}


def export_stages(program: ExitProgram, example: Tensor, *, all_exits: bool = True) -> dict[str, ExportedProgram]:
    """Each stage by name, and ALL_EXITS unless not wanted; `example` is an input (1, channels, height, width)."""
    handed: tuple[Tensor, ...] = (example,)
    exported = {}
    with torch.no_grad():
        for exit, stage in enumerate(program.stages):
            exported[stage_name(exit)] = torch.export.export(stage, handed, strict=False)
            handed = program.run(exit, handed)[1:]
        if all_exits:
            exported[ALL_EXITS] = torch.export.export(AllExits(program.stages), (example,), strict=False)
    return exported


def edges_of(program: ExitProgram) -> dict[str, TensorEncoding]:
    """Encodings of all quantised tensors inside the stages by `stage_<e>/<node>`, and of the borders by their names."""
    found = dict(program.borders)
    for exit, stage in enumerate(program.stages):
        for node in stage.graph.nodes:
            if node.target is QUANTIZE and _computed(node.args[0]):
                scale, zero, _, _, dtype = node.args[1:]
                encoding = TensorEncoding(bits=torch.iinfo(dtype).bits, scale=(scale,), zero_point=(zero,))
                found[f"{stage_name(exit)}/{node.args[0].name}"] = encoding
    return found


class FloatStage(nn.Module):
    """A stage of the float model, with what a quantised one takes and gives."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        patched(stage)
        self.stage = stage

    def forward(self, state: Tensor, history: Tensor | None = None) -> tuple[Tensor, ...]:
        given = self.stage(state, history)
        return tuple(given[:1] if self.stage.last else given)


def export_float_stages(model: ExitVit, example: Tensor) -> dict[str, ExportedProgram]:
    """Each stage of the float model by name."""
    handed: tuple[Tensor, ...] = (example,)
    exported = {}
    with torch.no_grad():
        for exit in range(len(model.spec.exits)):
            stage = FloatStage(model.stage(exit))
            exported[stage_name(exit)] = torch.export.export(stage, handed, strict=False)
            handed = stage(*handed)[1:]
    return exported


def _computed(node: fx.Node) -> bool:
    """Neither an input nor a border that is written with an encoding of its own."""
    return node.op == "call_function" and node.target is not DEQUANTIZE


def weights_of(program: ExitProgram) -> tuple[dict[str, WeightEncoding], dict[str, Tensor]]:
    """Encodings and integers (with `<name>.scale`) of the weights by the model's names; one for all their uses."""
    encodings: dict[str, WeightEncoding] = {}
    tensors: dict[str, Tensor] = {}
    for first, stage in zip(program.first_blocks, program.stages, strict=True):
        for linear in stage.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default):
            name, weight = weight_name(linear, first), linear.args[1]
            integers, scale = (getattr(stage, str(argument.target)) for argument in weight.args[:2])
            if name in tensors and not torch.equal(tensors[name], integers):
                raise SchemeError(f"{name}: has other integers in another stage")
            encodings[name] = WeightEncoding(bits=4 if weight.args[5] == 7 else 8)
            tensors[name], tensors[f"{name}.scale"] = integers.clone(), scale.clone()
    return encodings, tensors


def weight_name(linear: fx.Node, first_block: int) -> str:
    """The model's name of a linear's weight; a stage counts its own blocks from 0."""
    from mobileicsa.quantize.pt2e import module_path

    path = module_path(linear).removeprefix("stage.")
    room, _, rest = path.partition(".")
    if room != "blocks":
        return f"{path}.weight"
    number, _, rest = rest.partition(".")
    return f"blocks.{first_block + int(number)}.{rest}.weight"


class SimulatorStages:
    """The stage graphs behind a back end's interface."""

    def __init__(self, program: ExitProgram) -> None:
        self._stages = {stage_name(exit): stage for exit, stage in enumerate(program.stages)}

    def run(self, name: str, inputs: Sequence[Array]) -> list[Array]:
        found = run_exactly(self._stages[name], tuple(torch.from_numpy(each) for each in inputs))
        return [value.numpy() for value in found]

    def close(self) -> None: ...

"""model_dynamic.onnx, which onnxruntime-genai and optimum load: any number of tokens behind a past of any length.

It reads the weight data of our own files, and has the inputs and outputs of Hugging Face's exports; the past is int8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.methods import input_names, output_names
from mobileicsa.program.stock import export_growing, free_slots, prefix_length
from mobileicsa_export.onnx_graph import constant, convert, drop_unused, to_qdq_form
from mobileicsa_export.onnx_lowering import Kernels, lower
from mobileicsa_export.onnx_names import rename

DYNAMIC_FILE = "model_dynamic.onnx"
GENAI_CONFIG = "genai_config.json"
# Kernels that every CPU's ONNX Runtime has: which CPU will load the file is not known when it is written.
KERNELS = Kernels(unsigned=True, mixed_sign_exact=False)
# The sums are exact with this entry on x86 without VNNI too, and the file needs no fusion of ONNX Runtime's own.
SESSION_ENTRIES = {"session.x64quantprecision": "1", "session.disable_quant_qdq": "1"}
POSITIONS, KEYS, POSITION_IDS = "positions", "keys", "position_ids"


def write_dynamic(
    decoder: Decoder, target: Target, bits: Mapping[str, int], folder: Path, tokenizer_dir: str
) -> ir.Model:
    """The model, its weights still in memory; writes genai_config.json."""
    spec = decoder.spec
    sizes = _Sizes(spec, prefix_length(decoder))
    model = convert(export_growing(decoder, target, sizes.tokens, sizes.past), target.opset)
    to_qdq_form(model, bits)
    ids, _, *past = input_names(spec)
    rename(model, [ids, POSITIONS, KEYS, *past], output_names(spec))
    sizes.free(model.graph)
    lower(model, KERNELS)
    drop_unused(model.graph)
    config = genai_config(spec, free_slots(decoder, target), tokenizer_dir)
    (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return model


class _Sizes:
    """The number of tokens and of past rows in an exported graph, which stand nowhere but in its reshapes.

    They are chosen to be no size of the model, so that `free` can tell what they are.
    """

    def __init__(self, spec: ModelSpec, prefix: int) -> None:
        self.prefix, self.group = prefix, spec.num_heads // spec.num_kv_heads
        self.own = {spec.hidden_size, spec.intermediate_size, spec.vocab_size, spec.head_dim}
        self.own |= {spec.num_heads, spec.num_kv_heads, spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim}
        self.tokens = 1009
        while self.own & {self.tokens, self.rows, self.keys}:
            self.tokens += 2

    @property
    def past(self) -> int:
        return self.tokens + 4

    @property
    def rows(self) -> int:
        return self.group * self.tokens

    @property
    def keys(self) -> int:
        return self.prefix + self.past + self.tokens

    def free(self, graph: ir.Graph) -> None:
        """Put the sizes of each call in place of those of the export."""
        make = _Maker(graph)
        ids, positions, keys, *past = graph.inputs
        places = ir.Value(name=POSITION_IDS, type=ir.TensorType(ir.DataType.INT64))
        tokens = make("Shape", [ids], {"start": 1, "end": 2}, "tokens")
        before = make("Shape", [past[0]], {"start": 2, "end": 3}, "past")
        first = make("Squeeze", [places, make.vector([0], "axis")], {}, "first_row")
        if self.prefix:
            before = make("Add", [before, make.vector([self.prefix], "prefix")], {}, "before")
            first = make("Add", [first, make.vector([self.prefix], "prefix")], {}, POSITIONS)
        total = make("Add", [before, tokens], {}, "total")
        zero, one = make.scalar(0, "zero"), make.scalar(1, "one")
        every = make("Range", [zero, make("Squeeze", [total], {}, "count"), one], {}, KEYS)
        for old, new in ((positions, first), (keys, every)):
            old.replace_all_uses_with(new)
            graph.inputs.remove(old)
        graph.inputs.insert(1, places)
        marks = {self.tokens: tokens, self.rows: make("Mul", [tokens, make.vector([self.group], "group")], {}, "rows")}
        marks[self.keys] = total
        known: dict[tuple[int, ...], ir.Value] = {}
        for node in list(graph):
            if node.op_type == "Reshape" and (stored := node.inputs[1].const_value) is not None:
                shape = tuple(int(size) for size in stored.numpy())
                if marks.keys() & set(shape):
                    if shape not in known:
                        known[shape] = self._shape(make, shape, marks)
                    node.replace_input_with(1, known[shape])
        _symbolic(graph)

    @staticmethod
    def _shape(make: _Maker, shape: tuple[int, ...], marks: Mapping[int, ir.Value]) -> ir.Value:
        """One size of the call may be left to the runtime, further ones must be given."""
        first = next(size for size in shape if size in marks)
        label = "x".join(str(marks[size].name).removeprefix("inputs/") if size in marks else str(size) for size in shape)
        parts = [make.vector([-1 if size == first else size], f"size/{size}") for size in shape]
        if sum(size in marks for size in shape) == 1:
            return make.vector([-1 if size == first else size for size in shape], label)
        parts = [
            marks[size] if size in marks and size != first else part for size, part in zip(shape, parts, strict=True)
        ]
        return make("Concat", parts, {"axis": 0}, label)


class _Maker:
    """Puts int64 nodes and constants in front of a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph, self._before = graph, next(iter(graph))

    def __call__(self, op: str, inputs: list[ir.Value], attributes: dict[str, int], name: str) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"inputs/{name}")
        node.outputs[0].name, node.outputs[0].dtype = f"inputs/{name}", ir.DataType.INT64
        self.graph.insert_before(self._before, node)
        return node.outputs[0]

    def vector(self, numbers: list[int], name: str) -> ir.Value:
        return self._constant(np.array(numbers, dtype=np.int64), name)

    def scalar(self, number: int, name: str) -> ir.Value:
        return self._constant(np.array(number, dtype=np.int64), name)

    def _constant(self, array: np.ndarray, name: str) -> ir.Value:
        full = f"inputs/{name}/value"
        held = self.graph.initializers.get(full)
        return held if held is not None else constant(self.graph, full, ir.tensor(array))


def _symbolic(graph: ir.Graph) -> None:
    """Names for the free sizes of what enters and leaves; what lies between follows from it."""
    ids, places, *past = graph.inputs
    logits, *present = graph.outputs
    ids.shape, places.shape = ir.Shape((1, "tokens")), ir.Shape((1, "tokens"))
    logits.shape = ir.Shape((1, "tokens", logits.shape[2]))
    for values, name in ((past, "past"), (present, "total")):
        for value in values:
            value.shape = ir.Shape((1, value.shape[1], name, value.shape[3]))


def genai_config(spec: ModelSpec, slots: int, tokenizer_dir: str) -> dict[str, Any]:
    """What onnxruntime-genai reads beside the model; `slots`: tokens of a conversation behind the prefix."""
    end = list(spec.eos_ids)
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": -1 if spec.bos_id is None else spec.bos_id,
            "eos_token_id": end or [-1],
            "pad_token_id": end[0] if end else 0,
            "context_length": slots,
            "vocab_size": spec.vocab_size,
            "tokenizer_dir": tokenizer_dir,
            "decoder": {
                "filename": DYNAMIC_FILE,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], **SESSION_ENTRIES},
                "head_size": spec.head_dim,
                "hidden_size": spec.hidden_size,
                "num_attention_heads": spec.num_heads,
                "num_key_value_heads": spec.num_kv_heads,
                "num_hidden_layers": spec.num_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "position_ids": POSITION_IDS,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": slots, "past_present_share_buffer": False},
    }

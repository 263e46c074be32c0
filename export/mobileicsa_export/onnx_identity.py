"""Is a written ONNX file the one that the caller means? Its metadata, inputs and outputs, whatever runtime reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.program.methods import input_names, output_names
from mobileicsa_export.onnx import METADATA_KEYS
from mobileicsa_export.onnx_adapter import optional_inputs


def check_identity(path: Path, model: ir.Model, spec: ModelSpec, method: str) -> None:
    """A sound file of another model or method must not run; nor one cut where its last fields begin."""
    facts, graph = model.metadata_props, model.graph
    if not set(facts) >= METADATA_KEYS:
        raise VerificationError(f"{path}: lacks its metadata {sorted(METADATA_KEYS - set(facts))}: is it whole?")
    if facts["method"] != method:
        raise VerificationError(f"{path}: holds the method {facts['method']}, expected {method}")
    optional = optional_inputs(graph)  # factors of adapters, behind all others
    found = ([i.name for i in graph.inputs], [o.name for o in graph.outputs])
    if found != ([*input_names(spec), *optional], output_names(spec)):
        raise VerificationError(f"{path}: its inputs and outputs are not those of this {spec.num_layers}-layer model")
    shape = graph.outputs[0].shape
    vocabulary = shape[-1] if shape is not None else None
    if vocabulary != spec.vocab_size:
        raise VerificationError(f"{path}: has {vocabulary} logits, the model {spec.vocab_size}")


def check_target(path: Path, facts: Mapping[str, str], target: Target) -> None:
    """VerificationError where a file with the metadata `facts` was written for another target than the artifact's."""
    found = facts["target"]
    if found != target.name:
        raise VerificationError(
            f"{path}: was written for target {found}, expected {target.name}",
            hint="export the artifact again for the target that you need",
        )

"""Compiled models: a small ONNX file whose one operator names a context binary, and what the one says of the other.

All is read before the emulator reads anything: of a damaged binary it may make anything, or crash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mobileicsa.core.errors import VerificationError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.hashing import sha256_file
from mobileicsa.io.paths import inside
from mobileicsa_export.onnx_data import save_model
from mobileicsa_export.onnx_identity import check_identity, check_target
from mobileicsa_export.onnx_load import load_graph

CONTEXT_OP, BINARY = "EPContext", "ep_cache_context"
LOGITS, DIGEST = "logits_encoding", "context_sha256"  # metadata
AGAIN = "the file is damaged or was exchanged: copy or export it again"


def describe(path: Path, description: Mapping[str, str]) -> None:
    """Put `description` and the digest of its binary into a compiled model. WriteFault where the disk is full."""
    model = ir.load(path)
    model.metadata_props.update({**description, DIGEST: sha256_file(_binary(path, model))})
    save_model(model, path)


def outside_nodes(path: Path) -> list[str]:
    """Operators of a compiled model that are not in a context binary."""
    return [node.op_type for node in ir.load(path).graph if node.op_type != CONTEXT_OP]


def check_context(path: Path, spec: ModelSpec, method: str, target: Target) -> tuple[np.float32, int]:
    """Scale and zero point of the integer logits of a compiled model.

    VerificationError where it, or its binary, is damaged or of another model, method or target.
    """
    model = load_graph(path)
    check_identity(path, model, spec, method)
    check_target(path, model.metadata_props, target)
    binary = _binary(path, model)
    if not binary.is_file():
        raise VerificationError(f"{binary}: is missing", hint="export the artifact again")
    if sha256_file(binary) != model.metadata_props.get(DIGEST):
        raise VerificationError(f"{binary}: is not what {path.name} says", hint=AGAIN)
    try:
        scale, zero = json.loads(model.metadata_props[LOGITS])
        return np.float32(scale), int(zero)
    except (KeyError, TypeError, ValueError) as error:
        raise VerificationError(f"{path}: metadata {LOGITS} is missing or malformed", hint=AGAIN) from error


def _binary(path: Path, model: ir.Model) -> Path:
    """InputError where the name leads out of the folder."""
    names = [node.attributes[BINARY].value for node in model.graph if BINARY in node.attributes]
    if len(names) != 1 or not isinstance(names[0], str):
        raise VerificationError(f"{path}: names {len(names)} context binaries, not one", hint=AGAIN)
    return inside(path.parent, names[0])

"""OpenVINO back end: the portable QDQ models on a second, independent integer engine, OpenVINO's CPU device."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.models.decoder import Decoder
from mobileicsa.program.backend import Session, Written
from mobileicsa_export.onnx import MODEL_FILES, OnnxBackend

INSTALL = "pip install 'mobileicsa[openvino]'"


class OpenvinoBackend:
    """Writes the ONNX back end's files, unchanged; OpenVINO reads them as openvino_reading.py says."""

    name = "openvino"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return f"openvino not installed: {INSTALL}"
        return OnnxBackend().unavailable()

    def write(self, decoder: Decoder, target: Target, folder: Path, metadata: dict[str, Any]) -> Written:
        """Also compiles the decode step here, for `unsupported`: products with a weight that OpenVINO runs in float."""
        from mobileicsa_export.onnx_load import load_graph
        from mobileicsa_export.openvino_placement import operators, unsupported

        written = OnnxBackend().write(decoder, target, folder, metadata)
        graph = load_graph(folder / MODEL_FILES["decode"]).graph
        placement = self.placement(folder, target)
        fallbacks = placement["fallbacks"]
        facts = {
            "delegated_share": 1.0 - len(fallbacks) / max(operators(graph), 1),
            "unsupported": unsupported(graph, fallbacks),
            "estimates": {},
            "placement": placement,
        }
        return Written(files=written.files, facts={**written.facts, **facts})

    def open(self, folder: Path, spec: ModelSpec, target: Target, *, threads: int | None = None) -> Session:
        from mobileicsa_export.openvino_session import OpenvinoSession

        return OpenvinoSession(folder, spec, target, threads=threads)

    def placement(self, folder: Path, target: Target) -> dict[str, Any]:
        from mobileicsa_export.openvino_placement import placement

        return placement(folder, primitive=target.nonlinear == "primitive")

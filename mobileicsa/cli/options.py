"""Flags that several commands share, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, messages on standard error.")
]
ArtifactFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Artifact folder written by `mobileicsa quantize`.", show_default=False)
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="CPU threads of the runtime; by default it decides.")
]
AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", metavar="NAME", help="One of the artifact's adapters; without it the base alone."),
]
SaturationOption = Annotated[
    float | None,
    typer.Option(
        "--max-adapter-saturation",
        metavar="X",
        help="Refuse an adapter with which an edge saturates more than X of its values beyond the base's; "
        "default: 0.01.",
    ),
]
LayersOption = Annotated[
    str | None,
    typer.Option("--layers", metavar="START:STOP", help="Only these decoder layers, as Python slices count them."),
]
TargetOption = Annotated[
    str | None, typer.Option("--target", metavar="NAME", help="For which target; by default the artifact's first.")
]

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
TargetOption = Annotated[
    str | None, typer.Option("--target", metavar="NAME", help="Which of the artifact's targets; by default its first.")
]

"""`mobileicsa inspect`: every tensor's encoding, the operators of each file, bytes per weight."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobileicsa.cli.answer import Answer
from mobileicsa.cli.options import ArtifactFolder, JsonFlag
from mobileicsa.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """
  mobileicsa inspect out
  mobileicsa inspect out --edges "layers.0.attn" --json
"""


def inspect(
    context: typer.Context,
    folder: ArtifactFolder,
    edges: Annotated[str, typer.Option("--edges", help="Only edges whose name matches this regular expression.")] = "",
    as_json: JsonFlag = False,
) -> Answer:
    """What is inside an artifact: encodings, operators, sizes."""
    from mobileicsa.artifact import layout
    from mobileicsa.artifact.manifest import read_manifest
    from mobileicsa.core.plan import QuantPlan
    from mobileicsa.io.json_file import read_json

    try:
        wanted = re.compile(edges)
    except re.error as error:
        raise UsageError(f"--edges {edges}: not a regular expression: {error}") from error
    read_manifest(folder)
    plan = QuantPlan.from_json(read_json(folder / layout.PLAN, max_bytes=layout.MAX_JSON_BYTES))
    report = read_json(folder / layout.REPORT, max_bytes=layout.MAX_JSON_BYTES)
    document: dict[str, Any] = {
        "folder": str(folder),
        "scheme": plan.scheme.name,
        "prefix_ids": list(plan.prefix_ids),
        "edges": {name: e.to_json() for name, e in plan.edges.items() if wanted.search(name)},
        "weights": {name: {"bits": w.bits, "axis": 0} for name, w in plan.weights.items()},
        "targets": report["targets"],
    }

    def show(console: Console) -> None:
        console.print(
            f"{folder}: {plan.scheme.name}, {len(plan.edges)} edges, {len(plan.weights)} weights", markup=False
        )
        for name, e in document["edges"].items():
            console.print(f"{name}  int{e['bits']}  scale {e['scale'][0]:.6g}  zero {e['zero_point'][0]}", markup=False)
        for target, written in document["targets"].items():
            for backend, row in written.items():
                console.print(f"{target}/{backend}: {row['files']}", markup=False)
                console.print(f"  {row['facts']}", markup=False)

    return Answer(document=document, show=show)

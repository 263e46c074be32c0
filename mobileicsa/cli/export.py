"""`mobileicsa export`: an artifact's program for another target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobileicsa.artifact.manifest import DECODER, EARLY_EXIT
from mobileicsa.cli import exits
from mobileicsa.cli.answer import Answer
from mobileicsa.cli.kinds import for_artifact
from mobileicsa.cli.options import ArtifactFolder, JsonFlag, LayersOption, SaturationOption

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """
  mobileicsa targets
  mobileicsa export out --target generic-npu --output out-npu
  mobileicsa export out --target host-cpu --adapter ./lora --output out-lora
  mobileicsa export out --target tosa --layers 0:2 --output out-tosa --json
  mobileicsa export exits --target tosa --output exits-tosa
"""


def export(
    context: typer.Context,
    folder: ArtifactFolder,
    target: Annotated[
        str, typer.Option("--target", metavar="NAME", help="What to write for; see `mobileicsa targets`.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "--output_dir", metavar="DIR", help="Folder to write."),
    ],
    layers: LayersOption = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="NAME|DIR",
            help="An adapter of the artifact's, or the folder of a new one; repeatable; the program has room for all.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", metavar="FILE", help="Text to look at new adapters' ranges on, .txt or .jsonl."),
    ] = None,
    max_adapter_saturation: SaturationOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output when done.")] = False,
    as_json: JsonFlag = False,
) -> Answer:
    """Write an artifact's program for another target. Nothing is quantised again."""
    further = {
        "layers": layers,
        "adapters": adapter or None,
        "calibration": calibration,
        "max_adapter_saturation": max_adapter_saturation,
    }
    return for_artifact(HANDLERS, folder)(context.obj, folder, target, output, overwrite, further)


def _export_decoder(
    screen: Any, folder: Path, target: str, output: Path, overwrite: bool, further: dict[str, Any]
) -> Answer:
    from mobileicsa import api

    given = {name: value for name, value in further.items() if value is not None}
    with screen.progress() as progress:
        made = api.export(folder, target, output, overwrite=overwrite, **given, progress=progress)
    document = {**made, "output": str(output)}
    return Answer(document=document, show=lambda console: _show(console, document))


HANDLERS = {DECODER: _export_decoder, EARLY_EXIT: exits.export}


def _show(console: Console, made: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import share, show_facts, show_table, size
    from mobileicsa.report.adapters import adapter_words

    rows = [
        (f"{backend}/{name}", size(file["bytes"]))
        for backend, written in made["backends"].items()
        for name, file in written["files"].items()
    ]
    show_table(console, ("file", "size"), rows)
    console.print()
    show_facts(
        console,
        [
            ("delegated", f"{share(made['delegated_share'])} of the operators"),
            ("float tensors", str(made["float_tensors"])),
            *(("adapter", adapter_words(facts)) for facts in made.get("adapters", {}).values()),
            *((f"estimate: {name}", str(value)) for name, value in made["estimates"].items()),
        ],
    )
    for row in made["unsupported"]:
        console.print(f"not as planned  {row['op']}: {row['reason']}", markup=False, style="bold red", soft_wrap=True)
    console.print(f"\nwrote {made['output']} for {made['target']}", markup=False)

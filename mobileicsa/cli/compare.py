"""`mobileicsa compare`: what the artifact writes and what the float model writes, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobileicsa.cli.answer import Answer
from mobileicsa.cli.options import ArtifactFolder, JsonFlag, TargetOption, ThreadsOption
from mobileicsa.core.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from mobileicsa.artifact.model import FloatModel

EXAMPLES = """
  mobileicsa compare out
  mobileicsa compare out --backend onnx --tokens 64 --count 5
  mobileicsa compare out --prompts mine.txt --reference ./my-model --json
"""
# Of the texts behind the first difference, in the terminal.
SHOWN_CHARACTERS = 24


def compare(
    context: typer.Context,
    folder: ArtifactFolder,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help="One prompt a line, or .jsonl with a text field; else our own."),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", min=1, help="Longest text behind a prompt.")] = 256,
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, help="How many prompts, from the first.")] = 20,
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAME", help="simulator, onnx or executorch.")
    ] = "simulator",
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="NAME", help="The float model; by default the one named in the report."),
    ] = None,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Keep the texts in the artifact's report.")] = True,
    target: TargetOption = None,
    threads: ThreadsOption = None,
    as_json: JsonFlag = False,
) -> Answer:
    """Let artifact and float model write, side by side.

    Greedy texts for the same prompts. Finished pairs are kept at once: what was interrupted goes on where it stopped.
    """
    from mobileicsa.artifact.model import QuantizedModel
    from mobileicsa.calibrate.text import read_lines
    from mobileicsa.cli.progress import Share
    from mobileicsa.evaluate import side_by_side
    from mobileicsa.report.record import read_report, record

    chosen = (side_by_side.BUNDLED if prompts is None else read_lines(prompts))[:count]
    kept: list[int] = []

    def keep(found: dict[str, Any]) -> None:
        record(folder, "comparison", found)
        kept.append(len(found["pairs"]))

    steps = [Share(side_by_side.step_title(index, len(chosen)), 1.0) for index in range(len(chosen))]
    with context.obj.progress(steps) as progress:
        tick = progress.step("open models", 2)
        model = QuantizedModel.from_pretrained(folder, backend=backend, target=target, threads=threads)
        tick()
        report = read_report(folder)
        original = _reference(reference, report["model"]["name"])
        tick()
        try:
            result = side_by_side.compare(
                model,
                original,
                chosen,
                tokens=tokens,
                before=report.get("comparison") if save else None,
                keep=keep if save else None,
                progress=progress,
            )
        except BaseException as error:
            if kept:
                error.add_note(f"{kept[-1]} of {len(chosen)} pairs are kept: the same command goes on behind them")
            raise
    document = {"folder": str(folder), **result}
    return Answer(document=document, show=lambda console: _show(console, document, save))


def _reference(given: str | None, reported: str) -> FloatModel:
    from mobileicsa.artifact.model import FloatModel

    try:
        return FloatModel.from_pretrained(given or reported)
    except InputError as error:
        if given is not None:
            raise
        raise InputError(
            f"{reported}: the artifact was made from a model of this name, which is not found here: {error.message}",
            hint="say where it is with --reference",
        ) from error


def _show(console: Console, result: dict[str, Any], saved: bool) -> None:
    from mobileicsa.cli.tables import share, show_facts, show_table

    rows = [
        (
            _short(pair["prompt"]),
            _goes_on(pair["float"]),
            _goes_on(pair["artifact"]),
            pair["equal_tokens"],
            pair["tokens"],
        )
        for pair in result["pairs"]
    ]
    show_table(console, ("prompt", "float goes on", "artifact goes on", "equal", "of"), rows, left=3)
    console.print()
    show_facts(
        console,
        [
            ("artifact", f"{result['folder']} on {result['backend']}"),
            ("reference", result["reference"]),
            ("equal tokens", f"{share(result['token_agreement'])} before the first difference"),
            ("identical texts", f"{result['identical']} of {result['prompts']}"),
            ("warning", result["warning"]),
            ("saved", "whole texts in report.json and report.html of the artifact" if saved else None),
        ],
    )


def _goes_on(side: dict[str, Any]) -> str | None:
    """A text from its first differing token on; None where none differs."""
    if "differs" not in side:
        return None
    return _short(side["text"][side["differs"][0] :]) or "(ends)"


def _short(text: str) -> str:
    # A model may write control characters, which a terminal would obey.
    piece = "".join(char if char.isprintable() else "·" for char in text[:SHOWN_CHARACTERS].replace("\n", "↵"))
    return piece + ("…" if len(text) > SHOWN_CHARACTERS else "")

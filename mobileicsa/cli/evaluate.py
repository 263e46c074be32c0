"""`mobileicsa eval`: perplexity of a model or artifact, and its distance to the float model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobileicsa.cli.answer import Answer
from mobileicsa.cli.options import AdapterOption, JsonFlag, TargetOption, ThreadsOption

if TYPE_CHECKING:
    from rich.console import Console

    from mobileicsa.artifact.model import FloatModel, QuantizedModel

EXAMPLES = """
  mobileicsa eval --model smollm2-135m --text wiki.txt --max-windows 40
  mobileicsa eval --model out --backend onnx --text wiki.txt --max-windows 40
  mobileicsa eval --model out --text wiki.txt --reference smollm2-135m --json
  mobileicsa eval --model out --text wiki.txt --by-position
  mobileicsa eval --model out --adapter news --text news.txt
  mobileicsa eval --model out --backend tosa --text wiki.txt --max-windows 2
"""


def evaluate(
    context: typer.Context,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Artifact folder, model folder, bundled name or hub id.")
    ],
    text: Annotated[Path, typer.Option("--text", metavar="FILE", help="UTF-8 .txt or .jsonl file to predict.")],
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="float for models; simulator (default), onnx, executorch or another of `mobileicsa targets` for "
            "artifacts, which are lowered first for what they were not exported for.",
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", metavar="N", help="Tokens in a window, BOS included; 256, and 2048 with --by-position."
        ),
    ] = None,
    max_windows: Annotated[
        int | None, typer.Option("--max-windows", metavar="N", help="Stop after so many windows.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", metavar="N", help="Step between windows; by default they do not overlap.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="NAME", help="Float model to compare with: adds KL divergence and top-1 agreement."
        ),
    ] = None,
    by_position: Annotated[
        bool,
        typer.Option(
            "--by-position",
            help="Loss by position in the window; with --reference, which then reads the artifact's prefix too, "
            "whether it drifts away from float.",
        ),
    ] = False,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Keep the result in the artifact's report.")] = True,
    adapter: AdapterOption = None,
    target: TargetOption = None,
    threads: ThreadsOption = None,
    as_json: JsonFlag = False,
) -> Answer:
    """Measure perplexity on a text.

    Every token counts once; BOS (or the artifact's prefix) starts each window.
    """
    from mobileicsa.artifact.lowered import open_for
    from mobileicsa.artifact.model import is_artifact, load_model
    from mobileicsa.calibrate.text import read_text
    from mobileicsa.evaluate import by_position as positions
    from mobileicsa.evaluate import perplexity
    from mobileicsa.report.record import calibration_facts, record_evaluation, record_positions

    if window is None:
        window = positions.WINDOW if by_position else perplexity.WINDOW
    content = read_text(text)
    with context.obj.progress() as progress:
        tick = progress.step("open model", 1 if reference is None else 2)
        loaded = open_for(model, backend, progress, target=target, threads=threads, adapter=adapter)
        tick()
        compared = None
        if reference is not None:
            compared = load_model(reference, "float")
            tick()
        prefix = _shared_prefix(loaded, compared) if by_position else None
        result = perplexity.evaluate(
            loaded,
            content,
            window=window,
            max_windows=max_windows,
            stride=stride,
            reference=compared,
            by_position=by_position,
            calibration=calibration_facts(Path(model)) if is_artifact(model) else None,
            progress=progress,
        )
    if prefix is not None:
        result["reference_prefix"] = prefix
    saved = save and is_artifact(model) and adapter is None  # the report's figures are the base's
    if saved:
        keep = record_positions if by_position else record_evaluation
        keep(Path(model), text.name, result, target)
    document = {"model": model, "adapter": adapter, "text": text.name, **result}
    return Answer(document=document, show=lambda console: _show(console, document, saved))


def _shared_prefix(
    model: QuantizedModel | FloatModel, reference: QuantizedModel | FloatModel | None
) -> list[int] | None:
    """The artifact's prefix, behind which the reference predicts from now on, too: what a prefix changes at the start
    of a window would pass for drift. None where there is none."""
    from mobileicsa.artifact.model import FloatModel, QuantizedModel

    if not isinstance(model, QuantizedModel) or not isinstance(reference, FloatModel) or not model.plan.prefix_ids:
        return None
    reference.start_behind(model.plan.prefix_ids)
    return list(model.plan.prefix_ids)


def _show(console: Console, result: dict[str, Any], saved: bool) -> None:
    from mobileicsa.cli.tables import number, share, show_facts

    windows = f"{result['windows']} windows of {result['window']} tokens"
    bos = f"BOS {result['bos_token']!r} first" if result["bos"] else "no BOS"
    ratio = result.get("ratio")
    show_facts(
        console,
        [
            ("model", f"{result['model']} on {result['backend']}"),
            ("adapter", result["adapter"]),
            ("text", f"{result['text']}, {result['tokens']} tokens predicted in {windows}, {bos}"),
            ("perplexity", number(result["perplexity"], 3)),
            ("reference", None if ratio is None else f"{result['reference_perplexity']:.3f} (ratio {ratio:.4f})"),
            ("", None if "reference_prefix" not in result else "the reference stands behind the artifact's prefix too"),
            ("KL to reference", number(result.get("kl_to_reference"), 5)),
            ("top-1 agreement", share(result.get("top1_agreement"))),
            ("note", result.get("note")),
            ("warning", result.get("warning")),
            ("saved", "report.json and report.html of the artifact" if saved else None),
        ],
    )
    if "by_position" in result:
        _show_positions(console, result["by_position"])


def _show_positions(console: Console, found: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import number, show_facts, show_table
    from mobileicsa.report.positions import FIGURES, VERDICTS, drift_basis, position_words

    rows = [
        (position_words(row), row["tokens"], *(number(row.get(key), 4) for key in FIGURES)) for row in found["buckets"]
    ]
    console.print()
    show_table(console, ("position", "tokens", "loss", "reference", "difference", "standard error", "KL"), rows)
    console.print()
    verdict = VERDICTS[found["drift"]] if "drift" in found else None
    show_facts(console, [("drift", verdict), ("", drift_basis(found)), ("note", found.get("note"))])

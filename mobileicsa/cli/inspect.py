"""`mobileicsa inspect`: what an artifact holds: encodings, operators of each file, bytes per weight."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobileicsa.artifact.manifest import DECODER, EARLY_EXIT
from mobileicsa.cli import exits
from mobileicsa.cli.answer import Answer
from mobileicsa.cli.kinds import for_artifact
from mobileicsa.cli.options import ArtifactFolder, JsonFlag
from mobileicsa.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """
  mobileicsa inspect out
  mobileicsa inspect out --edges "layers.0.attn"
  mobileicsa inspect out --json
"""


def inspect(
    context: typer.Context,
    folder: ArtifactFolder,
    edges: Annotated[
        str | None, typer.Option("--edges", metavar="REGEX", help="List the edges whose name matches; '' for all.")
    ] = None,
    as_json: JsonFlag = False,
) -> Answer:
    """Show what an artifact holds: encodings, operators, sizes.

    With --json every encoding is given, and what each writer recorded.
    """
    try:
        re.compile(edges or "")
    except re.error as error:
        raise UsageError(f"--edges {edges}: not a regular expression: {error}") from error
    return for_artifact(HANDLERS, folder)(folder, edges)


def _inspect_decoder(folder: Path, edges: str | None) -> Answer:
    from mobileicsa.report.contents import contents

    document = contents(folder, edges=edges or "")
    return Answer(document=document, show=lambda console: _show(console, document, listed=edges is not None))


HANDLERS = {DECODER: _inspect_decoder, EARLY_EXIT: exits.inspect}


def _show(console: Console, document: dict[str, Any], *, listed: bool) -> None:
    from mobileicsa.cli.tables import show_facts, show_table, size
    from mobileicsa.report.adapters import adapter_words
    from mobileicsa.report.mixed import mixed_facts, spans

    model, census = document["model"], document["census"]
    show_facts(
        console,
        [
            ("artifact", document["folder"]),
            ("model", f"{model['name']} ({model['model_type']}, {model['layers']} layers)"),
            ("scheme", document["scheme"]),
            ("prefix", f"token ids {document['prefix_ids']}" if document["prefix_ids"] else "none"),
            (
                "weights",
                f"{_counts(census['weights'])} tensors, {size(census['packed_weights_bytes'])} packed; "
                f"{census['decoder_weights']:,} values in the decoder",
            ),
            ("4-bit codes", None if document["narrow_weights"] else "-8 to 7"),
            *mixed_facts(document["mixed"], size),
            *((f"int8 {path}", f"layers {spans(layers)}") for path, layers in document["promoted"].items()),
            *((f"int16 {path}", f"layers {spans(layers)}") for path, layers in document["wide_inputs"].items()),
            ("edges", f"{_counts(census['edges'])} encodings"),
            ("merged adapter", document["merged_adapter"]),
            *(("adapter", adapter_words(facts)) for facts in document["adapters"].values()),
        ],
    )
    for target, used in document["targets"].items():
        for backend, row in used.items():
            console.print(f"\n{backend} for {target}", style="bold", markup=False)
            show_facts(console, _written(row))
    console.print("\nleast exact edges", style="bold")
    rows = [(e["edge"], e["role"], f"int{e['bits']}", f"{e['sqnr_db']:.1f} dB") for e in document["worst_edges"]]
    show_table(console, ("edge", "role", "type", "signal to noise"), rows, left=3)
    if listed:
        console.print()
        columns = ("edge", "role", "type", "scale", "zero", "SQNR")
        show_table(console, columns, map(_edge, document["edges"].items()), left=3)
    else:
        console.print("\nevery edge: --edges ''; everything: --json", style="dim", markup=False)


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in found.items())


def _written(row: dict[str, Any]) -> list[tuple[str, str | None]]:
    from mobileicsa.cli.tables import size

    facts: list[tuple[str, str | None]] = [
        ("files", ", ".join(f"{name} {size(count)}" for name, count in row["files"].items())),
        (
            "bytes per weight",
            f"{row['bytes_per_decoder_weight']:.3f} in the decoder (the largest file without one embedding table)",
        ),
    ]
    for method, ops in row["operators"].items():
        facts.append((f"{method} as written", f"{sum(ops.values())}: {_histogram(ops)}"))
    return [*facts, *_placed(row["placement"])]


def _histogram(ops: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in ops.items())


def _placed(placement: dict[str, Any]) -> list[tuple[str, str | None]]:
    """As what a decode step's operators run on a host."""
    if "unknown" in placement:
        return [("decode runs as", f"unknown: {placement['unknown']}")]
    kinds = ", ".join(f"{placement[kind]} {kind}" for kind in ("integer", "float", "boundary", "outside"))
    products, fallbacks = placement["products"], placement["fallbacks"]
    in_float = {op: kinds["float"] for op, kinds in placement["by_op"].items() if kinds.get("float")}
    reasons = sorted({fallback["reason"] for fallback in fallbacks})
    return [
        ("decode runs as", f"{kinds}; matrix products {_counts(products)}"),
        ("float operators", _histogram(in_float) or "none"),
        ("not as planned", f"{len(fallbacks)}: {'; '.join(reasons)}" if fallbacks else None),
    ]


def _edge(item: tuple[str, dict[str, Any]]) -> tuple[Any, ...]:
    name, e = item
    noise = e.get("sqnr_db")
    return (
        name,
        e.get("role"),
        f"int{e['bits']}",
        f"{e['scale'][0]:.6g}",
        e["zero_point"][0],
        None if noise is None else f"{noise:.1f} dB",
    )

"""`mobileicsa bench`: speed and memory of an artifact on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mobileicsa.cli.answer import Answer
from mobileicsa.cli.options import ArtifactFolder, JsonFlag, ThreadsOption

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """
  mobileicsa bench out
  mobileicsa bench out --baseline float --backend executorch --repeat 9
"""


def bench(
    context: typer.Context,
    folder: ArtifactFolder,
    backend: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME", help="onnx or executorch; repeatable; by default all installed."),
    ] = None,
    baseline: Annotated[
        Literal["float"] | None,
        typer.Option(
            "--baseline",
            metavar="float",
            help="float: measure the same model in float32 on the same runtime too, in turns.",
        ),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option("--prompt-tokens", metavar="N", help="Tokens of the prompt; 64 where they fit.")
    ] = None,
    generate_tokens: Annotated[
        int | None, typer.Option("--generate-tokens", metavar="N", help="Tokens generated behind it; 64 likewise.")
    ] = None,
    repeat: Annotated[
        int, typer.Option("--repeat", metavar="N", help="Turns after one to warm up; medians are given.")
    ] = 5,
    threads: ThreadsOption = None,
    allow_fallback: Annotated[
        bool,
        typer.Option("--allow-fallback", help="Measure even if an operator falls back to float against the target."),
    ] = False,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Keep the result in the artifact's report.")] = True,
    as_json: JsonFlag = False,
) -> Answer:
    """Measure an artifact's speed and memory on this machine.

    Medians of load time, first token, prefill and decode speed, peak memory, bytes read per token.
    """
    from mobileicsa.bench import host
    from mobileicsa.report.record import record

    with context.obj.progress() as progress:
        result = host.bench(
            folder,
            backends=backend or None,
            baseline_float=baseline == "float",
            prompt_tokens=prompt_tokens,
            generate_tokens=generate_tokens,
            repeat=repeat,
            threads=threads,
            allow_fallback=allow_fallback,
            progress=progress,
        )
    if save:
        record(Path(folder), "bench", result)
    return Answer(document=result, show=lambda console: _show(console, result))


def _show(console: Console, result: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_table

    columns = ("", "load", "first token", "prefill tok/s", "decode tok/s", "peak memory", "read per token", "files")
    rows: list[tuple[str | None, ...]] = []
    for name, row in result["backends"].items():
        if "skipped" in row:
            console.print(f"{name}: skipped, {row['skipped']}", markup=False)
            continue
        rows.append((name, *_cells(row)))
        if "float32" in row:
            rows.append((f"  {name} float32", *_cells(row["float32"])))
            ratio = row["ratio_to_float32"].get("decode_tokens_per_s")
            rows.append(
                ("  decode speed-up", None, None, None, None if ratio is None else f"{ratio:.2f} x", *[None] * 3)
            )
    show_table(console, columns, rows)
    threads = "the runtime's default" if result["threads"] is None else str(result["threads"])
    cpu = result["environment"]["cpu"]
    console.print(
        f"\nmedian of {result['repeat']} turns, {result['prompt_tokens']} prompt + "
        f"{result['generate_tokens']} new tokens, "
        f"threads: {threads}, {cpu}, {result['environment']['cores']} cores",
        markup=False,
    )


def _cells(row: dict[str, Any]) -> tuple[str | None, ...]:
    from mobileicsa.cli.tables import number, size

    return (
        f"{row['load_ms']:.0f} ms",
        f"{row['first_token_ms']:.1f} ms",
        number(row["prefill_tokens_per_s"]),
        number(row["decode_tokens_per_s"]),
        size(row["peak_rss_bytes"]),
        size(row["bytes_per_token"]),
        size(row["file_bytes"]),
    )

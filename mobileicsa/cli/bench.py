"""`mobileicsa bench`: speed, memory and energy of an artifact on this machine or on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mobileicsa.artifact.manifest import DECODER, EARLY_EXIT
from mobileicsa.cli import exits
from mobileicsa.cli.answer import Answer
from mobileicsa.cli.kinds import for_artifact
from mobileicsa.cli.options import ArtifactFolder, JsonFlag, ThreadsOption
from mobileicsa.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """
  mobileicsa bench out
  mobileicsa bench out --baseline float --backend executorch --repeat 9
  mobileicsa bench exits --baseline float --plot figures
  mobileicsa bench out --device adb --app app-executorch-release.apk
"""


def bench(
    context: typer.Context,
    folder: ArtifactFolder,
    device: Annotated[
        str, typer.Option("--device", metavar="host|adb[:SERIAL]", help="Where to measure: here, or on a phone by adb.")
    ] = "host",
    app: Annotated[
        list[Path] | None,
        typer.Option("--app", metavar="FILE.apk", help="Install this build of android_demo on the phone first."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the models on the phone, for the app's chat screen.")
    ] = False,
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
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="DIR", help="Draw the result as SVG figures into this folder.")
    ] = None,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Keep the result in the artifact's report.")] = True,
    as_json: JsonFlag = False,
) -> Answer:
    """Measure speed, memory and energy, here or on a phone.

    Medians of load time, first token, prefill and decode speed, peak memory, bytes read per token, energy where a
    counter can be read.
    """
    common: dict[str, Any] = {
        "backends": backend or None,
        "baseline_float": baseline == "float",
        "repeat": repeat,
        "threads": threads,
    }
    tokens = {"prompt_tokens": prompt_tokens, "generate_tokens": generate_tokens}
    phone = {"device": _serial(device), "app": app or [], "keep": keep}
    return for_artifact(HANDLERS, folder)(
        context.obj, folder, common, {**phone, **tokens, "allow_fallback": allow_fallback}, plot, save
    )


def _bench_decoder(
    screen: Any, folder: Path, common: dict[str, Any], further: dict[str, Any], plot: Path | None, save: bool
) -> Answer:
    from mobileicsa.report.record import record

    serial, apps, keep, allow_fallback = (further.pop(name) for name in ("device", "app", "keep", "allow_fallback"))
    common = {**common, **further}
    with screen.progress() as progress:
        if serial is None:
            from mobileicsa.bench import host

            if apps or keep:
                raise UsageError("--app and --keep are for a phone", hint="add --device adb")
            result = host.bench(folder, **common, allow_fallback=allow_fallback, progress=progress)
        else:
            result = _on_phone(folder, serial, apps, keep, save, common, progress)
    if save:
        record(Path(folder), "bench" if serial is None else "phone", result)
    if plot is not None:
        from mobileicsa.bench.plot import draw

        result["figures"] = [str(path) for path in draw(result, plot)]
    return Answer(document=result, show=lambda console: _show(console, result))


HANDLERS = {DECODER: _bench_decoder, EARLY_EXIT: exits.bench}


def _serial(device: str) -> str | None:
    """None for this machine, "" for the only phone, a phone's serial number otherwise."""
    kind, _, serial = device.partition(":")
    if device == "host":
        return None
    if kind != "adb" or (":" in device and not serial) or serial.startswith("-"):
        raise UsageError(f"--device {device}: unknown", hint="host, adb, or adb:SERIAL as `adb devices` lists it")
    return serial


def _on_phone(
    folder: Path, serial: str, apps: list[Path], keep: bool, save: bool, common: dict[str, Any], progress: Any
) -> dict[str, Any]:
    from mobileicsa.bench.phone.run import Partial, bench_phone
    from mobileicsa.report.record import record

    for apk in apps:
        if not apk.is_file():
            raise InputError(f"{apk}: no such file", hint="build it in android_demo")
    try:
        return bench_phone(folder, serial=serial or None, apps=apps, keep=keep, **common, progress=progress)
    except Partial as error:
        if save:
            record(folder, "phone", error.result)
        raise


def _show(console: Console, result: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_table

    columns = (
        "",
        "load",
        "first token",
        "prefill tok/s",
        "decode tok/s",
        "peak memory",
        "read per token",
        "files",
        "energy",
    )
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
                ("  decode speed-up", None, None, None, None if ratio is None else f"{ratio:.2f} x", *[None] * 4)
            )
    show_table(console, columns, rows)
    threads = "the runtime's default" if result["threads"] is None else str(result["threads"])
    cpu, cores = result["environment"]["cpu"], result["environment"].get("cores")
    console.print(
        f"\nmedian of {result['repeat']} turns, {result['prompt_tokens']} prompt + "
        f"{result['generate_tokens']} new tokens, "
        f"threads: {threads}, {cpu}" + (f", {cores} cores" if cores else ""),
        markup=False,
    )
    low, high = result["energy_estimate"]["mj_per_token"]
    console.print(f"energy: {result['energy_source']}", markup=False)
    console.print(
        f"estimate of {result['backend']}: {low:.3g} to {high:.3g} mJ a token, from bytes and products of a step and "
        "published constants (Horowitz, ISSCC 2014); not measured",
        markup=False,
    )
    for note in _notes(result):
        console.print(note, markup=False)


def _notes(result: dict[str, Any]) -> list[str]:
    notes = []
    if result.get("throttled_turns"):
        notes.append(f"{result['throttled_turns']} turns were throttled: listed in the result, in no median")
    return notes + [f"figure: {path}" for path in result.get("figures", [])]


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
        "—" if row["energy_mj_per_token"] is None else f"{row['energy_mj_per_token']:.3g} mJ/token",
    )

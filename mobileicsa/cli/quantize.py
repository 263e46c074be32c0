"""`mobileicsa quantize`: a checkpoint becomes a verified-able artifact folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobileicsa.artifact.manifest import DECODER, EARLY_EXIT
from mobileicsa.cli import exits
from mobileicsa.cli.answer import Answer
from mobileicsa.cli.kinds import for_model
from mobileicsa.cli.options import JsonFlag, SaturationOption

if TYPE_CHECKING:
    from rich.console import Console

    from mobileicsa.artifact.plan_build import BuildPlan
    from mobileicsa.cli.progress import Share

EXAMPLES = """
  mobileicsa quantize --model smollm2-135m --scheme w8a8 --output out
  mobileicsa quantize --model org/model@v1.0 --scheme w8a8 --output out
  mobileicsa quantize --model ./m --scheme w4a8 --output out --dry-run
  mobileicsa quantize --model ./m --scheme w4a8 --output out --resume
  mobileicsa quantize --model m --scheme w4a8 --output o --max-ppl-increase .1
  mobileicsa quantize --model ./m --scheme w8a8 --output out --recipe minmax
  mobileicsa quantize --model ./m --scheme w8a8 --output out prefix_tokens=0
  mobileicsa quantize --model m --scheme w8a8 --output o --adapter a
  mobileicsa quantize --model e --scheme w8a8 --output o --calibration i.npz
"""


def quantize(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Model folder, .gguf file, bundled name, or hub id as org/model[@revision].",
            show_default=False,
        ),
    ],
    scheme: Annotated[
        str, typer.Option("--scheme", metavar="NAME", help="w8a8, w4a8 or w4a16; see `mobileicsa schemes`.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "--output_dir", metavar="DIR", help="Folder to write; must be new or empty."),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Recipe fields to change, e.g. alphas=[0.6].")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help="Recipe name or YAML file; default: learned; rotated takes minutes.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="UTF-8 .txt or .jsonl, best of your users' kind; without it the model writes its own text. "
            "Early exits: .npz of inputs (and labels).",
        ),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option("--effort", metavar="LEVEL", help="fast, default or best: how much is learned."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="NAME", help="What to write for; repeatable; see `mobileicsa targets`."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Seed of self-generated calibration text.")
    ] = None,
    budget_bytes: Annotated[
        int | None,
        typer.Option(
            "--budget-bytes",
            metavar="N",
            help="4-bit schemes: linears that gain most get 8 bits, as many as packed weights of N bytes hold.",
        ),
    ] = None,
    max_ppl_increase: Annotated[
        float | None,
        typer.Option(
            "--max-ppl-increase",
            metavar="X",
            help="8-bit weights for as many linears as it takes to lose no more than X, e.g. 0.1 for a tenth more "
            "perplexity, then 16-bit inputs where every target multiplies them; --budget-bytes comes first.",
        ),
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help="LoRA folder that peft wrote; repeatable. They share the integer base and are changed at run time.",
        ),
    ] = None,
    merge_adapter: Annotated[
        Path | None,
        typer.Option("--merge-adapter", metavar="DIR", help="LoRA folder to merge into the weights before all else."),
    ] = None,
    max_adapter_saturation: SaturationOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, write nothing.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from an interrupted run, with --overwrite too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output when done.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail where a warning would do.")] = False,
    as_json: JsonFlag = False,
) -> Answer:
    """Quantise a model and write its artifact folder.

    The folder holds everything a phone or a runtime needs: .onnx and .pte files, tokenizer, golden vectors, report.
    """
    common: dict[str, Any] = {
        "model": model,
        "scheme": scheme,
        "output": output,
        "calibration": calibration,
        "targets": tuple(target or ()),
        "seed": seed,
        "overwrite": overwrite,
    }
    further: dict[str, Any] = {
        "recipe": recipe,
        "effort": effort,
        "budget_bytes": budget_bytes,
        "max_ppl_increase": max_ppl_increase,
        "overrides": tuple(overrides or ()),
        "adapters": tuple(adapter or ()),
        "merge_adapter": merge_adapter,
        "max_adapter_saturation": max_adapter_saturation,
        "resume": resume,
        "strict": strict,
    }
    return for_model(HANDLERS, model)(context.obj, common, further, dry_run)


def _quantize_decoder(screen: Any, common: dict[str, Any], further: dict[str, Any], dry_run: bool) -> Answer:
    from mobileicsa.api import build_from
    from mobileicsa.artifact.plan_build import BuildOptions, plan_build

    given = {name: value for name, value in {**common, **further}.items() if value is not None and value != ()}
    plan = plan_build(BuildOptions(**given))
    if dry_run:
        document = plan.to_json()
        return Answer(document=document, show=lambda console: _show_plan(console, document))
    screen.note(_headline(plan))
    with screen.progress(outline(plan)) as progress:
        report = build_from(plan, progress)
    document = {**report, "output": str(common["output"])}
    return Answer(document=document, show=lambda console: _show_report(console, document))


HANDLERS = {DECODER: _quantize_decoder, EARLY_EXIT: exits.quantize}


def outline(plan: BuildPlan) -> list[Share]:
    """Steps of a build and their usual parts of its time."""
    from mobileicsa.artifact.duration import expected_seconds
    from mobileicsa.cli.progress import Share

    return [Share(title, seconds) for title, seconds in expected_seconds(plan)]


def _headline(plan: BuildPlan) -> str:
    from mobileicsa.cli.progress import duration
    from mobileicsa.cli.tables import size

    facts = plan.to_json()
    estimates = facts["estimates"]
    return (
        f"{facts['model']} ({facts['model_type']}, {facts['layers']} layers) to {plan.scheme.name}, recipe "
        f"{plan.recipe.name}; needs about {size(estimates['peak_memory_bytes'])} of memory, "
        f"{size(estimates['disk_bytes'])} of disk, and {duration(estimates['seconds_on_two_cores'])} on two cores"
    )


def _show_plan(console: Console, plan: dict[str, Any]) -> None:
    from mobileicsa.cli.progress import duration
    from mobileicsa.cli.tables import show_facts, show_list, size

    estimates = plan["estimates"]
    scheme = plan["scheme"]
    widths = {bits: [r for r, b in scheme["activation_bits"].items() if b == bits] for bits in (8, 16)}
    show_facts(
        console,
        [
            ("model", f"{plan['model']} ({plan['model_type']}, {plan['layers']} layers)"),
            ("scheme", scheme["name"]),
            ("weights", f"int{scheme['weight_bits']}, embedding int{scheme['embedding_bits']}"),
            ("packed weights", _packed(estimates["packed_weights_bytes"])),
            *((f"int{bits}", ", ".join(roles)) for bits, roles in widths.items() if roles),
            ("recipe", plan["recipe"]["name"]),
            ("calibration", plan["calibration"]),
            ("adapters", ", ".join(plan["adapters"]) or None),
            ("merged adapter", plan["merged_adapter"]),
            ("targets", ", ".join(f"{name} ({', '.join(used)})" for name, used in plan["targets"].items())),
            ("output", plan["output"]),
            ("time", f"about {duration(estimates['seconds_on_two_cores'])} on two cores"),
            ("memory", _of(estimates["peak_memory_bytes"], estimates["available_memory_bytes"], size)),
            ("disk", _of(estimates["disk_bytes"], estimates["free_disk_bytes"], size)),
            ("ignored", ", ".join(plan["ignored_config"]) or None),
            ("not read", ", ".join(plan["unread_tensors"][:5]) or None),
        ],
    )
    show_list(console, "steps", (f"{number}. {step}" for number, step in enumerate(plan["steps"], 1)))
    for note in plan["notes"]:
        console.print(f"note: {note}", markup=False)
    console.print("nothing was written (--dry-run)")


def _packed(found: dict[str, int]) -> str | None:
    """The size that all packed weights will have, or can have, in words."""
    from mobileicsa.cli.tables import size

    least, most = found["least"], found["most"]
    return size(least) if least == most else f"{size(least)} to {size(most)}, as the limits ask"


def _of(needed: int, present: int, size: Any) -> str:
    return f"about {size(needed)} of {size(present)} free"


def _show_report(console: Console, report: dict[str, Any]) -> None:
    from mobileicsa.artifact import layout
    from mobileicsa.cli.progress import duration
    from mobileicsa.cli.tables import show_facts, show_table, size
    from mobileicsa.report.adapters import adapter_words
    from mobileicsa.report.mixed import mixed_facts

    model, prefix, calibration = report["model"], report["prefix"], report["calibration"]
    output, float_bytes = report["output"], report["sizes"]["float_bytes"]
    worst = min(report["edges"].items(), key=lambda item: item[1]["sqnr_db"], default=None)
    stages = report["stages"]
    show_facts(
        console,
        [
            (
                "model",
                f"{model['name']}, {model['parameters'] / 1e6:,.1f} M parameters, {size(float_bytes)} in float32",
            ),
            ("scheme", f"{report['scheme']}, recipe {report['recipe']['name']}"),
            ("calibration", f"{calibration['tokens']} tokens, {calibration['source']}"),
            ("", calibration["note"] or None),
            ("prefix", " ".join(repr(text) for text in prefix["text"]) or None),
            *mixed_facts(report["mixed"], size),
            ("merged adapter", report["merged_adapter"]),
            *(("adapter", adapter_words(facts)) for facts in report["adapters"].values()),
            ("worst edge", None if worst is None else f"{worst[0]}, {worst[1]['sqnr_db']:.1f} dB"),
            ("took", duration(sum(s["seconds"] for s in stages))),
            ("peak memory", size(max(s["peak_rss_bytes"] for s in stages))),
        ],
    )
    rows = []
    for target, used in report["targets"].items():
        for backend, made in used.items():
            total = sum(layout.runtime_files(made["files"]).values())
            rows.append((target, backend, ", ".join(made["files"]), size(total), f"{total / float_bytes:.2f}"))
    console.print()
    show_table(console, ("target", "back end", "files", "size", "of float32"), rows, left=3)
    console.print(f"\nwrote {output}; next:", markup=False)
    for verb in ("verify", "run", "eval"):
        tail = {"verify": output, "run": f'{output} --prompt "Hello"', "eval": f"--model {output} --text FILE"}[verb]
        console.print(f"  mobileicsa {verb} {tail}", markup=False, soft_wrap=True)

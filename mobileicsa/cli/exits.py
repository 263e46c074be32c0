"""What `quantize` and `run` do with early-exit models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mobileicsa.cli.answer import Answer
from mobileicsa.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console


class ExitFlags(NamedTuple):
    model: str
    scheme: str
    output: Path
    calibration: Path | None
    targets: tuple[str, ...]
    seed: int
    overwrite: bool
    dry_run: bool


def quantize_exits(screen: Any, flags: ExitFlags, refused: Sequence[str]) -> Answer:
    """`refused`: flags that were given and mean nothing here."""
    if refused:
        raise UsageError(f"{', '.join(refused)}: not for an early-exit model")
    if len(flags.targets) > 1:
        raise UsageError("--target: an early-exit model is written for one")
    from mobileicsa.api import build_exits_from
    from mobileicsa.artifact.exits import ExitOptions, plan_exits
    from mobileicsa.cli.progress import Share

    target = {"target": flags.targets[0]} if flags.targets else {}
    plan = plan_exits(
        ExitOptions(
            model=Path(flags.model),
            scheme=flags.scheme,
            output=flags.output,
            calibration=flags.calibration,
            seed=flags.seed,
            overwrite=flags.overwrite,
            **target,
        )
    )
    document = plan.to_json()
    if flags.dry_run:
        return Answer(document=document, show=lambda console: _show_plan(console, document))
    steps = [("quantise the stages", 2.0), ("refit the thresholds", 1.0)]
    steps += [(f"write {name} for {plan.target.name}", 4.0) for name in plan.target.backends]
    with screen.progress([Share(title, seconds) for title, seconds in steps]) as progress:
        report = {**build_exits_from(plan, progress), "output": str(flags.output)}
    return Answer(document=report, show=lambda console: _show_report(console, report))


def run_exits(
    folder: Path,
    inputs: Path,
    backend: str | None,
    threshold: float | None,
    mac_budget: float | None,
    threads: int | None,
) -> Answer:
    from mobileicsa.artifact.exit_inputs import read_inputs
    from mobileicsa.artifact.exit_model import ExitModel

    model = ExitModel.from_pretrained(folder, backend=backend, threads=threads)
    given = read_inputs(inputs, model.spec, 0)
    document = model.run(given.inputs, threshold=threshold, mac_budget=mac_budget)
    if given.labels is not None:
        pairs = zip(document["decisions"], given.labels.tolist(), strict=True)
        document["accuracy"] = sum(row["label"] == label for row, label in pairs) / len(given.labels)
    model.close()
    return Answer(document=document, show=lambda console: _show_run(console, document))


def _facts(plan: dict[str, Any]) -> list[tuple[str, str | None]]:
    calibration = plan["calibration"]
    return [
        ("model", f"{plan['model']}, {len(plan['exits'])} exits"),
        ("scheme", plan["scheme"]),
        ("target", plan["target"]),
        ("calibration", f"{calibration['samples']} inputs, {calibration['source']}"),
        ("", calibration["note"]),
    ]


def _show_plan(console: Console, plan: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_facts

    show_facts(console, _facts(plan))
    console.print("nothing was written (--dry-run)")


def _show_report(console: Console, report: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_facts, show_table

    show_facts(console, _facts(report))
    rows = [
        (name, ", ".join(made["files"]), f"{made['agreement']['equal_share']:.2%}")
        for written in report["targets"].values()
        for name, made in written.items()
    ]
    console.print()
    show_table(console, ("back end", "files", "equal to simulator"), rows, left=2)
    console.print(f"\nwrote {report['output']}; next:", markup=False)
    console.print(f"  mobileicsa run {report['output']} --input FILE.npz --threshold 0.8", markup=False, soft_wrap=True)


def _show_run(console: Console, document: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_facts, show_table

    accuracy = document.get("accuracy")
    show_facts(
        console,
        [
            ("threshold", f"{document['threshold']:.3f}"),
            ("refitted", ", ".join(f"{value:.3f}" for value in document["thresholds"][:-1]) or None),
            ("mean MACs", f"{document['mean_macs']:,.0f}"),
            ("accuracy", None if accuracy is None else f"{accuracy:.1%}"),
        ],
    )
    console.print()
    rows = [(f"{exit}", f"{count}") for exit, count in enumerate(document["taken"], 1)]
    show_table(console, ("exit", "inputs"), rows, left=0)

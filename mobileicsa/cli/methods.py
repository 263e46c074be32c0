"""`mobileicsa methods` and `mobileicsa methods run`: the research methods, each with its baselines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobileicsa.cli.answer import Answer
from mobileicsa.cli.options import JsonFlag

if TYPE_CHECKING:
    from rich.console import Console

LIST_EXAMPLES = """
  mobileicsa methods
  mobileicsa methods --json
"""
RUN_EXAMPLES = """
  mobileicsa methods run reefl --size smoke --output out data=./data
  mobileicsa methods run reefl --size small --output out data=./data seed=7
  mobileicsa methods run reefl --size small --output out data=./data --json
"""
# Metrics that the table has room for.
MAX_COLUMNS = 4


def methods(context: typer.Context, as_json: JsonFlag = False) -> Answer:
    """List the research methods, and run one with its baselines."""
    from mobileicsa.methods.base import METHODS

    document = {"methods": [entry.to_json() for entry in METHODS.values()]}
    return Answer(document=document, show=lambda console: _show_list(console, document["methods"]))


def run(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="See `mobileicsa methods`.", show_default=False)],
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="smoke (seconds), small (minutes), full (GPU).")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder to write; must be new or empty.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields of the method's config, e.g. data=DIR seed=1 rounds=20."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from an interrupted run, with --overwrite too.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output when done.")] = False,
    as_json: JsonFlag = False,
) -> Answer:
    """Run a method and its baselines over seeds.

    Writes result.json, a figure and what the method hands over. The exit code is 0 whether or not its claim holds.
    """
    from mobileicsa.api import run_planned_method
    from mobileicsa.cli.progress import Share
    from mobileicsa.methods.runner import RunRequest, plan_run

    screen = context.obj
    request = RunRequest(
        name=name, size=size, output=output, overrides=tuple(overrides or ()), overwrite=overwrite, resume=resume
    )
    plan = plan_run(request)
    with screen.progress([Share(title, step.share) for title, step, _ in plan.steps]) as progress:
        result = run_planned_method(plan, progress)
    document = {**result, "output": str(output)}
    return Answer(document=document, show=lambda console: _show_result(console, document))


def _show_list(console: Console, found: list[dict[str, Any]]) -> None:
    from mobileicsa.cli.tables import show_entries

    show_entries(console, ((entry["name"], _facts(entry)) for entry in found))


def _facts(entry: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("is", entry["title"]),
        ("paper", entry["paper"]),
        ("hands over", ", ".join(entry["hands_over"])),
        ("data", ", ".join(entry["data"])),
        ("small run", f"about {entry['small_minutes']} min on two cores"),
    ]


def _show_result(console: Console, result: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_facts, show_table

    # A metric at several points (accuracy_exit_1, ...) is for the figure, if there are others.
    names = sorted(result["metrics"], key=lambda metric: (metric[-1].isdigit(), metric))[:MAX_COLUMNS]
    contenders = {result["method"]: result["metrics"], **result["baselines"]}
    rows = [(name, *(_estimate(metrics.get(metric)) for metric in names)) for name, metrics in contenders.items()]
    show_table(console, ("", *(name.replace("_", " ") for name in names)), rows)
    verdict, seeds = result["verdict"], result["environment"]["seeds"]
    output = Path(result["output"])
    console.print()
    show_facts(
        console,
        [
            ("claim", verdict["claim"]),
            ("holds", "yes" if verdict["holds"] else "no"),
            ("why", verdict["why"]),
            ("seeds", ", ".join(map(str, seeds))),
            *((role.replace("_", " "), output / path) for role, path in result["artifacts"].items()),
            ("all numbers", output / "result.json"),
        ],
    )


def _estimate(estimate: dict[str, Any] | None) -> str | None:
    """Mean and half of the interval."""
    if estimate is None:
        return None
    half = "" if estimate["ci"] is None else f" ± {(estimate['ci'][1] - estimate['ci'][0]) / 2:.3f}"
    return f"{estimate['mean']:.3f}{half}"

"""`mobileicsa verify`: are the files what the manifest says, and do the runtimes compute what the simulator did?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobileicsa.artifact.manifest import DECODER, EARLY_EXIT
from mobileicsa.cli import exits
from mobileicsa.cli.answer import Answer
from mobileicsa.cli.failure import verification_code
from mobileicsa.cli.kinds import for_artifact
from mobileicsa.cli.options import AdapterOption, ArtifactFolder, JsonFlag, LayersOption, TargetOption

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """
  mobileicsa verify out
  mobileicsa verify out --backend onnx --no-greedy --json
  mobileicsa verify out --strict
  mobileicsa verify out --adapter news
  mobileicsa verify out --backend tosa --layers 0:2 --json
"""


def verify(
    context: typer.Context,
    folder: ArtifactFolder,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            help="simulator, onnx, executorch or another of `mobileicsa targets`; repeatable. By default those that "
            "the artifact was exported for; others are lowered first.",
        ),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy/--no-greedy", help="Compare generated texts token by token too.")
    ] = True,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Fail too where an operator runs in float that the target wants in integers."),
    ] = False,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Keep the result in the artifact's report.")] = True,
    adapter: AdapterOption = None,
    target: TargetOption = None,
    layers: LayersOption = None,
    as_json: JsonFlag = False,
) -> Answer:
    """Check an artifact's files and replay its golden vectors.

    Every file's hash, then every runtime's integers against the simulator's; exit code 5 where something differs.
    """
    common = {"only": backend or None, "target": target}
    further = {"greedy": greedy, "strict": strict, "layers": layers, "adapter": adapter}
    return for_artifact(HANDLERS, folder)(context.obj, folder, common, further, save)


def _verify_decoder(screen: Any, folder: Path, common: dict[str, Any], further: dict[str, Any], save: bool) -> Answer:
    from mobileicsa.artifact import verify as artifact
    from mobileicsa.report.record import record

    with screen.progress() as progress:
        result = artifact.verify(folder, **common, **further, progress=progress)
    rows = result["backends"].values()
    # What was lowered for the occasion is not compared with the artifact's golden vectors, which its report is about.
    if (
        save
        and any("skipped" not in row for row in rows)
        and not any("target" in row or "adapter" in row for row in rows)
    ):
        record(folder, "verification", result)
    document = {"folder": str(folder), **result}
    code = verification_code(result)
    return Answer(document=document, show=lambda console: _show(console, document), exit_code=code)


HANDLERS = {DECODER: _verify_decoder, EARLY_EXIT: exits.verify}


def _show(console: Console, result: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import share, show_table

    for problem in result["problems"]:
        console.print(f"FAILED  {problem}", markup=False, style="bold red", soft_wrap=True)
    columns = (
        "back end",
        "result",
        "equal integers",
        "largest step",
        "logits equal",
        "logits step",
        "greedy tokens equal",
    )
    rows = []
    checked = [
        pair
        for name, row in result["backends"].items()
        for pair in ((name, row), *([(f"{name}, exact", row["exact"])] if "exact" in row else []))
    ]
    for name, row in checked:
        if "skipped" in row:
            rows.append((name, f"skipped: {row['skipped']}", *[None] * 5))
        elif "error" in row:
            rows.append((name, f"FAILED: {row['error']}", *[None] * 5))
        else:
            logits, greedy = row["logits"], row.get("greedy")
            agreed = None if greedy is None else share(greedy["token_agreement"])
            word = "ok" if row["ok"] else "FAILED"
            equal, logits_equal = share(row["equal_share"]), share(logits["equal_share"])
            if "reason" in row:
                console.print(f"FAILED  {name}: {row['reason']}", markup=False, style="bold red", soft_wrap=True)
            rows.append((name, word, equal, row["max_steps"], logits_equal, logits["max_steps"], agreed))
    if rows:
        show_table(console, columns, rows, left=2)
    good = result["ok"]
    words = "verified" if good else "verification FAILED"
    console.print(
        f"\n{result['folder']}: {words}", markup=False, style="bold green" if good else "bold red", soft_wrap=True
    )

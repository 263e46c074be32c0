"""What the commands do with early-exit models and artifacts; each command's table of handlers names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobileicsa.artifact.manifest import EARLY_EXIT
from mobileicsa.cli import exits_show
from mobileicsa.cli.answer import Answer
from mobileicsa.cli.failure import verification_code
from mobileicsa.cli.kinds import refuse
from mobileicsa.core.errors import UsageError

STEPS = {"quantise the stages": 4.0, "refit the thresholds": 1.0}
WRITE_SECONDS = 4.0


def quantize(screen: Any, common: dict[str, Any], further: dict[str, Any], dry_run: bool) -> Answer:
    refuse(further, EARLY_EXIT)
    targets = common["targets"]
    if len(targets) > 1:
        raise UsageError("--target: an early-exit model is written for one; `mobileicsa export` writes others")
    from mobileicsa.api import build_exits_from
    from mobileicsa.artifact.exits import ExitOptions, plan_exits
    from mobileicsa.cli.progress import Share

    given = {name: common[name] for name in ("scheme", "output", "calibration", "overwrite")}
    plan = plan_exits(
        ExitOptions(
            model=Path(common["model"]),
            seed=common["seed"] or 0,
            **given,
            **({"target": targets[0]} if targets else {}),
        )
    )
    document = plan.to_json()
    if dry_run:
        return Answer(document=document, show=lambda console: exits_show.plan(console, document))
    steps = {**STEPS, **{f"write {name} for {plan.target.name}": WRITE_SECONDS for name in plan.target.backends}}
    with screen.progress([Share(title, seconds) for title, seconds in steps.items()]) as progress:
        report = {**build_exits_from(plan, progress), "output": str(common["output"])}
    return Answer(document=report, show=lambda console: exits_show.report(console, report))


def run(
    screen: Any, folder: Path, opening: dict[str, Any], generating: dict[str, Any], deciding: dict[str, Any]
) -> Answer:
    given = {name: generating[name] for name in ("prompt", "chat", "adapter")}
    refuse({"target": opening["target"], **given}, EARLY_EXIT)
    if deciding["inputs"] is None:
        raise UsageError("Missing option '--input'", hint="an .npz with `inputs`, and `labels` if there are any")
    from mobileicsa.artifact.exit_inputs import read_inputs
    from mobileicsa.artifact.exit_model import ExitModel

    model = ExitModel.from_pretrained(folder, backend=opening["backend"], threads=opening["threads"])
    given_inputs = read_inputs(deciding["inputs"], model.spec, 0)
    document = model.run(given_inputs.inputs, threshold=deciding["threshold"], mac_budget=deciding["mac_budget"])
    if given_inputs.labels is not None:
        pairs = zip(document["decisions"], given_inputs.labels.tolist(), strict=True)
        document["accuracy"] = sum(row["label"] == label for row, label in pairs) / len(given_inputs.labels)
    model.close()
    return Answer(document=document, show=lambda console: exits_show.run(console, document))


def verify(screen: Any, folder: Path, common: dict[str, Any], further: dict[str, Any], save: bool) -> Answer:
    refuse({name: further[name] for name in ("strict", "layers", "adapter")}, EARLY_EXIT)
    from mobileicsa.artifact.exit_verify import verify_exits
    from mobileicsa.report.record import record

    with screen.progress() as progress:
        result = verify_exits(folder, **common, progress=progress)
    rows = result["backends"].values()
    if save and any("skipped" not in row for row in rows) and not any("target" in row for row in rows):
        record(folder, "verification", result)
    document = {"folder": str(folder), **result}
    code = verification_code(result)
    return Answer(document=document, show=lambda console: exits_show.verification(console, document), exit_code=code)


def inspect(folder: Path, edges: str | None) -> Answer:
    from mobileicsa.report.exit_contents import exit_contents

    document = exit_contents(folder, edges=edges or "")
    return Answer(
        document=document, show=lambda console: exits_show.contents(console, document, listed=edges is not None)
    )


def bench(
    screen: Any, folder: Path, common: dict[str, Any], further: dict[str, Any], plot: Path | None, save: bool
) -> Answer:
    refuse(further, EARLY_EXIT)
    from mobileicsa.artifact import layout
    from mobileicsa.bench.exits import bench_exits
    from mobileicsa.io.atomic import write_bytes
    from mobileicsa.report.exits import latency_figure
    from mobileicsa.report.record import record

    with screen.progress() as progress:
        result = bench_exits(folder, **common, progress=progress)
    if save:
        record(folder, "bench", result)
    if plot is not None and result["curves"]:
        plot.mkdir(parents=True, exist_ok=True)
        write_bytes(plot / layout.LATENCY_FIGURE, latency_figure(result["curves"]).encode())
        result["figures"] = [str(plot / layout.LATENCY_FIGURE)]
    return Answer(document=result, show=lambda console: exits_show.bench(console, result))


def export(screen: Any, folder: Path, target: str, output: Path, overwrite: bool, further: dict[str, Any]) -> Answer:
    refuse(further, EARLY_EXIT)
    from mobileicsa import api

    with screen.progress() as progress:
        made = api.export_exits(folder, target, output, overwrite=overwrite, progress=progress)
    document = {**made, "output": str(output)}
    return Answer(document=document, show=lambda console: exits_show.exported(console, document))

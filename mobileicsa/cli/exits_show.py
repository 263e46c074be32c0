"""Answers about early-exit models and artifacts, for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def plan(console: Console, document: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_facts

    show_facts(console, _facts(document))
    console.print("nothing was written (--dry-run)")


def _facts(document: dict[str, Any]) -> list[tuple[str, str | None]]:
    calibration = document["calibration"]
    return [
        ("model", f"{document['model']}, {len(document['exits'])} exits"),
        ("scheme", document["scheme"]),
        ("target", document.get("target")),
        ("calibration", f"{calibration['samples']} inputs, {calibration['source']}"),
        ("", calibration["note"]),
    ]


def report(console: Console, document: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_facts

    show_facts(console, _facts(document))
    for written in document["targets"].values():
        _written(console, written)
    output = document["output"]
    console.print(f"\nwrote {output}; next:", markup=False)
    for line in (f"run {output} --input FILE.npz --threshold 0.8", f"bench {output} --baseline float"):
        console.print(f"  mobileicsa {line}", markup=False, soft_wrap=True)


def exported(console: Console, document: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_facts

    _written(console, document["backends"])
    tensors = [
        row["facts"]["float_tensors"] for row in document["backends"].values() if "float_tensors" in row["facts"]
    ]
    show_facts(console, [("float tensors", str(sum(tensors)) if tensors else None)])
    console.print(f"\nwrote {document['output']} for {document['target']}", markup=False)


def _written(console: Console, backends: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import share, show_table, size

    rows = []
    for name, made in backends.items():
        shares: tuple[str | None, ...] = (None, None, None)  # of one that compiles only
        if (found := made["agreement"]) is not None:
            alone = ", ".join(str(share(stage["equal_share"])) for stage in found["stages"])
            shares = (alone, share(found["equal_share"]), share(found["same_labels"]))
        total = size(sum(file["bytes"] for file in made["files"].values()))
        rows.append((name, *shares, str(len(made["files"])), total))
    console.print()
    columns = ("back end", "equal to simulator, by stage", "in a chain", "same class", "files", "size")
    show_table(console, columns, rows, left=2)


def run(console: Console, document: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_facts, show_table

    accuracy, latency = document.get("accuracy"), document["latency"]
    show_facts(
        console,
        [
            ("threshold", f"{document['threshold']:.3f}"),
            ("refitted", ", ".join(f"{value:.3f}" for value in document["thresholds"][:-1]) or None),
            ("mean MACs", f"{document['mean_macs']:,.0f}"),
            ("mean latency", f"{latency['mean_ms']:.2f} ms"),
            ("accuracy", None if accuracy is None else f"{accuracy:.1%}"),
        ],
    )
    console.print()
    reached = [f"{ms:.2f} ms" for ms in latency["exits_ms"]]
    times = [*reached, *[None] * (len(document["taken"]) - len(reached))]
    rows = [
        (f"{exit}", f"{count}", ms) for exit, (count, ms) in enumerate(zip(document["taken"], times, strict=True), 1)
    ]
    show_table(console, ("exit", "inputs", "latency"), rows, left=0)


def verification(console: Console, result: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import share, show_table

    for problem in result["problems"]:
        console.print(f"FAILED  {problem}", markup=False, style="bold red", soft_wrap=True)
    rows: list[tuple[Any, ...]] = []
    for name, row in result["backends"].items():
        if "skipped" in row or "error" in row:
            word = f"skipped: {row['skipped']}" if "skipped" in row else f"FAILED: {row['error']}"
            rows.append((name, word, *[None] * 4))
            continue
        if "reason" in row:
            console.print(f"FAILED  {name}: {row['reason']}", markup=False, style="bold red", soft_wrap=True)
        for number, stage in enumerate(row["stages"]):
            rows.append((f"{name}, stage {number}", "", *_agreed(stage, share)))
        rows.append((f"{name}, chain", "ok" if row["ok"] else "FAILED", *_agreed(row, share)))
    if rows:
        columns = ("back end", "result", "equal numbers", "largest step", "logit difference", "same class")
        show_table(console, columns, rows, left=2)
    good = result["ok"]
    words = "verified" if good else "verification FAILED"
    style = "bold green" if good else "bold red"
    console.print(f"\n{result['folder']}: {words}", markup=False, style=style, soft_wrap=True)


def _agreed(row: dict[str, Any], share: Any) -> tuple[Any, ...]:
    difference = f"{row['largest_logit_difference']:.4g}"
    return share(row["equal_share"]), row["max_steps"], difference, share(row["same_labels"])


def contents(console: Console, document: dict[str, Any], *, listed: bool) -> None:
    from mobileicsa.cli.tables import show_facts, show_table, size

    census = document["census"]
    show_facts(
        console,
        [
            ("artifact", document["folder"]),
            *_facts(document),
            (
                "weights",
                f"{_counts(census['weights'])} tensors, {size(census['packed_weights_bytes'])} packed; "
                f"{census['weight_values']:,} values",
            ),
            ("edges", f"{_counts(census['edges'])} encodings"),
            ("inner edges", f"{_counts(census['inner_edges'])} encodings, for integer-only targets"),
        ],
    )
    console.print()
    rows = []
    for stage, exit in zip(document["stages"], document["exits"], strict=True):
        accuracy = exit.get("accuracy")
        blocks = " to ".join(dict.fromkeys(map(str, stage["blocks"])))
        accurate = None if accuracy is None else f"{accuracy:.1%}"
        rows.append((stage["stage"], blocks, exit["exit"], f"{exit['macs']:,}", accurate, stage["encodings"]))
    show_table(console, ("stage", "blocks", "exit", "MACs up to it", "accuracy", "encodings"), rows)
    for target, used in document["targets"].items():
        for backend, row in used.items():
            console.print(f"\n{backend} for {target}", style="bold", markup=False)
            files = ", ".join(f"{name} {size(count)}" for name, count in row["files"].items())
            operators = [(f"{name} as written", _counts(ops)) for name, ops in row["operators"].items()]
            show_facts(console, [("files", files), *operators])
    if listed:
        edges = {**document["edges"], **{f"inner {name}": each for name, each in document["inner_edges"].items()}}
        console.print()
        cells = ((name, f"int{e['bits']}", f"{e['scale'][0]:.6g}", e["zero_point"][0]) for name, e in edges.items())
        show_table(console, ("edge", "type", "scale", "zero"), cells, left=2)
    else:
        console.print("\nevery edge: --edges ''; everything: --json", style="dim", markup=False)


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in found.items()) or "no"


def bench(console: Console, result: dict[str, Any]) -> None:
    from mobileicsa.cli.tables import show_table, size

    rows, exits = [], 0
    for name, row in result["backends"].items():
        if "skipped" in row:
            console.print(f"{name}: skipped, {row['skipped']}", markup=False)
            continue
        exits = len(row["exits_ms"])
        rows.append((name, *_times(row), size(row["file_bytes"])))
        if "float32" in row:
            rows.append((f"  {name} float32", *_times(row["float32"]), size(row["float32"]["file_bytes"])))
            rows.append(("  speed-up", None, *(f"{ratio:.2f} x" for ratio in row["speed_up"]), None))
    columns = ("", "load", *(f"to exit {number}" for number in range(1, exits + 1)), "files")
    show_table(console, columns, rows)
    threads = "the runtime's default" if result["threads"] is None else str(result["threads"])
    console.print(
        f"\nmedians of {result['repeat']} turns over {result['inputs']} inputs, threads: {threads}, "
        f"{result['environment']['cpu']}",
        markup=False,
    )
    for path in result.get("figures", []):
        console.print(f"figure: {path}", markup=False)


def _times(row: dict[str, Any]) -> tuple[str, ...]:
    return f"{row['load_ms']:.0f} ms", *(f"{ms:.2f} ms" for ms in row["exits_ms"])

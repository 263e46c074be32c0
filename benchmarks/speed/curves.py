"""What a token costs against the work in it: context 128 to 4,096 and width 256 to 2,048, random weights.

    python -m benchmarks.speed.curves --work DIR

One line a scheme and back end; all points of one curve take turns in one run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.speed.contenders import BACKENDS, Contender, Silent, runtime_files
from benchmarks.speed.random_model import VOCAB, random_frozen, random_spec
from benchmarks.speed.run import race
from benchmarks.steps import write_result
from benchmarks.svg import pyplot, svg_text
from mobileicsa.artifact import layout
from mobileicsa.artifact.exported import TARGET_FILE, target_json, write_target
from mobileicsa.bench.environment import environment
from mobileicsa.io.json_file import write_json
from mobileicsa.program.targets import find_target

CONTEXTS, WIDTHS = (128, 256, 512, 1024, 2048, 4096), (256, 512, 1024, 2048)
SCHEMES = ("w8a8", "w4a8")
LAYERS, WIDTH, CONTEXT = 4, 512, 512  # of the curve along the other one
PROMPT, GENERATE = 64, 32


@dataclass(frozen=True)
class Point:
    scheme: str
    width: int
    context: int

    @property
    def name(self) -> str:
        return f"{self.scheme} width {self.width} context {self.context}"


def contenders(point: Point, work: Path, threads: int, *, layers: int = LAYERS) -> list[Contender]:
    """One a back end, exported unless they lie in `work` already."""
    folder = work / point.name.replace(" ", "-")
    target = replace(find_target("host-cpu"), context=point.context, backends=BACKENDS)
    if not (folder / TARGET_FILE).is_file():
        frozen = random_frozen(random_spec(point.width, layers, point.context), point.scheme)
        folder.mkdir(parents=True, exist_ok=True)
        write_target(frozen, target, folder, Silent())
        write_json(folder / layout.PLAN, frozen.plan.to_json())
        write_json(folder / TARGET_FILE, target_json(target))
    settings = {"artifact": str(folder), "exported": str(folder), "threads": threads}
    return [
        Contender(f"{point.name} {b}", "ours", {**settings, "backend": b}, runtime_files(folder / b), scored=False)
        for b in BACKENDS
    ]


def curve(
    points: Sequence[Point], work: Path, *, threads: int, repeat: int, prompt: int, generate: int, layers: int = LAYERS
) -> list[dict[str, Any]]:
    """A row a point and back end: medians and ranges."""
    each = [(point, one) for point in points for one in contenders(point, work, threads, layers=layers)]
    timed = race([one for _, one in each], [prompt], generate, repeat, VOCAB)
    return [
        {
            **vars(point),
            "backend": one.settings["backend"],
            "file_bytes": one.file_bytes,
            **timed[one.name][str(prompt)],
        }
        for point, one in each
    ]


def draw(result: dict[str, Any]) -> str:
    """SVG text: milliseconds a token, decode above prefill; from 0 up by context, in logs by width."""
    figure, panels = pyplot().subplots(2, 2, figsize=(9, 6.4))
    for column, along in enumerate(("context", "width")):
        for line, key in enumerate(("decode_tokens_per_s", "prefill_tokens_per_s")):
            axes, rows = panels[line][column], result[along]
            for name in sorted({(row["scheme"], row["backend"]) for row in rows}):
                own = [row for row in rows if (row["scheme"], row["backend"]) == name]
                axes.plot(
                    [r[along] for r in own],
                    [1000 / r[key] for r in own],
                    marker="o",
                    markersize=3,
                    label=" ".join(name),
                )
            axes.set_xscale("log", base=2)
            places = sorted({row[along] for row in rows})
            axes.set_xticks(places, [f"{place:,}" for place in places])
            if along == "width":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(_plain)
                axes.yaxis.set_minor_formatter(_plain)
            else:
                axes.set_ylim(bottom=0)
            axes.tick_params(which="both", labelsize=8)
            axes.set_xlabel(along, fontsize=8)
            axes.set_ylabel(f"{key.split('_')[0]}, ms a token", fontsize=8)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0][1].legend(fontsize=8, frameon=False, loc="upper left")  # the corner that rising lines leave free
    threads = "1 thread" if result["threads"] == 1 else f"{result['threads']} threads"
    figure.suptitle(f"{result['layers']} layers, random weights, {threads}", fontsize=10)
    return svg_text(figure)


def _plain(milliseconds: float, _: int) -> str:
    """Of a logarithmic axis' ticks those at 1, 2 and 5."""
    digits = f"{milliseconds:.0e}"
    return f"{milliseconds:g}" if digits[0] in "125" else ""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    settings: dict[str, Any] = {"threads": options.threads, "repeat": options.repeat}
    result: dict[str, Any] = {**settings, "layers": LAYERS, "prompt_tokens": PROMPT, "generate_tokens": GENERATE}
    for along, points in (
        ("context", [Point(s, WIDTH, c) for s in SCHEMES for c in CONTEXTS]),
        ("width", [Point(s, w, CONTEXT) for s in SCHEMES for w in WIDTHS]),
    ):
        result[along] = curve(points, options.work, **settings, prompt=PROMPT, generate=GENERATE)
    write_result("speed-curves", {**result, "environment": environment()}, draw(result))


if __name__ == "__main__":
    main()

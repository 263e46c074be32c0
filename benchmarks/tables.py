"""Tables of README.md and docs/, made from the committed results: `python -m benchmarks.tables [--check]`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; what is between is replaced, by nothing where there is
no result.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.table import curves, side_by_side, summary
from benchmarks.steps import read_result
from mobileicsa.artifact.layout import runtime_files

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "targets.md", ROOT / "docs" / "performance.md")
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def speed(result: dict[str, Any]) -> list[str]:
    """Host speed beside float32 on the same runtime."""
    environment = result["environment"]
    flags = " ".join(environment["cpu_flags"])
    columns = (
        "scheme, runtime, decode tok/s, over float32, prefill tok/s, over float32, first token, peak RSS, model files"
    )
    lines = [
        f"{environment['cpu']}, {environment['cores']} cores, {flags}; medians, all contenders in turn.",
        "",
        f"| {columns.replace(', ', ' | ')} |",
        "|---" * 9 + "|",
    ]
    for row in result["rows"]:
        for name, words in (("onnx", "ONNX Runtime"), ("executorch", "ExecuTorch")):
            if "bench" not in row:
                continue
            timed = row["bench"][name]
            ratio = timed["ratio_to_float32"]
            cells = [
                row["scheme"],
                words,
                f"{timed['decode_tokens_per_s']:.0f}",
                f"{ratio['decode_tokens_per_s']:.2f}×",
                f"{timed['prefill_tokens_per_s']:.0f}",
                f"{ratio['prefill_tokens_per_s']:.2f}×",
                f"{timed['first_token_ms']:.0f} ms",
                f"{timed['peak_rss_bytes'] / 2**20:.0f} MiB",
                f"{sum(runtime_files(row['files'][name]).values()) / 1e6:.0f} MB",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def recipes(result: dict[str, Any]) -> list[str]:
    """Perplexity over float of every recipe, and of peers, on two texts; KL where it was measured."""
    count = result["float"]["wikitext2"]["tokens"]
    made_on = result["environment"]
    lines = [
        f"{result['model']}, first {count:,} tokens of each text, {result['window']}-token windows. Nothing was "
        "calibrated or learned on either text; where no text is named, it is the model's own. Peers (*) leave more in "
        f"float: head, embedding, norms, softmax, stream. Times, if not said otherwise, of {made_on['cores']} cores, "
        f"{made_on['cpu']}." + _trained(result),
        "",
        "| scheme | recipe | WikiText-2 | over float | KL to float | same best token | ONNX Runtime | ExecuTorch "
        "| Tiny Shakespeare | over float | time |",
        "|---" * 11 + "|",
    ]
    named = [(row["scheme"], _recipe(row), row) for row in result["rows"]]
    named += [(peer["scheme"], f"{peer['name']} *", peer) for peer in result["peers"]]
    for scheme, name, row in [
        ("float32", "", {"texts": result["float"]}),
        *sorted(named, key=lambda n: n[0], reverse=True),
    ]:
        wiki, plays = (_over_float(row["texts"][text]) for text in ("wikitext2", "shakespeare"))
        runtimes = row.get("runtimes", {})
        measured = [f"{runtimes[key]['perplexity']:.2f}" if key in runtimes else "" for key in ("onnx", "executorch")]
        cells = [scheme, name, *wiki, *_divergence(row["texts"]["wikitext2"]), *measured, *plays]
        lines.append(f"| {' | '.join(cells)} | {_time(row)} |")
    return [*lines, *_notes(result["rows"])]


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """What has to be known of single rows, below their table."""
    notes = [f"- {row['scheme']} {_recipe(row)}: {row['note']}." for row in rows if "note" in row]
    return ["", *notes] if notes else []


def _time(row: dict[str, Any]) -> str:
    """Of quantising; a row says so where it was not on the table's machine."""
    seconds = row.get("quantize_s")
    if seconds is None:
        return ""
    minutes = "under 1 min" if seconds < 60 else f"{seconds / 60:.0f} min"
    return f"{minutes} ({row['machine']})" if "machine" in row else minutes


def _over_float(found: dict[str, Any]) -> list[str]:
    return [f"{found['perplexity']:.2f}", f"{found['ratio']:.3f}×" if "ratio" in found else ""]


def _divergence(found: dict[str, Any]) -> list[str]:
    """Mean over tokens of KL(float, this), in nats; share of tokens whose best prediction is float's."""
    kl, top1 = found.get("kl_to_reference"), found.get("top1_agreement")
    return ["" if kl is None else f"{kl:.3f}", "" if top1 is None else f"{top1:.1%}"]


def _trained(result: dict[str, Any]) -> str:
    """What a model of benchmarks/small_model is; nothing of others."""
    if "training" not in result:
        return ""
    training = result["training"]
    return (
        f" {training['parameters'] / 1e6:.1f} M parameters on no grid, trained here on "
        f"{training['tokens']['seen'] / 1e6:.1f} M tokens of other text; of Tiny Shakespeare the last 10 % is used."
    )


def _recipe(row: dict[str, Any]) -> str:
    effort = "" if row["effort"] == "default" else f", effort {row['effort']}"
    calibration = row.get("calibration")
    return f"{row['recipe']}{effort}" + ("" if calibration is None else f", on {calibration}")


ZERO_SHOT = {
    "lambada_openai": "LAMBADA",
    "arc_easy": "ARC-E",
    "arc_challenge": "ARC-C",
    "hellaswag": "HellaSwag",
    "piqa": "PIQA",
    "winogrande": "WinoGrande",
}


def zero_shot(result: dict[str, Any]) -> list[str]:
    """Zero-shot accuracy of float and of every recipe; the mean's paired difference to float."""
    reference = result["float"]
    counts = sorted({task["n"] for task in reference["tasks"].values()})
    questions = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    lines = [
        f"{result['model']}, lm-eval {result['lm_eval']}, zero-shot: {questions} questions of each task, the same for "
        "every model. Percent, ± one standard error; length-normalised (acc_norm) where lm-eval has that. The last "
        "column is paired with float, question by question.",
        "",
        f"| scheme | recipe | {' | '.join(ZERO_SHOT.values())} | mean | against float |",
        "|---" * (len(ZERO_SHOT) + 4) + "|",
    ]
    named = [("float32", "", reference), *((row["scheme"], _recipe(row), row) for row in result["rows"])]
    for scheme, name, row in named:
        scores = [_score(row["tasks"][task]) for task in ZERO_SHOT]
        cells = [scheme, name, *(_percent(one["value"], one["stderr"]) for one in [*scores, row["mean"]])]
        change = row["mean"].get("difference")
        cells.append("" if change is None else _percent(change, row["mean"]["difference_stderr"], sign="+"))
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, *_notes(result["rows"])]


def _score(task: dict[str, Any]) -> dict[str, float]:
    score: dict[str, float] = task["acc_norm"] if "acc_norm" in task else task["acc"]
    return score


def _percent(value: float, stderr: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} ± {100 * stderr:.1f}"


def ablation(result: dict[str, Any]) -> list[str]:
    """Perplexity over float with single parts off."""
    lines = [
        f"{result['model']}, W4A8, the texts and windows of the tables above" + _ending(result),
        "",
        "| | WikiText-2 | Tiny Shakespeare |",
        "|---|---|---|",
    ]
    for row in result["rows"]:
        ratios = [f"{row['texts'][text]['ratio']:.3f}×" for text in ("wikitext2", "shakespeare")]
        lines.append(f"| {' | '.join([row['name'], *ratios])} |")
    return lines


def _ending(result: dict[str, Any]) -> str:
    """The end of a sentence, with what has to be known of the whole table."""
    return f"; {result['note']}." if "note" in result else "."


def agreement(result: dict[str, Any]) -> list[str]:
    """Each operator's integers on each engine against the simulator's."""
    rows: dict[str, dict[str, Any]] = result["operators"]
    engines = list(next(iter(rows.values())))
    reasons: list[str] = []
    lines = [f"| operator | {' | '.join(engines)} |", "|---" * (len(engines) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {' | '.join([name, *(_agreed(row[engine], reasons) for engine in engines)])} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return [*lines, *([""] if notes else []), *notes]


def engines(result: dict[str, Any]) -> list[str]:
    """Whole artifacts on every engine beside the simulator of the same program."""
    lines = [
        "| artifact | engine | first layer equal | all layers equal | largest step | best token equal "
        "| perplexity | simulator |",
        "|---" * 8 + "|",
    ]
    for artifact, row in result["artifacts"].items():
        for engine, found in row["engines"].items():
            if "reason" in found:
                lines.append(f"| {artifact} | {engine} | {found['reason']} |  |  |  |  |  |")
                continue
            shares = [f"{100 * found[key]:.1f} %" for key in ("first_layer_equal", "equal_share")]
            perplexities = [f"{found[key]:.2f}" for key in ("perplexity", "simulator_perplexity")]
            steps, best = str(found["max_steps"]), f"{100 * found['top1_agreement']:.0f} %"
            lines.append(f"| {' | '.join([artifact, engine, *shares, steps, best, *perplexities])} |")
    return lines


def _agreed(found: dict[str, Any], reasons: list[str]) -> str:
    for key, words in (("unsupported", "unsupported"), ("absent", "not run")):
        if key in found:
            if found[key] not in reasons:
                reasons.append(found[key])
            return f"{words} ({reasons.index(found[key]) + 1})"
    if found["max_steps"] == 0:
        return "equal"
    most = "≤ 1 step" if found["max_steps"] == 1 else f"≤ {found['max_steps']:,} steps"
    return f"{most}, {100 * found['equal_share']:.1f} % equal"


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], list[str]]]] = {
    "agreement": ("targets", agreement),
    "engines": ("engines", engines),
    "ablation": ("ablation-small-llama", ablation),
    "curves": ("speed-curves", curves),
    "side_by_side": ("speed-smollm2-135m", side_by_side),
    "recipes": ("accuracy-smollm2-135m", recipes),
    "recipes_small": ("accuracy-small-llama", recipes),
    "speed": ("route-smollm2-135m", speed),
    "speed_summary": ("speed-smollm2-135m", summary),
    "zero_shot": ("zero-shot-smollm2-135m", zero_shot),
}


def fill(text: str) -> str:
    """`text` with every table made again."""

    def table(match: re.Match[str]) -> str:
        source, make = TABLES[match[2]]
        result = read_result(source)
        if result is None:
            return match[1] + match[3]
        return match[1] + "\n".join(make(result)) + "\n" + match[3]

    return PLACE.sub(table, text)


def main() -> None:
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = fill(before)
        if "--check" not in sys.argv[1:]:
            page.write_text(after, encoding="utf-8")
        elif before != after:
            raise SystemExit(f"{page.name} is not what benchmarks/results say: run `make docs`")


if __name__ == "__main__":
    main()

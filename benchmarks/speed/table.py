"""Tables of docs/performance.md, from the committed results of the side-by-side run and of the curves."""

from __future__ import annotations

from statistics import median
from typing import Any

YARDSTICK = "llama.cpp Q4_0"
KEYS = ("decode_tokens_per_s", "prefill_tokens_per_s")


def side_by_side(result: dict[str, Any]) -> list[str]:
    """Every contender: speeds (over the yardstick's, turn by turn), latency, memory, size, perplexity."""
    rows = {row["name"]: row for row in result["rows"]}
    prompts = sorted(next(iter(rows.values()))["speed"], key=int)
    environment = result["environment"]
    scored = max(row.get("tokens", 0) for row in rows.values())
    names = [f"{kind}, prompt {prompt}" for prompt in prompts for kind in ("decode", "prefill")]
    lines = [
        f"{result['model']}, {environment['cpu']}, {' '.join(environment['cpu_flags'])}, {result['threads']} thread; "
        f"{result['generate_tokens']} tokens generated, medians of {result['repeat']} turns in which all contenders "
        f"ran one after the other. Tokens a second, in brackets over {YARDSTICK} of the same turn. Perplexity of "
        f"the same {scored:,} tokens of {result['text']}; a program that is scored in another row has none.",
        "",
        f"| contender | {' | '.join(names)} | first token | load | peak RSS | files | perplexity |",
        "|---" * (len(names) + 6) + "|",
    ]
    for name, row in rows.items():
        cells = [name]
        for prompt in prompts:
            for key in KEYS:
                cells.append(_speed(row["speed"][prompt], rows.get(YARDSTICK, {}).get("speed", {}).get(prompt), key))
        first = row["speed"][prompts[0]]
        cells += [f"{first['first_token_ms']:.0f} ms", f"{first['load_ms'] / 1000:.1f} s"]
        cells.append(f"{max(row['speed'][p]['peak_rss_bytes'] for p in prompts) / 1e6:.0f} MB")
        cells.append(f"{row['file_bytes'] / 1e6:.0f} MB" if row["file_bytes"] else "")
        cells.append(f"{row['perplexity']:.2f}" if "perplexity" in row else "")
        lines.append(f"| {' | '.join(cells)} |")
    skipped = [f"Left out: {name}: {why}" for name, why in result["skipped"].items()]
    return [*lines, *([""] if skipped else []), *skipped]


def summary(result: dict[str, Any]) -> list[str]:
    """The shorter prompt alone, fastest decoder first."""
    prompt = min(result["rows"][0]["speed"], key=int)
    rows = {row["name"]: row for row in result["rows"] if "perplexity" in row}
    speeds = {name: row["speed"][prompt] for name, row in rows.items()}
    lines = [
        f"{result['model']}, {result['threads']} thread, prompt of {prompt} tokens, {result['generate_tokens']} "
        f"generated, all in turns in one run; tokens a second, in brackets over {YARDSTICK} of the same turn.",
        "",
        "| | decode | prefill | peak RSS | files | perplexity |",
        "|---" * 6 + "|",
    ]
    for name in sorted(rows, key=lambda n: speeds[n][KEYS[0]], reverse=True):
        cells = [name, *(_speed(speeds[name], speeds.get(YARDSTICK), key) for key in KEYS)]
        cells.append(f"{speeds[name]['peak_rss_bytes'] / 1e6:.0f} MB")
        cells.append(f"{rows[name]['file_bytes'] / 1e6:.0f} MB" if rows[name]["file_bytes"] else "")
        cells.append(f"{rows[name]['perplexity']:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _speed(own: dict[str, Any], yardstick: dict[str, Any] | None, key: str) -> str:
    if yardstick is None:
        return f"{own[key]:.0f}"
    turns = zip(own["turns"], yardstick["turns"], strict=True)
    return f"{own[key]:.0f} ({median(a[key] / b[key] for a, b in turns):.2f}×)"


def curves(result: dict[str, Any]) -> list[str]:
    """Milliseconds a token against context and width."""
    lines = [
        f"{result['layers']} layers with random weights, prompt of {result['prompt_tokens']} tokens, "
        f"{result['generate_tokens']} generated, {result['threads']} thread; milliseconds a token, decode / prefill.",
    ]
    for along in ("context", "width"):
        rows = result[along]
        sizes = sorted({row[along] for row in rows})
        lines += ["", f"| {along} | {' | '.join(map(str, sizes))} |", "|---" * (len(sizes) + 1) + "|"]
        for name in sorted({(row["scheme"], row["backend"]) for row in rows}):
            own = {row[along]: row for row in rows if (row["scheme"], row["backend"]) == name}
            cells = [" / ".join(f"{1000 / own[size][key]:.2f}" for key in KEYS) for size in sizes]
            lines.append(f"| {' '.join(name)} | {' | '.join(cells)} |")
    return lines

"""What a run with limits on size or loss gave more bits, and what came of it: words from report.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mobileicsa.report.words import share

LARGEST_SHOWN = 100.0  # an increase beyond it is only said to be so


def mixed_facts(mixed: dict[str, Any] | None, size: Callable[[float], str | None]) -> list[tuple[str, str | None]]:
    """Names and values, in order; nothing for a run without limits. `size` puts bytes in words."""
    if mixed is None:
        return []
    limits, measured = mixed["limits"], mixed["measured"]
    budget, most = limits["budget_bytes"], limits["max_ppl_increase"]
    asked = [f"{budget:,} bytes"] if budget is not None else []
    asked += [f"{share(most)} more perplexity"] if most is not None else []
    least, all_wide = mixed["packed_bytes_least"], mixed["packed_bytes_most"]
    bounds = (mixed["predicted_increase_most"], mixed["predicted_increase_least"])
    return [
        ("limits", ", ".join(asked)),
        ("8-bit linears", f"{len(mixed['promoted'])} of {mixed['candidates']}" if mixed["candidates"] else None),
        ("16-bit inputs", f"{len(wide)} of {mixed['input_candidates']}" if (wide := mixed.get("inputs")) else None),
        ("packed weights", f"{size(mixed['packed_bytes'])} ({size(least)} without, {size(all_wide)} with all)"),
        (
            "expected loss",
            f"{_more(mixed['predicted_increase'])} more perplexity ({_more(bounds[0])} without, {_more(bounds[1])} "
            "with all)",
        ),
        (
            "measured loss",
            f"{_more(measured['increase'])} ± {_more(measured['standard_error'])} more perplexity, on "
            f"{measured['tokens']:,} tokens that the float model wrote with another seed"
            + ("" if measured["met"] is not False else ": more than the limit"),
        ),
        ("shortfall", mixed["shortfall"]),
    ]


def _more(increase: float) -> str:
    return share(increase) if increase < LARGEST_SHOWN else f"over {share(LARGEST_SHOWN, 0)}"


def layers_by_path(names: Iterable[str]) -> dict[str, list[int]]:
    """Layers of each path in a block; `names` as "layers.3.mlp.up_proj.weight" or "layers.3.mlp.product"."""
    found: dict[str, list[int]] = {}
    for name in names:
        _, layer, path = name.removesuffix(".weight").split(".", 2)
        found.setdefault(path, []).append(int(layer))
    return {path: sorted(found[path]) for path in sorted(found)}


def spans(layers: list[int]) -> str:
    """Ascending layers in words: 0, 2-5, 7."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))

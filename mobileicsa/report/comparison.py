"""Texts of the artifact beside the float model's, as the page shows them, from report.json."""

from __future__ import annotations

from typing import Any

from mobileicsa.report.words import backend_name, share, visible

# Pairs that are unfolded when the page opens.
OPEN = 3
SIDES = ("float", "artifact")


def comparison_view(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the page's section shows; None where nothing was compared."""
    if found is None:
        return None
    name = backend_name(found["backend"])
    pairs, asked = found["pairs"], found["prompts"]
    return {
        "agreement": share(found["token_agreement"]),
        "identical": f"{found['identical']} of {len(pairs)}",
        "unfinished": None if found["finished"] else f"Interrupted: {len(pairs)} of {asked} prompts.",
        "terms": (
            f"Greedy, up to {found['tokens']} tokens behind each prompt; {found['reference']} in float32, and the "
            f"artifact for {found['target']} on {name}."
        ),
        "warning": found["warning"],
        "pairs": [_pair(pair, opened=index < OPEN, name=name) for index, pair in enumerate(pairs)],
    }


def _pair(pair: dict[str, Any], *, opened: bool, name: str) -> dict[str, Any]:
    equal, tokens = pair["equal_tokens"], pair["tokens"]
    return {
        "prompt": pair["prompt"],
        "equal": f"all {tokens} tokens equal" if equal == tokens else f"{equal} of {tokens} tokens equal",
        "open": opened,
        "sides": [_side(pair[side], words) for side, words in zip(SIDES, ("float32", name), strict=True)],
    }


def _side(side: dict[str, Any], name: str) -> dict[str, Any]:
    """The text in three parts: before the first differing token, that token, behind it."""
    text = side["text"]
    start, end = side.get("differs", (len(text), len(text)))
    token = text[start:end]
    if token.isspace():
        token = visible(token)
    # A text that ended where the other went on differs there too.
    mark = token or "(ends)" if "differs" in side else None
    return {"name": name, "head": text[:start], "mark": mark, "tail": text[end:]}

"""Greedy texts of an artifact and of the float model for the same prompts, side by side.

Greedy decoding is a chain: from the first token that differs on, the two write about different things. So what is
counted is how far they go together, and the texts are kept whole for people to read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from mobileicsa.artifact.generates import Generates
from mobileicsa.artifact.golden import PROMPTS, common_length
from mobileicsa.artifact.model import FloatModel, QuantizedModel
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.core.errors import InputError
from mobileicsa.io.paths import public_name
from mobileicsa.quantize.steps import Progress

TOKENS = 256
COUNT = 20
BUNDLED = PROMPTS


def step_title(index: int, count: int) -> str:
    """Under which the texts of one prompt report progress."""
    return f"prompt {index + 1}/{count}"


def compare(
    model: QuantizedModel,
    reference: FloatModel,
    prompts: Sequence[str] = BUNDLED[:COUNT],
    *,
    tokens: int = TOKENS,
    before: dict[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Continue every prompt by up to `tokens` tokens on both models.

    `pairs` has an entry a prompt: both texts, `equal_tokens` of `tokens` from the start on, and where in each text the
    first differing token stands. `keep` is called with the result so far after each pair, so that nothing is lost when
    a run ends early; `before`, such a result, is gone on with where it is unfinished and of the same terms.

    Raises InputError for prompts that the reference splits into other tokens, or that do not fit a context.
    """
    _check(model, reference, prompts, tokens)
    terms = {
        "backend": model.backend,
        "target": model.target.name,
        "reference": public_name(reference.name),
        "tokens": tokens,
        "prompts": len(prompts),
        "mobileicsa_version": version("mobileicsa"),
        "warning": _other_model(model, reference),
    }
    pairs = _unfinished(before, terms, prompts)
    for index in range(len(pairs), len(prompts)):
        tick = progress.step(step_title(index, len(prompts)), 2 * tokens) if progress else lambda: None
        pairs.append(_pair(model, reference, prompts[index], tokens, tick))
        if keep is not None:
            keep({**terms, **_summary(pairs, len(prompts)), "pairs": pairs})
    return {**terms, **_summary(pairs, len(prompts)), "pairs": pairs}


def _check(model: QuantizedModel, reference: FloatModel, prompts: Sequence[str], tokens: int) -> None:
    room = min(one.runner.target.context - max(one.runner.prefix_length, 1) for one in (model, reference))
    for number, prompt in enumerate(prompts, 1):
        ids = model.tokenizer.encode(prompt)
        if reference.tokenizer.encode(prompt) != ids:
            raise InputError(
                f"{reference.name}: splits prompt {number} into other tokens than {model.name}",
                hint="the reference must be the model that the artifact was made from",
            )
        if len(ids) + tokens > room:
            raise InputError(
                f"prompt {number}: its {len(ids)} tokens and {tokens} new ones do not fit a context of {room}",
                hint="use fewer --tokens or shorter prompts, or export for a target with a larger context",
            )


def _other_model(model: QuantizedModel, reference: FloatModel) -> str | None:
    if model.manifest["model_identity"] == reference.identity:
        return None
    return f"{public_name(reference.name)} is not the checkpoint that the artifact was made from"


def _unfinished(before: dict[str, Any] | None, terms: dict[str, Any], prompts: Sequence[str]) -> list[dict[str, Any]]:
    """The pairs of an earlier call that did not come to its end."""
    if before is None or before["finished"] or {name: before.get(name) for name in terms} != terms:
        return []
    pairs: list[dict[str, Any]] = before["pairs"]
    same = all(pair["prompt"] == prompt for pair, prompt in zip(pairs, prompts, strict=False))
    return list(pairs) if same else []


def _pair(
    model: QuantizedModel, reference: FloatModel, prompt: str, tokens: int, tick: Callable[[], None]
) -> dict[str, Any]:
    made = {name: _written(one, prompt, tokens, tick) for name, one in (("float", reference), ("artifact", model))}
    first, second = (side["token_ids"] for side in made.values())
    equal = common_length(first, second)
    if first != second:
        for side in made.values():
            side["differs"] = list(token_span(model.tokenizer, side["token_ids"], equal))
    return {"prompt": prompt, "equal_tokens": equal, "tokens": max(len(first), len(second)), **made}


def _written(model: Generates, prompt: str, tokens: int, tick: Callable[[], None]) -> dict[str, Any]:
    made = model.generate(prompt, max_new_tokens=tokens, on_text=lambda piece: tick())
    return {"text": made.text, "token_ids": made.token_ids}


def token_span(tokenizer: Tokenizer, ids: Sequence[int], index: int) -> tuple[int, int]:
    """Where token `index` stands in the text of `ids`, in characters; both ends at the text's where it has none.

    A character of several tokens belongs to the first of them.
    """
    text = tokenizer.decode(ids)

    def shared(count: int) -> int:
        # The text of a part may end in half a character, which decodes to U+FFFD.
        return common_length(text, tokenizer.decode(ids[:count]))

    start = shared(index)
    ends = (shared(count) for count in range(index + 1, len(ids) + 1))
    return start, next((end for end in ends if end > start), len(text) if index < len(ids) else start)


def _summary(pairs: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    """`token_agreement`: share of all tokens that come before their text's first difference."""
    total = sum(pair["tokens"] for pair in pairs)
    return {
        "finished": len(pairs) == count,
        "token_agreement": sum(pair["equal_tokens"] for pair in pairs) / total if total else 1.0,
        "identical": sum(pair["equal_tokens"] == pair["tokens"] for pair in pairs),
    }

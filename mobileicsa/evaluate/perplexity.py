"""Perplexity of a language model on a text, and its distance to a reference model on the same tokens.

A window is BOS (or the artifact's fixed prefix) followed by window - 1 text tokens; every text token is predicted.
Without BOS it is `window` text tokens of which all but the first are predicted. Either way window - 1 tokens count,
so a float model and its quantised form are always measured on the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mobileicsa.calibrate.overlap import overlap_warning
from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.evaluate.by_position import ByPosition
from mobileicsa.io.hashing import sha256_bytes

if TYPE_CHECKING:
    from mobileicsa.artifact.generates import LanguageModel
    from mobileicsa.quantize.steps import Progress

WINDOW = 256
# Log-probabilities are made for so many rows at a time that they take this much memory whatever the vocabulary.
CHUNK_VALUES = 1 << 22
# More text is not read: a tokenizer takes 150 bytes of memory for each of text. About a million tokens.
MAX_CHARACTERS = 4 << 20


@dataclass(frozen=True)
class Window:
    """Text tokens [start, end); those from `scored_from` on are predicted and count."""

    start: int
    end: int
    scored_from: int

    @property
    def scored(self) -> int:
        return self.end - self.scored_from


def plan_windows(tokens: int, window: int, stride: int | None, has_bos: bool) -> list[Window]:
    """Windows over `tokens` text tokens. With a stride, a token already scored only gives context."""
    body = window - 1 if has_bos else window
    step = body if stride is None else stride
    found: list[Window] = []
    start = done = 0
    while done < tokens:
        end = min(start + body, tokens)
        scored_from = max(done, start if has_bos else start + 1)
        if scored_from < end:
            found.append(Window(start, end, scored_from))
        done, start = end, start + step
    return found


def evaluate(
    model: LanguageModel,
    text: str,
    *,
    window: int = WINDOW,
    max_windows: int | None = None,
    stride: int | None = None,
    reference: LanguageModel | None = None,
    by_position: bool = False,
    calibration: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Perplexity of `model` on `text`; with `reference` also its perplexity, KL(reference || model) and agreement.

    `by_position`: whole windows only, and the result says how the loss goes along them (`ByPosition`).

    `calibration`: the report's facts of the text that the model was calibrated on; where it shares lines with `text`
    the result has a "warning".

    The text (its first MAX_CHARACTERS) is tokenised once, without special tokens. Raises InputError for a text without
    tokens, a window larger than the model's context, and logits that are not finite.
    """
    has_bos = model.bos_id is not None
    body = window - 1 if has_bos else window
    _check(model, reference, window, max_windows, stride, has_bos)
    if by_position and stride is not None:
        raise UsageError(f"--stride {stride}: windows must not overlap with --by-position", hint="leave --stride out")
    used = text[:MAX_CHARACTERS]
    ids = model.tokenizer.encode(used)
    if reference is not None and reference.tokenizer.encode(used) != ids:
        raise InputError(
            f"{reference.name}: splits the text into other tokens than {model.name}",
            hint="the reference must be the model that the artifact was made from",
        )
    windows = plan_windows(len(ids), window, stride, has_bos)
    if not windows:
        raise InputError("text: holds no token to predict", hint="give a text of at least one sentence")
    positions = None
    if by_position:
        positions = ByPosition(body, body - windows[0].scored, compared=reference is not None)
        windows = [piece for piece in windows if piece.end - piece.start == body]
        if not windows:
            raise InputError(
                f"text: {len(ids)} tokens are less than one window of {window}",
                hint="give a longer text or a smaller --window",
            )
    windows = windows[:max_windows]
    sums = _Sums(positions)
    tick = progress.step("perplexity", len(windows)) if progress else lambda: None
    for piece in windows:
        tokens = ids[piece.start : piece.end]
        position = len(tokens) - piece.scored
        if positions is not None:
            positions.next_window()
        for logits, expected in _scored_rows(model, reference, tokens, piece.scored):
            sums.add(tokens, position, logits, expected, where=f"window at token {piece.start}")
            position += len(logits)
        tick()
    result: dict[str, Any] = {
        "perplexity": sums.perplexity(),
        "tokens": sums.tokens,
        "windows": len(windows),
        "window": window,
        "stride": stride or (window - 1 if has_bos else window),
        "bos": has_bos,
        "bos_token": None if model.bos_id is None else model.tokenizer.token(model.bos_id),
        "scored": _scored_words(window, stride, has_bos),
        "backend": model.backend,
        "text_sha256": sha256_bytes(text.encode()),
        "text_tokens": len(ids),
    }
    if windows[0].end - windows[0].start == len(ids) and len(ids) < window - 1:
        result["note"] = f"the text has only {len(ids)} tokens, less than one window"
    if len(used) < len(text):
        result["note"] = f"only the first {len(used)} of {len(text)} characters are used"
    warning = None if calibration is None else overlap_warning(calibration, text)
    if warning is not None:
        result["warning"] = warning
    if reference is not None:
        result |= sums.against_reference()
    if positions is not None:
        result["by_position"] = positions.result()
    return result


def _check(
    model: LanguageModel,
    reference: LanguageModel | None,
    window: int,
    max_windows: int | None,
    stride: int | None,
    has_bos: bool,
) -> None:
    body = window - 1 if has_bos else window
    if window < 2:
        raise UsageError(f"--window {window}: must be at least 2 (one token to read, one to predict)")
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"--max-windows {max_windows}: must be at least 1")
    if stride is not None and not 1 <= stride <= body:
        raise UsageError(f"--stride {stride}: must lie between 1 and {body}, the text tokens of a window")
    for one in (model, reference):
        if one is not None and body > one.max_window:
            raise InputError(
                f"--window {window}: {one.name} on {one.backend} holds {one.max_window} text tokens at most",
                hint=f"use --window {one.max_window + window - body} or less",
            )


def _scored_words(window: int, stride: int | None, has_bos: bool) -> str:
    if stride is not None:
        return f"every text token once, with up to {window - 1} tokens before it"
    if has_bos:
        return f"all {window - 1} text tokens behind BOS in each window"
    return f"text tokens 2 to {window} of each window (the model has no BOS)"


def _scored_rows(
    model: LanguageModel, reference: LanguageModel | None, tokens: list[int], scored: int
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Predictions of the last `scored` tokens, piece by piece, the reference's beside them."""
    ours = _last_rows(model, tokens, scored)
    if reference is None:
        yield from ((rows, None) for rows in ours)
        return
    theirs = _last_rows(reference, tokens, scored)
    expected = next(theirs)
    for rows in ours:
        # The two come in pieces of their own lengths.
        while len(rows):
            if not len(expected):
                expected = next(theirs)
            count = min(len(rows), len(expected))
            yield rows[:count], expected[:count]
            rows, expected = rows[count:], expected[count:]


def _last_rows(model: LanguageModel, tokens: list[int], scored: int) -> Iterator[Tensor]:
    context = len(tokens) - scored - (model.bos_id is None)
    for rows in model.logit_chunks(tokens):
        if context < len(rows):
            yield rows[context:]
        context = max(context - len(rows), 0)


class _Sums:
    """Running sums over scored tokens, in float64."""

    def __init__(self, positions: ByPosition | None) -> None:
        self.positions = positions
        self.tokens = 0
        self.loss = self.reference_loss = self.divergence = 0.0
        self.agreed = 0

    def add(self, tokens: list[int], start: int, logits: Tensor, expected: Tensor | None, *, where: str) -> None:
        """Predictions of a window's tokens from number `start` on, and the reference's."""
        targets = torch.tensor(tokens[start : start + len(logits)])
        for rows in _chunks(len(targets), logits.shape[-1]):
            log_p = _log_probabilities(logits[rows], where)
            values = [-log_p.gather(1, targets[rows, None])[:, 0]]
            self.loss += float(values[0].double().sum())
            if expected is not None:
                log_q = _log_probabilities(expected[rows], f"reference, {where}")
                values += [-log_q.gather(1, targets[rows, None])[:, 0], (log_q.exp() * (log_q - log_p)).sum(1)]
                self.reference_loss += float(values[1].double().sum())
                self.divergence += float(values[2].double().sum())
                self.agreed += int((log_p.argmax(1) == log_q.argmax(1)).sum())
            if self.positions is not None:
                self.positions.add(start + rows.start, *values)
        self.tokens += len(targets)

    def perplexity(self) -> float:
        return _exponential(self.loss / self.tokens)

    def against_reference(self) -> dict[str, float]:
        reference = _exponential(self.reference_loss / self.tokens)
        return {
            "reference_perplexity": reference,
            "ratio": self.perplexity() / reference,
            # Rounding can push the sum a hair below zero where the models are equal.
            "kl_to_reference": max(self.divergence / self.tokens, 0.0),
            "top1_agreement": self.agreed / self.tokens,
        }


def _exponential(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError as error:
        raise InputError(
            f"perplexity: the mean loss {loss:.0f} is beyond any number", hint="the model is broken"
        ) from error


def _chunks(rows: int, vocab: int) -> Iterator[slice]:
    size = max(1, CHUNK_VALUES // vocab)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _log_probabilities(logits: Tensor, where: str) -> Tensor:
    if not bool(torch.isfinite(logits).all()):
        raise InputError(f"{where}: logits are NaN or infinite", hint="run `mobileicsa verify` on the artifact")
    return torch.log_softmax(logits.float(), dim=-1)

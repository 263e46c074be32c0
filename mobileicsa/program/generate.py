"""Run a session: the cache, chunked prefill, one-token decode, greedy or sampled generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mobileicsa.core.errors import InputError
from mobileicsa.core.target import Target
from mobileicsa.program.backend import AnyRowsSession, Array, FillingSession, IntArray, Session

# Rows by which a cache grows: a runtime plans its memory anew each time, and attends to the free ones in vain.
CACHE_STEP = 64


class TokenRunner:
    """Owns the cache of one conversation: numpy arrays (1, kv_heads, slots, head_dim), keys and values by layer.

    `slots` is the target's context, or follows the conversation where the session takes that. `prefix_cache` holds the
    rows put in front of every conversation (P may be 0), `prefix_logits` (vocab,) what the prefix itself predicts.
    """

    def __init__(
        self,
        session: Session,
        target: Target,
        prefix_cache: Sequence[Array],
        prefix_logits: NDArray[np.float32] | None,
    ) -> None:
        self.session, self.target = session, target
        self.prefix_logits = prefix_logits
        self._prefix = list(prefix_cache)
        self.prefix_length = int(self._prefix[0].shape[2])
        self._grows = isinstance(session, AnyRowsSession) and session.any_rows
        self.reset()

    def reset(self) -> None:
        """Back to the prefix alone."""
        self.position = self.prefix_length
        self.cache: list[Array] = self._prefix
        self._make_room(self.position + 1)

    def restart(self, prefix_cache: Sequence[Array], prefix_logits: NDArray[np.float32] | None) -> None:
        """Behind another prefix of the same length: that of an adapter, whose rows are its own."""
        self._prefix, self.prefix_logits = list(prefix_cache), prefix_logits
        self.reset()

    @property
    def room(self) -> int:
        """Tokens that still fit."""
        return self.target.context - self.position

    def prefill(self, ids: Sequence[int], *, last_only: bool = False) -> NDArray[np.float32]:
        """Feed tokens; logits (n, vocab) behind each, or (1, vocab) behind the last."""
        if not last_only:
            return np.concatenate([rows.copy() for rows in self.prefill_chunks(ids)])
        for rows in self.prefill_chunks(ids, last_only=True):
            last = rows[-1:]
        return last.copy()

    def prefill_chunks(self, ids: Sequence[int], *, last_only: bool = False) -> Iterator[NDArray[np.float32]]:
        """Feed tokens; logits (n, vocab) behind those of each chunk in turn, valid until the next one.

        last_only: of the last chunk alone.
        """
        if not ids:
            raise InputError("prefill: no tokens", hint="give a prompt of at least one token")
        if len(ids) > self.room:
            raise InputError(
                f"prompt: {len(ids)} tokens do not fit the {self.room} free slots of context {self.target.context}",
                hint="shorten the prompt, or export for a target with a larger context",
            )
        chunk = self.target.prefill_chunk
        for start in range(0, len(ids), chunk):
            piece = ids[start : start + chunk]
            tokens = np.zeros((1, chunk), dtype=np.int64)
            tokens[0, : len(piece)] = piece
            if last_only and start + chunk < len(ids):
                self._keep(self._fill(tokens), len(piece))
                continue
            logits, rows = self.session.run("prefill", tokens, self.position, self.cache)
            self._keep(rows, len(piece))
            yield logits[0, : len(piece)]

    def _fill(self, tokens: IntArray) -> list[Array]:
        if isinstance(self.session, FillingSession):
            return self.session.fill("prefill", tokens, self.position, self.cache)
        return self.session.run("prefill", tokens, self.position, self.cache)[1]

    def decode(self, token: int) -> NDArray[np.float32]:
        """Feed one token; logits (vocab,)."""
        if self.room < 1:
            raise InputError(f"context of {self.target.context} tokens is full")
        logits, rows = self.session.run("decode", np.array([[token]], dtype=np.int64), self.position, self.cache)
        self._keep(rows, 1)
        last: NDArray[np.float32] = logits[0, 0]
        return last

    def _make_room(self, slots: int) -> None:
        """At least so many in every array, what they hold kept. Free slots are masked."""
        held = self.cache[0].shape[2]
        if slots <= held:
            return
        wanted = min(-(-slots // CACHE_STEP) * CACHE_STEP, self.target.context) if self._grows else self.target.context
        longer = [np.zeros((*rows.shape[:2], wanted, rows.shape[3]), dtype=rows.dtype) for rows in self.cache]
        for new, rows in zip(longer, self.cache, strict=True):
            new[:, :, :held] = rows
        self.cache = longer

    def _keep(self, rows: Sequence[Array], count: int) -> None:
        self._make_room(self.position + count)
        for whole, new in zip(self.cache, rows, strict=True):
            whole[:, :, self.position : self.position + count] = new[:, :, :count]
        self.position += count


@dataclass(frozen=True, kw_only=True)
class Generation:
    """New tokens (the end token left out) and where the seconds went; decode_s covers len(token_ids) - 1 steps."""

    token_ids: list[int]
    prompt_tokens: int
    prefill_s: float
    decode_s: float
    decode_steps: int


def pick(logits: NDArray[np.float32], temperature: float, random: np.random.Generator) -> int:
    """Greedy at temperature 0 (ties: lowest index), else a sample."""
    if not np.isfinite(logits).all():
        raise InputError("generation: logits are NaN or infinite", hint="run `mobileicsa verify` on the artifact")
    if temperature == 0.0:
        return int(np.argmax(logits))
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return int(random.choice(len(weights), p=weights / weights.sum()))


def generate(
    runner: TokenRunner,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    eos_ids: Sequence[int],
    temperature: float = 0.0,
    seed: int = 0,
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Continue a prompt from the runner's present position until an end token, the limit or a full context."""
    random = np.random.default_rng(seed)
    start = time.perf_counter()
    if prompt_ids:
        logits = runner.prefill(prompt_ids, last_only=True)[0]
    elif runner.prefix_logits is not None and runner.position == runner.prefix_length:
        logits = runner.prefix_logits
    else:
        raise InputError("prompt: empty, and the artifact has no prefix to start from")
    prefilled = time.perf_counter()
    produced: list[int] = []
    steps = 0
    while len(produced) < max_new_tokens:
        token = pick(logits, temperature, random)
        if token in eos_ids:
            break
        produced.append(token)
        if on_token is not None:
            on_token(token)
        if len(produced) == max_new_tokens or runner.room < 1:
            break
        logits = runner.decode(token)
        steps += 1
    return Generation(
        token_ids=produced,
        prompt_tokens=len(prompt_ids),
        prefill_s=prefilled - start,
        decode_s=time.perf_counter() - prefilled,
        decode_steps=steps,
    )

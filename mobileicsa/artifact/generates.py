"""What every model here can do: generate text, and say what it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.core.errors import InputError, UsageError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.program.generate import TokenRunner, generate


class LanguageModel(Protocol):
    """What evaluation needs. `bos_id` None means that a window's first token is not predicted."""

    name: str
    backend: str
    tokenizer: Tokenizer
    bos_id: int | None

    @property
    def max_window(self) -> int: ...

    def logit_chunks(self, ids: Sequence[int]) -> Iterator[Tensor]:
        """Predictions (m, vocab) float32 of ids[n-m:] in pieces, in order: those of a long window never lie in memory
        together. m = n where BOS or a prefix stands before ids, else n - 1."""
        ...


@dataclass(frozen=True, kw_only=True)
class Output:
    """Generated text. Speeds are None where nothing was timed (no prompt token, fewer than two new tokens)."""

    text: str
    token_ids: list[int]
    prompt_tokens: int
    first_token_ms: float
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None


class Generates:
    """Shared by both models: text in, text out, over a `TokenRunner`; and what they predict, whole.

    first: tokens fed before every text: BOS where the model has one and no prefix stands in the cache already.
    """

    tokenizer: Tokenizer
    spec: ModelSpec
    runner: TokenRunner
    prefixed: bool
    first: tuple[int, ...]

    def logit_chunks(self, ids: Sequence[int]) -> Iterator[Tensor]:
        raise NotImplementedError

    def logits(self, ids: Sequence[int]) -> Tensor:
        """What `logit_chunks` gives, in one tensor."""
        return torch.cat(list(self.logit_chunks(ids)))

    def _fed(self, ids: Sequence[int]) -> list[int]:
        """What must be fed so that `ids` are predicted: what the last token predicts nobody asks for."""
        return self._behind_bos(ids)[:-1]

    def _behind_bos(self, ids: Sequence[int]) -> list[int]:
        return [*self.first, *ids]

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        chat: bool = False,
        on_text: Callable[[str], None] | None = None,
    ) -> Output:
        """Complete a prompt (text, or token ids without BOS); `chat` wraps text in the model's chat template.

        `on_text` receives each new piece of text. Greedy at temperature 0.
        """
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, is {max_new_tokens}")
        if temperature < 0:
            raise UsageError(f"temperature must be 0 or more, is {temperature}")
        ids = self._prompt_ids(prompt, chat)
        self.runner.reset()
        shown = ""
        produced: list[int] = []

        def on_token(token: int) -> None:
            nonlocal shown
            produced.append(token)
            text = self.tokenizer.decode(produced)
            # An unfinished character decodes to U+FFFD: wait for the rest of it.
            if on_text is not None and not text.endswith("\ufffd"):
                on_text(text[len(shown) :])
                shown = text

        made = generate(
            self.runner,
            ids,
            max_new_tokens=max_new_tokens,
            eos_ids=self.spec.eos_ids,
            temperature=temperature,
            seed=seed,
            on_token=on_token,
        )
        return Output(
            text=self.tokenizer.decode(made.token_ids),
            token_ids=made.token_ids,
            prompt_tokens=made.prompt_tokens,
            first_token_ms=made.prefill_s * 1000,
            prefill_tokens_per_s=made.prompt_tokens / made.prefill_s if made.prompt_tokens else None,
            decode_tokens_per_s=made.decode_steps / made.decode_s if made.decode_steps else None,
        )

    def _prompt_ids(self, prompt: str | Sequence[int], chat: bool) -> list[int]:
        if isinstance(prompt, str):
            text = self.tokenizer.chat([{"role": "user", "content": prompt}]) if chat else prompt
            ids = self.tokenizer.encode(text)
        else:
            ids = [int(i) for i in prompt]
        for index in ids:
            if not 0 <= index < self.spec.vocab_size:
                raise InputError(f"prompt: token {index} is outside the vocabulary of {self.spec.vocab_size}")
        bos = self.spec.bos_id
        if bos is None:
            return ids
        if self.prefixed:
            # The prefix holds BOS already. A chat's own first token opens its first turn and stays.
            return ids[1:] if not chat and ids[:1] == [bos] else ids
        return ids if ids[:1] == [bos] else [bos, *ids]

"""The model class `mobileicsa` of EleutherAI's lm-evaluation-harness: any artifact or checkpoint, any back end.

lm-eval versions that read the entry-point group `lm_eval.models` find it by themselves; for older ones
`mobileicsa-lm-eval` (lm_eval_run.py) is the same command with this class registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from mobileicsa.artifact.model import load_model
from mobileicsa.core.errors import InputError

MAX_NEW_TOKENS = 256


class _Stopped(Exception):
    """A stop sequence appeared: leave the generation loop."""


class MobileicsaLM(TemplateLM):  # type: ignore[misc]
    """`pretrained`: an artifact folder, or a checkpoint for the float model; `backend` as in `mobileicsa run`.

    Every sequence starts with BOS (or the artifact's prefix), as the model was calibrated. `batch_size` and `device`
    change nothing: an artifact's shapes are static. Endings of one context are scored together, which the float model
    and the simulator do in one pass.
    """

    def __init__(
        self,
        pretrained: str,
        backend: str | None = None,
        threads: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.model = load_model(pretrained, backend, threads=threads)
        self.tokenizer = self.model.tokenizer
        self.max_length = self.model.max_window

    @property
    def eot_token_id(self) -> int:
        ends = self.model.spec.eos_ids
        if not ends:
            raise InputError(f"{self.model.name}: the model names no end-of-text token, which lm-eval needs")
        return ends[0]

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self.model.bos_id is None else self.model.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.model.name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if not add_generation_prompt:
            raise InputError("mobileicsa: chat prompts that continue the model's own turn are not supported")
        return self.tokenizer.chat(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Only a fingerprint for lm-eval's log; the tokenizer applies the template itself."""
        return "tokenizer's own" if chat_template else None

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.tokenizer.encode(string)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        results = []
        for request in tqdm(requests, desc="rolling log-likelihood", disable=disable_tqdm):
            (text,) = request.args
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            pairs = [make_disjoint_window(window) for window in windows]
            total = sum(self._scores(context, [continuation])[0][0] for context, continuation in pairs)
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            results.append(total)
        return results

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        results = []
        bar = tqdm(total=len(requests), desc="log-likelihood", disable=disable_tqdm)
        # A question's endings come one after the other.
        for context, group in groupby(requests, key=lambda request: request[1]):
            members = list(group)
            answers = self._scores(context, [member[2] for member in members])
            for member, answer in zip(members, answers, strict=True):
                self.cache_hook.add_partial("loglikelihood", member[0], answer)
            results += answers
            bar.update(len(answers))
        bar.close()
        return results

    def _scores(self, context: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind `context`, and whether greedy decoding would write it."""
        longest = max(len(continuation) for continuation in continuations)
        if longest >= self.max_length:
            raise InputError(f"{self.model.name}: a continuation of {longest} tokens does not fit {self.max_length}")
        # The model puts BOS in front itself.
        if self.model.bos_id is not None and list(context[:1]) == [self.model.bos_id]:
            context = context[1:]
        if len(context) + longest > self.max_length and len(continuations) > 1:
            # Cut contexts differ with the continuation's length.
            return [self._scores(context, [continuation])[0] for continuation in continuations]
        context = context[-(self.max_length - longest) :]
        return [
            _summed(rows, continuation)
            for rows, continuation in zip(self.model.branch_logits(context, continuations), continuations, strict=True)
        ]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        results = []
        for request in tqdm(requests, desc="generation", disable=disable_tqdm):
            context, options = request.args
            text = self._generate(context, dict(options))
            self.cache_hook.add_partial("generate_until", request.args, text)
            results.append(text)
        return results

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        length = min(int(options.get("max_gen_toks", MAX_NEW_TOKENS)), self.max_length - 1)
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
        ids = self.tok_encode(context)[-(self.max_length - length) :]
        bos = self.model.bos_id
        written = ""

        def on_text(piece: str) -> None:
            nonlocal written
            written += piece
            if any(stop in written for stop in stops):
                raise _Stopped

        try:
            # BOS in front, as `logits` puts it: a context that begins with BOS's own text keeps it.
            made = self.model.generate(
                ids if bos is None else [bos, *ids], max_new_tokens=length, temperature=temperature, on_text=on_text
            )
            written = made.text
        except _Stopped:
            pass
        cuts = [written.index(stop) for stop in stops if stop in written]
        return written[: min(cuts)] if cuts else written


def _summed(logits: Tensor, tokens: Sequence[int]) -> tuple[float, bool]:
    """Summed log-probability of `tokens` (n) under logits (n, vocab), and whether each is its row's largest."""
    log_p = torch.log_softmax(logits.float(), dim=-1)
    wanted = torch.tensor(list(tokens))
    return float(log_p.gather(1, wanted[:, None]).sum()), bool((log_p.argmax(1) == wanted).all())

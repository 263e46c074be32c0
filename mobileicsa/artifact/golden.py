"""Golden vectors: inputs and integer outputs of the simulator, replayed on every runtime by `verify`.

Call k of the file has `<k>.token_ids`, `<k>.position`, `<k>.rows` (the new K/V integers of all layers) and
`<k>.logits` (int32 on the logits grid, last token). A position at the prefix's end opens a conversation with a
prefill; every later call is a decode step behind it.

What to expect: linears are integer sums and agree exactly. Norm and softmax of a fused target run in float, in each
runtime's own order of summation; once in some thousand values that moves a number over a rounding tie. From the first
such flip on, two runs carry independent rounding noise, so that inside one prefill everything behind it differs by a
few steps. That is why calls are short and start from the golden cache, and why shares are reported, not hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobileicsa.artifact.model import QuantizedModel, integer_logits
from mobileicsa.artifact.tokenizer import Tokenizer

PROMPTS = tuple((files("mobileicsa.artifact") / "prompts.txt").read_text(encoding="utf-8").splitlines())
GREEDY_TOKENS = 12
CONVERSATIONS = 5
PREFILL_TOKENS = 8
DECODE_CALLS = 7


def record(simulator: QuantizedModel) -> dict[str, Tensor]:
    """Golden calls of the simulator: `CONVERSATIONS` prompts, each prefilled (padded as real ones) and continued."""
    runner, plan = simulator.runner, simulator.plan
    tensors: dict[str, Tensor] = {}
    calls = 0

    def keep(tokens: list[int], start: int, logits: Any) -> None:
        nonlocal calls
        rows = [cache[:, :, start : start + len(tokens)] for cache in runner.cache]
        tensors[f"{calls}.token_ids"] = torch.tensor(tokens)
        tensors[f"{calls}.position"] = torch.tensor([start])
        tensors[f"{calls}.rows"] = torch.from_numpy(np.stack(rows))
        tensors[f"{calls}.logits"] = integer_logits(logits, plan)
        calls += 1

    for prompt in PROMPTS[:CONVERSATIONS]:
        runner.reset()
        ids = simulator.tokenizer.encode(prompt)[:PREFILL_TOKENS]
        if not plan.prefix_ids and plan.spec.bos_id is not None:
            ids = [plan.spec.bos_id, *ids]
        ids = ids[: runner.room]
        start = runner.position
        logits = runner.prefill(ids, last_only=True)[0]
        keep(ids, start, logits)
        for _ in range(min(DECODE_CALLS, runner.room)):
            start, token = runner.position, int(logits.argmax())
            logits = runner.decode(token)
            keep([token], start, logits)
    return tensors


class _Steps:
    """Differences in integer steps, gathered over calls."""

    def __init__(self) -> None:
        self.equal = self.total = self.largest = 0

    def add(self, steps: Tensor) -> None:
        self.equal += int((steps == 0).sum())
        self.total += steps.numel()
        self.largest = max(self.largest, int(steps.max()))

    def to_json(self) -> dict[str, Any]:
        share = self.equal / max(self.total, 1)
        different = self.total - self.equal
        return {"equal_share": share, "max_steps": self.largest, "integers": self.total, "different": different}


class _Noise:
    """Power of the differences over that of the expected values around each channel's mean over the tokens: how much
    of what tells tokens apart is lost. Gathered over calls."""

    def __init__(self) -> None:
        self.different = 0.0
        self.tokens = 0
        self.sum: Tensor | float = 0.0
        self.squares = 0.0

    def add(self, found: Tensor, expected: Tensor) -> None:
        """Both (1, heads, tokens, head_dim)."""
        found, expected = found.double(), expected.double()
        self.different += float((found - expected).square().sum())
        self.tokens += expected.shape[2]
        self.sum = self.sum + expected.sum(2)
        self.squares += float(expected.square().sum())

    @property
    def share(self) -> float:
        means = float(torch.as_tensor(self.sum).square().sum()) / max(self.tokens, 1)
        return self.different / max(self.squares - means, 1e-30)


def replay(model: QuantizedModel, golden: dict[str, Tensor]) -> dict[str, Any]:
    """Run the golden calls on `model`, each from the golden cache, so that differences do not pile up over calls.

    Returns equal_share and max_steps over the 8-bit K/V integers of all calls and of prefill and decode apart, the
    same for the first layer, where no rounding has piled up yet, and for the 16-bit logits (with the power of their
    differences over that of the logits themselves), the share of calls with the same best token, the first layer that
    ever differs, and the noisiest one.
    """
    runner, plan = model.runner, model.plan
    everything, first, logits_steps = _Steps(), _Steps(), _Steps()
    noises = [_Noise() for _ in runner.cache]
    by_method = {"prefill": _Steps(), "decode": _Steps()}
    first_layer: int | None = None
    same_token = identical = calls = 0
    noise = power = 0.0
    for call in range(sum(name.endswith(".token_ids") for name in golden)):
        tokens = golden[f"{call}.token_ids"].tolist()
        start = int(golden[f"{call}.position"])
        method = "prefill" if start == runner.prefix_length else "decode"
        if method == "prefill":
            runner.reset()
        runner.position = start
        logits = runner.prefill(tokens, last_only=True)[0] if method == "prefill" else runner.decode(tokens[0])
        expected, differs = golden[f"{call}.rows"], False
        for index, cache in enumerate(runner.cache):
            rows = torch.from_numpy(cache[:, :, start : start + len(tokens)])
            steps = (rows.to(torch.int32) - expected[index].to(torch.int32)).abs()
            everything.add(steps)
            by_method[method].add(steps)
            noises[index].add(rows, expected[index])
            if index < 2:
                first.add(steps)
            if bool(steps.any()):
                differs = True
                first_layer = index // 2 if first_layer is None else min(first_layer, index // 2)
            cache[:, :, start : start + len(tokens)] = expected[index].numpy()
        integers = integer_logits(logits, plan)
        difference, expected_logits = integers - golden[f"{call}.logits"], golden[f"{call}.logits"].double()
        logits_steps.add(difference.abs())
        noise += float(difference.double().square().sum())
        power += float((expected_logits - expected_logits.mean()).square().sum())
        same_token += int(integers.argmax()) == int(golden[f"{call}.logits"].argmax())
        identical += not differs
        calls += 1
    shares = [noise.share for noise in noises]
    noisiest = max(range(len(shares)), key=shares.__getitem__)
    return {
        **everything.to_json(),
        "calls": calls,
        "identical_calls": identical,
        "top1_agreement": same_token / max(calls, 1),
        "first_differing_layer": first_layer,
        "noisiest_layer": {"layer": noisiest // 2, "noise_share": shares[noisiest]},
        "first_layer": first.to_json(),
        **{name: steps.to_json() for name, steps in by_method.items()},
        "logits": {
            **logits_steps.to_json(),
            "bits": plan.edges["head.logits"].bits,
            "noise_share": noise / max(power, 1e-30),
        },
    }


def record_greedy(simulator: QuantizedModel) -> list[dict[str, Any]]:
    """Greedy continuations of the bundled prompts by the simulator."""
    rows = []
    for prompt in PROMPTS:
        made = simulator.generate(prompt, max_new_tokens=GREEDY_TOKENS)
        prompt_ids = simulator.tokenizer.encode(prompt)
        rows.append({"prompt": prompt, "prompt_ids": prompt_ids, "token_ids": made.token_ids, "text": made.text})
    return rows


def probe_tokenizer(tokenizer: Tokenizer, expected: list[dict[str, Any]]) -> str | None:
    """How the tokenizer differs from the one that `expected` (of `record_greedy`) was recorded with, or None."""
    for row in expected:
        # Artifacts of format 1 have no prompt_ids.
        if tokenizer.encode(row["prompt"]) != row.get("prompt_ids", tokenizer.encode(row["prompt"])):
            return f"encodes {row['prompt']!r} to other tokens than when the golden vectors were recorded"
        if tokenizer.decode(row["token_ids"]) != row["text"]:
            return f"decodes the answer to {row['prompt']!r} to another text than when it was recorded"
    return None


def common_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many tokens (or characters) two texts have in common before the first that differs."""
    different = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(different, min(len(first), len(second)))


def compare_greedy(model: QuantizedModel, expected: list[dict[str, Any]]) -> dict[str, Any]:
    """Token-by-token agreement with the recorded texts; tokens after the first difference count as different."""
    same = total = identical = 0
    rows = []
    for row in expected:
        made = model.generate(row["prompt"], max_new_tokens=GREEDY_TOKENS)
        wanted = row["token_ids"]
        length = max(len(wanted), len(made.token_ids), 1)
        agreed = length if wanted == made.token_ids else common_length(wanted, made.token_ids)
        same, total, identical = same + agreed, total + length, identical + (wanted == made.token_ids)
        rows.append({"prompt": row["prompt"], "text": made.text, "equal_tokens": agreed, "tokens": length})
    return {"token_agreement": same / max(total, 1), "identical": identical, "prompts": len(expected), "rows": rows}

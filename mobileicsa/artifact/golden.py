"""Golden vectors: inputs and integer outputs of the simulator, replayed on every runtime by `verify`.

Call k of the file: `<k>.token_ids`, `<k>.position`, the cache before it as `cache.<layer>` rows shared by all calls,
and the outputs `<k>.rows` (the new K/V rows of all layers) and `<k>.logits` (int32 on the logits grid, last token).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobileicsa.artifact.model import QuantizedModel, integer_logits
from mobileicsa.program.generate import pick

PROMPTS = tuple((files("mobileicsa.artifact") / "prompts.txt").read_text(encoding="utf-8").splitlines())
GREEDY_TOKENS = 12
DECODE_CALLS = 8


def record(simulator: QuantizedModel) -> dict[str, Tensor]:
    """One prefill chunk (padded, as real prompts are) and `DECODE_CALLS` decode steps of the simulator."""
    runner, plan = simulator.runner, simulator.plan
    runner.reset()
    ids = simulator.tokenizer.encode(" ".join(PROMPTS))[: max(1, simulator.target.prefill_chunk - 5)]
    if plan.prefix_ids == () and plan.spec.bos_id is not None:
        ids = [plan.spec.bos_id, *ids][: simulator.target.prefill_chunk]
    tensors: dict[str, Tensor] = {}

    def keep(call: int, tokens: list[int], start: int, logits: Any) -> None:
        rows = [cache[:, :, start : start + len(tokens)] for cache in runner.cache]
        tensors[f"{call}.token_ids"] = torch.tensor(tokens)
        tensors[f"{call}.position"] = torch.tensor([start])
        tensors[f"{call}.rows"] = torch.from_numpy(np.stack(rows))
        tensors[f"{call}.logits"] = integer_logits(logits, plan)

    start = runner.position
    logits = runner.prefill(ids, last_only=True)[0]
    keep(0, ids, start, logits)
    for call in range(1, min(DECODE_CALLS, runner.room) + 1):
        start, token = runner.position, pick(logits, 0.0, np.random.default_rng(0))
        logits = runner.decode(token)
        keep(call, [token], start, logits)
    return tensors


def replay(model: QuantizedModel, golden: dict[str, Tensor]) -> dict[str, Any]:
    """Run the golden calls on `model`; each call starts from the golden cache, so that errors do not pile up.

    Returns equal_share and max_steps over the 8-bit K/V integers, the same for the 16-bit logits, and the first
    layer whose integers differ.
    """
    runner, plan = model.runner, model.plan
    runner.reset()
    equal = total = 0
    max_steps, first_layer = 0, None
    logits_steps: list[Tensor] = []
    for call in range(sum(name.endswith(".token_ids") for name in golden)):
        tokens = golden[f"{call}.token_ids"].tolist()
        runner.position = start = int(golden[f"{call}.position"])
        logits = runner.prefill(tokens, last_only=True)[0] if call == 0 else runner.decode(tokens[0])
        expected = golden[f"{call}.rows"]
        for index, cache in enumerate(runner.cache):
            rows = cache[:, :, start : start + len(tokens)]
            steps = (torch.from_numpy(rows).to(torch.int32) - expected[index].to(torch.int32)).abs()
            equal += int((steps == 0).sum())
            total += steps.numel()
            if int(steps.max()):
                max_steps = max(max_steps, int(steps.max()))
                layer = index // 2
                first_layer = layer if first_layer is None else min(first_layer, layer)
            cache[:, :, start : start + len(tokens)] = expected[index].numpy()
        logits_steps.append((integer_logits(logits, plan) - golden[f"{call}.logits"]).abs())
    steps = torch.cat(logits_steps)
    return {
        "equal_share": equal / total,
        "max_steps": max_steps,
        "integers": total,
        "first_differing_layer": first_layer,
        "logits": {
            "equal_share": float((steps == 0).float().mean()),
            "max_steps": int(steps.max()),
            "bits": plan.edges["head.logits"].bits,
            "median_steps": float(steps.float().median()),
        },
    }


def record_greedy(simulator: QuantizedModel) -> list[dict[str, Any]]:
    """Greedy continuations of the bundled prompts by the simulator."""
    rows = []
    for prompt in PROMPTS:
        made = simulator.generate(prompt, max_new_tokens=GREEDY_TOKENS)
        rows.append({"prompt": prompt, "token_ids": made.token_ids, "text": made.text})
    return rows


def compare_greedy(model: QuantizedModel, expected: list[dict[str, Any]]) -> dict[str, Any]:
    """Token-by-token agreement with the recorded continuations; tokens after the first difference count as different."""
    same = total = identical = 0
    rows = []
    for row in expected:
        made = model.generate(row["prompt"], max_new_tokens=GREEDY_TOKENS)
        wanted = row["token_ids"]
        length = max(len(wanted), len(made.token_ids), 1)
        common = 0
        while common < min(len(wanted), len(made.token_ids)) and wanted[common] == made.token_ids[common]:
            common += 1
        agreed = length if wanted == made.token_ids else common
        same, total, identical = same + agreed, total + length, identical + (wanted == made.token_ids)
        rows.append({"prompt": row["prompt"], "text": made.text, "equal_tokens": agreed, "tokens": length})
    return {"token_agreement": same / max(total, 1), "identical": identical, "prompts": len(expected), "rows": rows}

"""Train a LoRA on each text with stock peft: `python -m benchmarks.adapters.train --model DIR --work DIR`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from benchmarks.adapters.texts import NAMES, write_texts

RANK, STEPS, BATCH, LENGTH, RATE = 8, 100, 8, 128, 2e-3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train(model: str, work: Path, name: str) -> None:
    """An adapter of that text, and the float model with it merged, for reference."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = (work / "texts" / f"{name}.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    rows = ids[: len(ids) // (LENGTH - 1) * (LENGTH - 1)].view(-1, LENGTH - 1)
    rows = torch.cat((torch.full((len(rows), 1), tokenizer.bos_token_id), rows), dim=1)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    descent = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        picked = rows[torch.randint(0, len(rows), (BATCH,))]
        loss = adapted(input_ids=picked, labels=picked).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in descent.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        descent.step()
        descent.zero_grad()
        if step % 20 == 0 or step == STEPS - 1:
            print(f"{name}: step {step}, loss {loss.item():.3f}", flush=True)
    adapted.save_pretrained(work / "adapters" / name)
    merged = work / "float" / name
    adapted.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    write_texts(Path(os.environ["MOBILEICSA_DATA"]), arguments.work / "texts")
    for name in NAMES:
        if not (arguments.work / "float" / name).is_dir():
            train(arguments.model, arguments.work, name)


if __name__ == "__main__":
    main()

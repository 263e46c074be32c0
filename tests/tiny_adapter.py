"""A tiny random LoRA folder as peft writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MODULES = {
    "model.layers.0.self_attn.q_proj": (32, 32),
    "model.layers.1.self_attn.v_proj": (16, 32),
    "model.layers.1.mlp.down_proj": (32, 48),
}
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "checkpoint",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "bias": "none",
    "use_dora": False,
}


def write_adapter(folder: Path, **changes: Any) -> Path:
    """A random LoRA of the tiny checkpoint, always the same one; `changes` go into its config."""
    folder.mkdir(parents=True)
    config = {**CONFIG, **changes}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(2)
    tensors = {}
    for module, (rows, columns) in MODULES.items():
        rank = config.get("rank_pattern", {}).get(module.rpartition(".")[2], config["r"])
        tensors[f"base_model.model.{module}.lora_A.weight"] = 0.1 * torch.randn(rank, columns, generator=random)
        tensors[f"base_model.model.{module}.lora_B.weight"] = 0.1 * torch.randn(rows, rank, generator=random)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder

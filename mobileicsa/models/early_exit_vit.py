"""A vision transformer with early exits: stages that hand on (hidden state, CLS history), exits of two kinds.

After every block l the CLS row z_l joins the history. Exits "recurrent" (ReeFL, arXiv 2405.14791) share one module for
all depths: `M = Ree([m_0, z_1 .. z_l] + pos)`, logits `head(M[0] + z_l)`, and with modulation M's last row replaces the
CLS row before block l + 1. Exits "own" have a head each on z_l.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mobileicsa.models.exit_files import MODEL_TYPE

INIT_DEVIATION = 0.02


@dataclass(frozen=True, kw_only=True)
class ExitVitSpec:
    """Shapes: inputs (batch, channels, height, width) float32, hidden state (batch, 1 + patches, width).

    `exits`: after how many blocks, increasing, the last after all. Defaults of the exit module are the paper's.
    """

    channels: int
    height: int
    width: int
    patch: int
    dim: int
    blocks: int
    heads: int
    head_dim: int
    classes: int
    exits: tuple[int, ...]
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    kind: Literal["recurrent", "own"] = "recurrent"
    modulation: bool = True
    exit_heads: int = 8
    exit_head_dim: int = 2
    exit_mlp_ratio: float = 1.35

    def __post_init__(self) -> None:
        if self.height % self.patch or self.width % self.patch:
            raise ValueError(f"inputs of {self.height}x{self.width} are not whole patches of {self.patch}")
        if list(self.exits) != sorted(set(self.exits)) or not self.exits or self.exits[-1] != self.blocks:
            raise ValueError(f"exits {self.exits} must increase and end after the last of {self.blocks} blocks")
        if self.exits[0] < 1:
            raise ValueError(f"exits {self.exits}: the first is after one block at least")

    @property
    def patches(self) -> int:
        return (self.height // self.patch) * (self.width // self.patch)

    def to_json(self) -> dict[str, Any]:
        return {"model_type": MODEL_TYPE, **asdict(self), "exits": list(self.exits)}

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> ExitVitSpec:
        fields = {name: value for name, value in config.items() if name != "model_type"}
        return cls(**{**fields, "exits": tuple(fields["exits"])})


class Attention(nn.Module):
    """Multi-head self-attention with its own total width; q, k, v and out are linears of their own."""

    def __init__(self, dim: int, heads: int, head_dim: int, scale: float) -> None:
        super().__init__()
        self.heads, self.head_dim, self.scale = heads, head_dim, scale
        inner = heads * head_dim
        self.q, self.k, self.v = (nn.Linear(dim, inner) for _ in range(3))
        self.out = nn.Linear(inner, dim)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, rows: Tensor) -> Tensor:
        """(batch, rows, dim) to the same."""
        q, k, v = (self._split(part(rows)) for part in (self.q, self.k, self.v))
        weights = self.softmax(q @ k.transpose(-1, -2) * self.scale)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        result: Tensor = self.out(mixed)
        return result

    def _split(self, rows: Tensor) -> Tensor:
        return rows.view(*rows.shape[:-1], self.heads, self.head_dim).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block: attention and GELU MLP, each added to its input."""

    def __init__(self, dim: int, heads: int, head_dim: int, mlp_ratio: float, scale: float, norm_eps: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=norm_eps) for _ in range(2))
        self.attn = Attention(dim, heads, head_dim, scale)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, rows: Tensor) -> Tensor:
        rows = rows + self.attn(self.norm1(rows))
        result: Tensor = rows + self.down(nn.functional.gelu(self.up(self.norm2(rows))))
        return result


class Embedding(nn.Module):
    """Patches as rows behind the CLS row, with learned positions."""

    def __init__(self, spec: ExitVitSpec) -> None:
        super().__init__()
        self.patch = nn.Conv2d(spec.channels, spec.dim, spec.patch, spec.patch)
        self.cls = nn.Parameter(torch.empty(1, 1, spec.dim))
        self.position = nn.Parameter(torch.empty(1, 1 + spec.patches, spec.dim))

    def forward(self, inputs: Tensor) -> Tensor:
        rows = self.patch(inputs).flatten(2).transpose(1, 2)
        return torch.cat([self.cls.expand(len(rows), -1, -1), rows], dim=1) + self.position


class Head(nn.Module):
    def __init__(self, spec: ExitVitSpec) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.dim, eps=spec.norm_eps)
        self.linear = nn.Linear(spec.dim, spec.classes)

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = self.linear(self.norm(rows))
        return result


class RecurrentExit(nn.Module):
    """Ree: one block and one head for all exits, reading the CLS history behind a learned meta token."""

    def __init__(self, spec: ExitVitSpec) -> None:
        super().__init__()
        self.meta = nn.Parameter(torch.empty(1, 1, spec.dim))
        self.position = nn.Parameter(torch.empty(1, 1 + spec.blocks, spec.dim))
        total = spec.exit_heads * spec.exit_head_dim
        # The paper scales by the total width of all heads, not by that of one.
        self.block = Block(
            spec.dim, spec.exit_heads, spec.exit_head_dim, spec.exit_mlp_ratio, total**-0.5, spec.norm_eps
        )
        self.head = Head(spec)

    def forward(self, history: Tensor) -> Tensor:
        """(batch, l, dim) to (batch, 1 + l, dim): the meta token's row first."""
        rows = torch.cat([self.meta.expand(len(history), -1, -1), history], dim=1)
        result: Tensor = self.block(rows + self.position[:, : rows.shape[1]])
        return result

    def logits(self, read: Tensor, history: Tensor, exit: int) -> Tensor:
        result: Tensor = self.head(read[:, 0] + history[:, -1])
        return result


class OwnExits(nn.Module):
    """A head for each exit on its block's CLS row (DepthFL and its kin)."""

    def __init__(self, spec: ExitVitSpec) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(spec) for _ in spec.exits)

    def logits(self, read: Tensor, history: Tensor, exit: int) -> Tensor:
        result: Tensor = self.heads[exit](history[:, -1])
        return result


class Stage(nn.Module):
    """Blocks from one exit to the next, sharing the model's weights; stateless, so that each is a program of its own.

    Stage 0 takes inputs, a later one (hidden state, history of the blocks before it); returns (logits, hidden state,
    history), whose shapes depend on the stage only.
    """

    def __init__(self, model: ExitVit, exit: int) -> None:
        super().__init__()
        spec = model.spec
        self.exit, self.last = exit, exit == len(spec.exits) - 1
        self.embed = model.embed if exit == 0 else None
        self.blocks = model.blocks[0 if exit == 0 else spec.exits[exit - 1] : spec.exits[exit]]
        self.exits = model.exits
        self.modulation = spec.kind == "recurrent" and spec.modulation

    def forward(self, state: Tensor, history: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        rows = state if self.embed is None else self.embed(state)
        read = rows
        for index, block in enumerate(self.blocks):
            rows = block(rows)
            token = rows[:, :1]
            history = token if history is None else torch.cat([history, token], dim=1)
            at_exit = index == len(self.blocks) - 1
            if self.modulation or (at_exit and isinstance(self.exits, RecurrentExit)):
                read = self.exits(history)
            if self.modulation and not (at_exit and self.last):
                rows = torch.cat([read[:, -1:], rows[:, 1:]], dim=1)
        assert history is not None
        return self.exits.logits(read, history, self.exit), rows, history


class ExitVit(nn.Module):
    """The whole model; `stages` share its weights and hold none of their own."""

    def __init__(self, spec: ExitVitSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embed = Embedding(spec)
        scale = spec.head_dim**-0.5
        self.blocks = nn.ModuleList(
            Block(spec.dim, spec.heads, spec.head_dim, spec.mlp_ratio, scale, spec.norm_eps) for _ in range(spec.blocks)
        )
        self.exits = RecurrentExit(spec) if spec.kind == "recurrent" else OwnExits(spec)
        self.apply(_initialize)

    def stage(self, exit: int) -> Stage:
        return Stage(self, exit)

    def forward(self, inputs: Tensor, exits: int | None = None) -> list[Tensor]:
        """Logits (batch, classes) of the first `exits` exits, by default of all; deeper blocks do not run."""
        state, history = inputs, None
        found = []
        for exit in range(len(self.spec.exits) if exits is None else exits):
            logits, state, history = self.stage(exit)(state, history)
            found.append(logits)
        return found

    def history(self, inputs: Tensor, exits: int | None = None) -> Tensor:
        """CLS rows (batch, blocks, dim) after each block down to the last of the first `exits` exits."""
        state: Tensor = inputs
        history: Tensor | None = None
        for exit in range(len(self.spec.exits) if exits is None else exits):
            _, state, history = self.stage(exit)(state, history)
        assert history is not None
        return history

    def answers(self, history: Tensor, exits: int | None = None) -> list[Tensor]:
        """Logits (batch, classes) of the first `exits` exits from `history`'s rows, running the exits alone."""
        found = []
        for exit, blocks in enumerate(self.spec.exits[:exits]):
            seen = history[:, :blocks]
            read = self.exits(seen) if isinstance(self.exits, RecurrentExit) else seen
            found.append(self.exits.logits(read, seen, exit))
        return found


def held(name: str, spec: ExitVitSpec, exits: int) -> bool:
    """Whether a client whose budget ends at its `exits`-th exit holds the parameter of this name."""
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) < spec.exits[exits - 1]
    if parts[:2] == ["exits", "heads"]:
        return int(parts[2]) < exits
    return True


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=INIT_DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name in ("cls", "meta", "position"):
            nn.init.trunc_normal_(parameter, std=INIT_DEVIATION)

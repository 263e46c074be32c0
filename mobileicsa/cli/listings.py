"""`mobileicsa schemes` and `mobileicsa targets`: what can be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from mobileicsa.cli.answer import Answer
from mobileicsa.cli.options import JsonFlag

if TYPE_CHECKING:
    from rich.console import Console

SCHEMES_EXAMPLES = """
  mobileicsa schemes
  mobileicsa schemes --json
"""
TARGETS_EXAMPLES = """
  mobileicsa targets
  mobileicsa export out --target generic-npu --output out-npu
"""


def schemes(context: typer.Context, as_json: JsonFlag = False) -> Answer:
    """List the schemes and the bits that each gives."""
    from mobileicsa.cli.tables import show_table
    from mobileicsa.core.scheme import SCHEMES

    document = {"schemes": [scheme.to_json() for scheme in SCHEMES.values()]}
    rows = []
    for scheme in SCHEMES.values():
        kinds = scheme.activation_bits
        by_bits = {bits: ", ".join(role for role, b in kinds.items() if b == bits) for bits in (8, 16)}
        rows.append((scheme.name, by_bits[8], by_bits[16], scheme.weight_bits, scheme.embedding_bits))
    columns = ("scheme", "8-bit activations", "16-bit activations", "weights", "embedding")
    return Answer(document=document, show=lambda console: show_table(console, columns, rows, left=3))


def targets(context: typer.Context, as_json: JsonFlag = False) -> Answer:
    """List the targets and the back ends of each."""
    from dataclasses import asdict

    from mobileicsa.program.targets import all_targets

    found = [asdict(target) for target in all_targets().values()]
    return Answer(document={"targets": found}, show=lambda console: _show_targets(console, found))


def _show_targets(console: Console, found: list[dict[str, Any]]) -> None:
    from mobileicsa.cli.tables import show_entries

    show_entries(console, ((target["name"], _facts(target)) for target in found))


def _facts(target: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("for", target["description"]),
        ("back ends", ", ".join(target["backends"])),
        ("non-linear ops", target["nonlinear"]),
        ("4-bit stored as", target["int4_storage"]),
        ("4-bit codes", "-8 to 7" if target["int4_full_range"] else "-7 to 7"),
        ("linears multiply", ", ".join(target["linears"]) or "what they can; the rest is reported"),
        ("16-bit inputs", "linears multiply them" if target["int16_inputs"] else "no kernels"),
        ("rounds", target["rounding"] and target["rounding"].replace("_", " ")),
        ("at most", None if target["max_bytes"] is None else f"{target['max_bytes']} bytes at once"),
        ("device", ", ".join(f"{key} {value}" for key, value in target["device"].items()) or None),
        ("context", f"{target['context']} tokens, prompts in chunks of {target['prefill_chunk']}"),
    ]

"""`mobileicsa schemes` and `mobileicsa targets`: what can be asked for."""

from __future__ import annotations

import typer

from mobileicsa.cli.answer import Answer
from mobileicsa.cli.options import JsonFlag

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

    from mobileicsa.cli.tables import show_table
    from mobileicsa.program.targets import all_targets

    found = [asdict(target) for target in all_targets().values()]
    rows = [
        (t["name"], ", ".join(t["backends"]), t["nonlinear"], t["int4_storage"], t["description"], t["context"])
        for t in found
    ]
    columns = ("target", "back ends", "non-linear ops", "4-bit stored as", "description", "context")
    return Answer(document={"targets": found}, show=lambda console: show_table(console, columns, rows, left=5))

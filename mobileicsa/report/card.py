"""README.md of an artifact: a model card with front matter as Hugging Face reads it."""

from __future__ import annotations

from typing import Any

import yaml

from mobileicsa.report.adapters import adapter_words
from mobileicsa.report.command import build_command
from mobileicsa.report.view import exported, result_rows
from mobileicsa.report.words import DASH, size

COLUMNS = {
    "name": "",
    "size": "Files",
    "perplexity": "Perplexity",
    "agreement": "Top-1 as float",
    "decode": "Decode, tokens/s",
    "memory": "Peak memory",
}


def model_card(report: dict[str, Any]) -> str:
    """Markdown with YAML front matter; figures that were not measured are dashes."""
    model, scheme = report["model"], report["scheme"]
    front: dict[str, Any] = {
        "base_model": model["name"],
        "license": model.get("license") or "unknown",
        "library_name": "mobileicsa",
        "pipeline_tag": "text-generation",
        "tags": ["mobileicsa", "quantized", scheme, "integer-only", *exported(report)],
    }
    prefix = report["prefix"]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {model['name']}, {scheme.upper()} integer artifact",
        f"Made from `{model['name']}` ({model['model_type']}, {model['parameters'] / 1e6:,.0f} M parameters) with "
        f"[mobileicsa](https://pypi.org/project/mobileicsa/) {report['mobileicsa_version']}, recipe "
        f"`{report['recipe']['name']}`: {report['recipe'].get('description', '')}",
        _table(report),
        _terms(report),
        _mixed(report),
        _adapters(report),
        "## Use",
        "```sh\n" + "\n".join(_commands(report)) + "\n```",
        "## Make it again",
        f"```sh\n{build_command(report)}\n```",
        f"Checkpoint SHA-256 `{model['identity']}`.",
        "## Limits",
        "Measured on one text and one machine; measure your own task before you rely on it. The artifact inherits the "
        "licence and the risks of the model it was made from.",
    ]
    if prefix["ids"]:
        parts.insert(
            5,
            f"The cache starts with a fixed prefix of {len(prefix['ids'])} tokens (ids {prefix['ids']}), "
            f"which every run "
            "of this artifact shares.",
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def _adapters(report: dict[str, Any]) -> str:
    """What `run --adapter NAME` takes, and what is merged for good."""
    merged, found = report.get("merged_adapter"), report.get("adapters", {})
    lines = [f"The adapter `{merged}` is merged into the weights."] if merged else []
    if found:
        lines.append("Adapters over the integer base, changed at run time with `--adapter NAME`:\n")
        lines += [f"- {adapter_words(facts)}" for facts in found.values()]
    return "\n".join(lines)


def _mixed(report: dict[str, Any]) -> str:
    mixed = report.get("mixed")
    if mixed is None:
        return ""
    wide, parts = mixed.get("inputs", []), []
    if mixed["candidates"]:
        parts.append(
            f"{len(mixed['promoted'])} of {mixed['candidates']} linears have 8-bit weights instead of 4-bit ones"
        )
    if wide:
        parts.append(f"{len(wide)} of {mixed['input_candidates']} inputs of linears have 16 bits instead of 8")
    return f"{', '.join(parts)}: {size(mixed['packed_bytes'])} packed." if parts else ""


def _table(report: dict[str, Any]) -> str:
    rows = result_rows(report)
    # A column in which nothing was measured says nothing.
    kept = [key for key in COLUMNS if key in ("name", "size") or any(row[key] != DASH for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[key] for key in kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(row[key] for key in kept) + " |" for row in rows]
    return "\n".join(lines)


def _terms(report: dict[str, Any]) -> str:
    terms = report.get("evaluation")
    if terms is None:
        return "Perplexity: not measured; run `mobileicsa eval`."
    return (
        f"Perplexity on {terms['text']}, {terms['tokens']:,} tokens in windows of {terms['window']}; details in "
        "`report.html`."
    ) + (f" Warning: {terms['warning']}." if terms.get("warning") else "")


def _commands(report: dict[str, Any]) -> list[str]:
    backends = exported(report)
    lines = [f'mobileicsa run . --backend {name} --prompt "The capital of France is"' for name in backends]
    return [*lines, f"mobileicsa verify .   # {size(sum(backends.values()))} of exported files against golden vectors"]

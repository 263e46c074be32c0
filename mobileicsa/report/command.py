"""The command that makes an artifact again."""

from __future__ import annotations

from typing import Any


def build_command(report: dict[str, Any]) -> str:
    """As its report says; names stand for paths that a report does not hold."""
    parts = ["mobileicsa quantize", f"--model {report['model']['name']}", f"--scheme {report['scheme']}"]
    parts.append(f"--recipe {report['recipe']['name']}")
    if report["calibration"]["source"] == "file":
        parts.append("--calibration FILE")
    if report.get("effort", "default") != "default":
        parts.append(f"--effort {report['effort']}")
    for flag, limit in ((report.get("mixed") or {}).get("limits") or {}).items():
        parts += [] if limit is None else [f"--{flag.replace('_', '-')} {limit}"]
    parts += ["--merge-adapter DIR"] if report.get("merged_adapter") else []
    parts += [f"--adapter {name}" for name in report.get("adapters", {})]
    parts += [f"--target {name}" for name in report["targets"]]
    return " ".join([*parts, f"--seed {report['seed']}", "--output DIR"])

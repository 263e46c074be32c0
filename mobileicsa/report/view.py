"""What the report page shows, worked out from report.json: plain values, no markup."""

from __future__ import annotations

from typing import Any

from mobileicsa.artifact import layout
from mobileicsa.report.adapters import adapter_rows
from mobileicsa.report.command import build_command
from mobileicsa.report.mixed import layers_by_path, mixed_facts, spans
from mobileicsa.report.placement import placement_rows
from mobileicsa.report.sites import worst_edges
from mobileicsa.report.words import DASH, backend_name, duration, number, share, significant, size, visible

WORST = 10


def build_view(report: dict[str, Any]) -> dict[str, Any]:
    """Everything the template needs; a section that was not measured is None."""
    model = report["model"]
    return {
        "title": f"{model['name']} · {report['scheme'].upper()}",
        "model": model,
        "scheme": report["scheme"],
        "recipe": report["recipe"],
        "created": report["created"],
        "version": report["mobileicsa_version"],
        "command": build_command(report),
        "cards": _cards(report),
        "rows": result_rows(report),
        "measured_on": _measured_on(report),
        "evaluation_warning": (report.get("evaluation") or {}).get("warning"),
        "speed_terms": _speed_terms(report),
        "worst_edges": [_edge_row(path, edge) for path, edge in worst_edges(report["edges"], WORST)],
        "worst_weights": _worst_weights(report["weights"]),
        "zero_channels": sum(row["zero_rows"] for row in report["weights"].values()),
        "mixed": _mixed(report.get("mixed")),
        "adapters": adapter_rows(report),
        "prefix": _prefix(report["prefix"]),
        "placement": placement_rows(report["targets"]),
        "verification": _verification(report.get("verification")),
        "environment": _environment(report.get("environment")),
        "stages": _stages(report["stages"]),
        "calibration": _calibration(report["calibration"]),
        "has_evaluation": "evaluation" in report,
        "has_bench": "bench" in report,
    }


def exported(report: dict[str, Any]) -> dict[str, int]:
    """Bytes of each back end's files that a runtime reads, of the first target."""
    # report.json keeps its keys sorted: the first target is not the first key.
    targets: dict[str, dict[str, Any]] = report["targets"]
    first = targets.get(report.get("default_target", ""), next(iter(targets.values()), {}))
    return {name: sum(layout.runtime_files(row["files"]).values()) for name, row in first.items()}


def _perplexities(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["backend"]: row for row in report.get("evaluation", {}).get("rows", [])}


def _speeds(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = report.get("bench", {}).get("backends", {})
    return {name: row for name, row in rows.items() if "skipped" not in row}


def result_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """Size, accuracy and speed: float32 first, then the simulator, then each back end with its own float32."""
    accuracy, speed = _perplexities(report), _speeds(report)
    rows = [_result_row("float32", report["sizes"]["float_bytes"], accuracy.get("float"), None, None)]
    if "simulator" in accuracy:
        rows.append(_result_row("simulator", report["sizes"]["weights_bytes"], accuracy["simulator"], None, None))
    for name, count in exported(report).items():
        timed = speed.get(name)
        ratio = None if timed is None else timed.get("ratio_to_float32", {}).get("decode_tokens_per_s")
        rows.append(_result_row(backend_name(name), count, accuracy.get(name), timed, ratio))
        if timed is not None and "float32" in timed:
            baseline = timed["float32"]
            rows.append(_result_row(f"{backend_name(name)}, float32", baseline["file_bytes"], None, baseline, None))
            rows[-1]["baseline"] = "yes"
    # Other targets of the same artifact: their accuracy alone.
    shown = {"float", "simulator", *exported(report)}
    rows += [_result_row(name, None, row, None, None) for name, row in accuracy.items() if name not in shown]
    return rows


def _result_row(
    name: str, count: int | None, accuracy: dict[str, Any] | None, speed: dict[str, Any] | None, ratio: float | None
) -> dict[str, str]:
    accuracy, speed = accuracy or {}, speed or {}
    decode = significant(speed.get("decode_tokens_per_s"))
    return {
        "name": name,
        "size": size(count),
        "perplexity": number(accuracy.get("perplexity")),
        "kl": number(accuracy.get("kl_to_float"), 4),
        "agreement": share(accuracy.get("top1_agreement")),
        "load": f"{speed['load_ms']:,.0f} ms" if speed else DASH,
        "first_token": f"{speed['first_token_ms']:,.0f} ms" if speed else DASH,
        "prefill": significant(speed.get("prefill_tokens_per_s")),
        "decode": decode if ratio is None else f"{decode} ({ratio:.2f}×)",
        "memory": size(speed.get("peak_rss_bytes")),
        "per_token": size(speed.get("bytes_per_token")),
        "energy": number(speed.get("energy_mj_per_token")),
    }


def _cards(report: dict[str, Any]) -> list[dict[str, str | None]]:
    accuracy, speed = _perplexities(report), _speeds(report)
    sizes = exported(report)
    smallest = min(sizes.values(), default=report["sizes"]["weights_bytes"])
    whole = report["sizes"]["float_bytes"]
    cards: list[dict[str, str | None]] = [
        {
            "label": "Size",
            "value": size(smallest),
            "note": f"{whole / smallest:.2f}× smaller than {size(whole)} in float32",
            "todo": None,
        }
    ]
    quantized = next((accuracy[name] for name in (*sizes, "simulator") if name in accuracy), None)
    card = _card("Perplexity", "mobileicsa eval --model DIR --text FILE --reference MODEL")
    if quantized is not None:
        card |= {"value": number(quantized["perplexity"]), "todo": None}
        original = accuracy.get("float")
        if original is not None:
            ratio = quantized["perplexity"] / original["perplexity"]
            card["note"] = f"{ratio:.3f}× of {number(original['perplexity'])} in float32"
    cards.append(card)
    card = _card("Decode", "mobileicsa bench DIR --baseline float")
    if speed:
        name, row = max(speed.items(), key=lambda item: item[1]["decode_tokens_per_s"])
        card |= {"value": f"{significant(row['decode_tokens_per_s'])} tokens/s", "todo": None}
        ratio = row.get("ratio_to_float32", {}).get("decode_tokens_per_s")
        faster = "" if ratio is None else f", {ratio:.2f}× float32 on it"
        card["note"] = f"{backend_name(name)} on this CPU{faster}"
    cards.append(card)
    card = _card("Verified", "mobileicsa verify DIR")
    if "verification" in report:
        card |= _verified_card(report["verification"])
    cards.append(card)
    return cards


def _card(label: str, todo: str) -> dict[str, str | None]:
    return {"label": label, "value": DASH, "note": None, "todo": todo}


def _verified_card(result: dict[str, Any]) -> dict[str, str | None]:
    ran = [row for row in result["backends"].values() if "skipped" not in row]
    passed = sum(bool(row.get("ok")) for row in ran)
    note = f"{passed} of {len(ran)} runtimes repeat the golden integers"
    if result["problems"]:
        note = result["problems"][0]
    return {"value": "yes" if result["ok"] else "NO", "note": note, "todo": None}


def _measured_on(report: dict[str, Any]) -> str | None:
    terms = report.get("evaluation")
    if terms is None:
        return None
    bos = "BOS first" if terms.get("bos", True) else "no BOS"
    return (
        f"Perplexity on {terms['text']} ({terms['tokens']:,} tokens in windows of {terms['window']}, {bos}; "
        f"text SHA-256 {terms['sha256'][:12]}…). KL and top-1 agreement are against the float model."
    )


def _speed_terms(report: dict[str, Any]) -> str | None:
    terms = report.get("bench")
    if terms is None:
        return None
    threads = "the runtime's default threads" if terms["threads"] is None else f"{terms['threads']} threads"
    return (
        f"Speed: median of {terms['repeat']} runs of {terms['prompt_tokens']} prompt and "
        f"{terms['generate_tokens']} new "
        f"tokens, {threads}, all contenders in turn, on {terms['environment']['cpu']}. "
        f"Energy: {terms.get('energy_source', 'not measured')}."
    )


def _edge_row(path: str, edge: dict[str, Any]) -> dict[str, str]:
    return {
        "path": path,
        "role": edge["role"].replace("_", " "),
        "bits": str(edge["bits"]),
        "range": f"{edge['low']:.4g} … {edge['high']:.4g}",
        "sqnr": number(edge["sqnr_db"], 1),
        "clipped": share(edge.get("clipped"), 3),
    }


def _worst_weights(weights: dict[str, Any]) -> list[dict[str, str]]:
    ranked = sorted(weights.items(), key=lambda item: -item[1]["relative_error"])[: WORST // 2]
    return [
        {"path": path, "error": share(row["relative_error"], 3), "zero_rows": str(row["zero_rows"])}
        for path, row in ranked
    ]


def _mixed(mixed: dict[str, Any] | None) -> dict[str, Any] | None:
    if mixed is None:
        return None
    found = {
        "8 bits": [row["weight"] for row in mixed["promoted"]],
        "16 bits": [row["edge"] for row in mixed.get("inputs", [])],
    }
    return {
        "facts": [(name, value) for name, value in mixed_facts(mixed, size) if value is not None],
        "layers": [
            (path, bits, spans(layers))
            for bits, names in found.items()
            for path, layers in layers_by_path(names).items()
        ],
    }


def _prefix(prefix: dict[str, Any]) -> dict[str, Any] | None:
    if not prefix["ids"]:
        return None
    tokens = [{"id": i, "text": visible(text)} for i, text in zip(prefix["ids"], prefix["text"], strict=True)]
    alone = next((t.get("loss") for t in prefix["trials"] if len(t["ids"]) == 1), None)
    chosen = next((t.get("loss") for t in prefix["trials"] if t["ids"] == prefix["ids"]), None)
    return {"tokens": tokens, "trials": len(prefix["trials"]), "loss": chosen, "alone": alone}


def _verification(result: dict[str, Any] | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {
        "problems": result["problems"],
        "rows": [
            {"name": words, **_verified(found)}
            for name, row in result["backends"].items()
            for words, found in ((backend_name(name), row), (f"{backend_name(name)}, exact", row.get("exact")))
            if found is not None
        ],
    }


def _verified(row: dict[str, Any]) -> dict[str, Any]:
    if "skipped" in row or "error" in row:
        return {"reason": row.get("error") or f"skipped: {row['skipped']}", "ok": row.get("ok")}
    greedy, logits = row.get("greedy"), row.get("logits") or {}
    return {
        "ok": row.get("ok"),
        "equal": share(row["equal_share"], 2),
        "steps": str(row["max_steps"]),
        "logits": share(logits.get("equal_share"), 2),
        "logits_steps": str(logits.get("max_steps", DASH)),
        "greedy": share(greedy["token_agreement"]) if greedy else DASH,
        "identical": f"{greedy['identical']} of {greedy['prompts']}" if greedy else DASH,
    }


def _environment(facts: dict[str, Any] | None) -> list[tuple[str, str]] | None:
    if facts is None:
        return None
    rows = [
        ("CPU", f"{facts.get('cpu') or DASH}, {facts.get('cores', DASH)} cores"),
        ("CPU flags", " ".join(facts.get("cpu_flags", [])) or DASH),
        ("Memory", size(facts.get("ram_bytes"))),
        ("System", f"{facts.get('platform', DASH)}, Python {facts.get('python', DASH)}"),
    ]
    versions = {name: version for name, version in facts.get("versions", {}).items() if version is not None}
    return [*rows, ("Packages", ", ".join(f"{name} {version}" for name, version in versions.items()))]


def _stages(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    longest = max((stage["seconds"] for stage in stages), default=1) or 1
    return [
        {
            "name": stage["name"],
            "time": duration(stage["seconds"]),
            "width": round(100 * stage["seconds"] / longest, 1),
            "memory": size(stage["peak_rss_bytes"]),
        }
        for stage in stages
    ]


def _calibration(facts: dict[str, Any]) -> str:
    source = "text that the model wrote itself" if facts["source"] == "self-generated" else "a text file"
    if written := facts.get("self_generated_windows"):
        source += f", {written} of them written by the model itself"
    note = f"; {facts['note']}" if facts.get("note") else ""
    return (
        f"{facts['windows']} windows of {facts['length']} tokens from {source} (SHA-256 {facts['sha256'][:12]}…{note})"
    )

"""Speed, size and accuracy side by side: ours, llama.cpp, onnxruntime-genai, ExecuTorch's 8da4w, PyTorch.

    python -m benchmarks.speed.run --work DIR --artifact w8a8=FOLDER --artifact w4a8=FOLDER --text FILE

Every contender loads in a process of its own; then they take turns, A B A B, so that what the machine does beside
meets all of them. Perplexity is measured afterwards, one by one, on the same tokens and positions. The result says
which CPU it was: ratios of one run may be compared, numbers of two machines may not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.speed.contenders import GROUPS, Contender, Setting, prepare
from benchmarks.speed.figure import draw
from benchmarks.steps import MODEL, WINDOW, write_result
from mobileicsa.bench.child import Child
from mobileicsa.bench.environment import environment, installed_version
from mobileicsa.bench.figures import Runs
from mobileicsa.core.errors import MobileICSAError

WORKER = "benchmarks.speed.worker"
PROMPTS, GENERATE = (128, 512), 128
CONTEXT = 704  # the longest prompt, what it generates, and a prefix, in whole chunks of prefill
PEER_PACKAGES = ("onnxruntime-genai", "torchao")


def race(
    contenders: Sequence[Contender], prompts: Sequence[int], generate: int, repeat: int, vocab: int
) -> dict[str, dict[str, Any]]:
    """Per contender and prompt length what `Runs` sums up; {"failed": why} where it could not run."""
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        children: dict[str, Child] = {}
        opened: dict[str, dict[str, Any]] = {}
        for contender in contenders:
            child = stack.enter_context(Child(contender.name, WORKER))
            try:
                opened[contender.name] = child.ask("open", kind=contender.kind, settings=contender.settings)
                children[contender.name] = child
            except MobileICSAError as error:
                rows[contender.name] = {"failed": error.message}
        runs = {(name, p): Runs(opened=opened[name], prompt_tokens=p) for p in prompts for name in children}
        for prompt in prompts:
            for turn in range(repeat + 1):
                for name, child in children.items():
                    made = child.ask("run", prompt_tokens=prompt, generate_tokens=generate, vocab=vocab)
                    if turn:  # the first is the warm-up
                        runs[name, prompt].turns.append(made)
        for _ in range(repeat):
            for name, child in children.items():
                loaded = child.ask("reload")["load_ms"]
                for prompt in prompts:
                    runs[name, prompt].loads.append(loaded)
    for (name, prompt), one in runs.items():
        rows.setdefault(name, {})[str(prompt)] = one.summary()
    return rows


def score(contender: Contender, text: str, windows: int | None, window: int = WINDOW) -> dict[str, Any]:
    with Child(contender.name, WORKER) as child:
        child.ask("open", kind=contender.kind, settings=contender.settings)
        return child.ask("score", text=text, window=window, windows=windows)


def measure(
    setting: Setting,
    groups: list[str],
    text: str,
    *,
    prompts: Sequence[int],
    generate: int,
    repeat: int,
    windows: int | None,
) -> dict[str, Any]:
    contenders, skipped = prepare(setting, groups)
    timed = race(contenders, prompts, generate, repeat, setting.plan.spec.vocab_size)
    rows = []
    for contender in contenders:
        row: dict[str, Any] = {"name": contender.name, "file_bytes": contender.file_bytes or None}
        if "failed" in timed[contender.name]:
            skipped[contender.name] = timed[contender.name]["failed"]
            continue
        row["speed"] = timed[contender.name]
        if contender.scored:
            found = score(contender, text, windows)
            row |= {key: found[key] for key in ("perplexity", "tokens", "windows")}
        rows.append(row)
    _same_tokens(rows)
    versions = {name: installed_version(name) for name in PEER_PACKAGES}
    return {
        "model": setting.model,
        "rows": rows,
        "skipped": skipped,
        "generate_tokens": generate,
        "repeat": repeat,
        "threads": setting.threads,
        "context": setting.context,
        "environment": environment() | {"peers": versions},
    }


def _same_tokens(rows: list[dict[str, Any]]) -> None:
    counted = {row["tokens"] for row in rows if "tokens" in row}
    if len(counted) > 1:
        raise SystemExit(f"perplexities of {sorted(counted)} tokens cannot stand side by side")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--artifact", action="append", required=True, metavar="SCHEME=FOLDER")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--name", default="smollm2-135m", help="of the result's files")
    parser.add_argument("--llama-cpp", type=Path, default=None, help="folder of libllama and libggml")
    parser.add_argument("--group", action="append", choices=GROUPS, default=None)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    setting = Setting(
        work=options.work,
        model=options.model,
        artifacts={scheme: Path(folder) for scheme, _, folder in (a.partition("=") for a in options.artifact)},
        context=CONTEXT,
        threads=options.threads,
        libraries=options.llama_cpp,
    )
    result = measure(
        setting,
        options.group or list(GROUPS),
        options.text.read_text(encoding="utf-8"),
        prompts=PROMPTS,
        generate=GENERATE,
        repeat=options.repeat,
        windows=options.windows,
    )
    write_result(f"speed-{options.name}", {**result, "text": options.text.name}, draw(result))


if __name__ == "__main__":
    main()

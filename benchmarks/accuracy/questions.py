"""One model's answers to the zero-shot questions, by lm-eval on the task files in `tasks/`.

    python -m benchmarks.accuracy.questions MODEL --backend simulator --limit N --data DIR

prints one JSON answer: per task the rows asked and, question by question, what lm-eval scored. The rows are the first N
of a seeded shuffle, so that a larger N asks the same questions and more. (The first N of the files would be HellaSwag's
video captions only, and WinoGrande's sentences in twins.) Every prompt stands behind BOS or the artifact's prefix.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from mobileicsa.io.hashing import sha256_bytes

FOLDER = Path(__file__).parent / "tasks"
# In the order of tables and figures; a task's file has its name.
TASKS = ("lambada_openai", "arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande")
SEED = 0


def load_tasks(data: Path, cache: Path) -> dict[str, Any]:
    """lm-eval's task objects over the files in `data`; `cache` takes what the datasets library writes."""
    from lm_eval.api.task import ConfigurableTask

    tasks = {}
    for name in TASKS:
        config = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
        config["dataset_kwargs"] |= {"data_dir": str(data.resolve()), "cache_dir": str(cache)}
        tasks[name] = ConfigurableTask(config=config)
    return tasks


def choose(size: int, limit: int) -> list[int]:
    """Rows to ask, ascending: `limit` of `size`, or all."""
    order = list(range(size))
    random.Random(SEED).shuffle(order)
    return sorted(order[:limit])


def answers(lm: Any, tasks: dict[str, Any], limit: int) -> dict[str, Any]:
    """Per task: `rows`, a hash of the `questions`, and per question acc, acc_norm or log_likelihood where defined."""
    from lm_eval.evaluator import evaluate

    rows = {name: choose(len(task.eval_docs), limit) for name, task in tasks.items()}
    result = evaluate(lm=lm, task_dict={"tasks": tasks, "groups": {}}, samples=rows, bootstrap_iters=0)
    return {name: _scores(result["samples"][name]) for name in tasks}


def _scores(samples: list[dict[str, Any]]) -> dict[str, Any]:
    asked = [[sample["arguments"], sample["target"]] for sample in samples]
    found: dict[str, Any] = {
        "rows": [sample["doc_id"] for sample in samples],
        "questions": sha256_bytes(json.dumps(asked).encode()),
    }
    # lm-eval keeps a passage's log-likelihood under the metric that it is summed up in.
    for key, metric in (("acc", "acc"), ("acc_norm", "acc_norm"), ("log_likelihood", "perplexity")):
        if metric in samples[0]:
            found[key] = [sample[metric] for sample in samples]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="artifact folder or checkpoint")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--limit", type=int, required=True, help="questions of each task")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args(arguments)
    # Standard output is the answer's; libraries print there too.
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as cache:
        from importlib.metadata import version

        from mobileicsa.evaluate.lm_eval_model import MobileicsaLM

        lm = MobileicsaLM(options.model, backend=options.backend)
        found = answers(lm, load_tasks(options.data, Path(cache)), options.limit)
    print(json.dumps({"lm_eval": version("lm-eval"), "seed": SEED, "tasks": found}))


if __name__ == "__main__":
    main()

"""lm-eval drives our models: scores equal a direct computation, a local task runs through the whole harness."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_artifact import TEXT

pytest.importorskip("lm_eval", reason="needs the extra mobileicsa[eval]")

from lm_eval.api.instance import Instance

from mobileicsa.evaluate.lm_eval_model import MobileicsaLM
from mobileicsa.evaluate.lm_eval_run import register


@pytest.fixture(scope="module")
def lm(artifact: Path) -> MobileicsaLM:
    return MobileicsaLM(pretrained=str(artifact), backend="simulator")


@pytest.fixture(scope="module")
def float_lm(artifact: Path) -> MobileicsaLM:
    return MobileicsaLM(pretrained=str(artifact.parent / "checkpoint"))


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def direct(lm: MobileicsaLM, text: str) -> torch.Tensor:
    """Log-probability of each byte token of `text` behind BOS."""
    ids = lm.tokenizer.encode(text)
    log_p = torch.log_softmax(lm.model.decoder(torch.tensor([[1, *ids]]))[0][0, :-1], -1)
    return log_p.gather(1, torch.tensor(ids)[:, None])[:, 0].detach()


def test_loglikelihood_is_the_sum_over_the_continuation(float_lm: MobileicsaLM) -> None:
    ((score, greedy),) = float_lm.loglikelihood([request("loglikelihood", "The fox", " jumps")], disable_tqdm=True)
    assert score == pytest.approx(float(direct(float_lm, "The fox jumps")[-6:].sum()), rel=1e-4)
    assert not greedy


def test_an_empty_context_is_scored_behind_bos(float_lm: MobileicsaLM) -> None:
    ((score, _),) = float_lm.loglikelihood([request("loglikelihood", "", "The")], disable_tqdm=True)
    assert score == pytest.approx(float(direct(float_lm, "The").sum()), rel=1e-4)


def test_greedy_is_true_for_what_the_model_would_write(lm: MobileicsaLM) -> None:
    ids = lm.model.generate("The fox", max_new_tokens=1).token_ids
    context = lm.tokenizer.encode("The fox")
    assert lm._scores(context, [ids])[0][1]
    assert not lm._scores(context, [[(ids[0] + 1) % 256]])[0][1]


@pytest.mark.parametrize("context", ["The fox", "", "The quick brown fox jumps over the lazy dog. " * 3])
def test_endings_of_one_context_score_as_each_alone(lm: MobileicsaLM, context: str) -> None:
    texts = [(context, " jumps"), (context, " sleeps all day"), ("A dog", " barks"), (context, "s")]
    requests = [request("loglikelihood", *pair) for pair in texts]
    alone = [lm.loglikelihood([one], disable_tqdm=True)[0] for one in requests]
    assert lm.loglikelihood(requests, disable_tqdm=True) == alone


def test_rolling_loglikelihood_scores_every_token_once(float_lm: MobileicsaLM) -> None:
    text = TEXT[:70]
    (score,) = float_lm.loglikelihood_rolling([request("loglikelihood_rolling", text)], disable_tqdm=True)
    assert score == pytest.approx(float(direct(float_lm, text).sum()), rel=1e-4)


def test_rolling_windows_are_cut_at_the_context(lm: MobileicsaLM) -> None:
    (score,) = lm.loglikelihood_rolling([request("loglikelihood_rolling", TEXT[:400])], disable_tqdm=True)
    assert len(TEXT[:400]) > 3 * lm.max_length
    assert -400 * 12 < score < -400


def test_generation_ends_before_a_stop_sequence(lm: MobileicsaLM) -> None:
    free = lm.generate_until([request("generate_until", "The fox", {"max_gen_toks": 12})], disable_tqdm=True)[0]
    assert len(free) > 3
    options = {"max_gen_toks": 12, "until": [free[2]]}
    (text,) = lm.generate_until([request("generate_until", "The fox", options)], disable_tqdm=True)
    assert text == free[: free.index(free[2])]


def test_a_long_context_keeps_its_end(lm: MobileicsaLM) -> None:
    options = {"max_gen_toks": 4}
    tail = TEXT[: lm.max_length - 4]
    long, short = lm.generate_until(
        [request("generate_until", "x" * 50 + tail, options), request("generate_until", tail, options)], True
    )
    assert long == short


def write_task(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "tiny_mcq.yaml").write_text(
        f"""task: tiny_mcq
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}} Answer:"
doc_to_choice: choices
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
    )


def test_the_harness_runs_a_local_task_by_model_name(artifact: Path, data_dir: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with gzip.open(data_dir / "mcq" / "arc_easy_test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][:12]
    rows = [row for row in rows if len(row["choices"]) == 4 and len(row["question"]) < 200]
    write_task(tmp_path, rows)
    register()
    result = simple_evaluate(
        model="mobileicsa",
        model_args={"pretrained": str(artifact), "backend": "simulator"},
        tasks=["tiny_mcq"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    samples = result["samples"]["tiny_mcq"]
    expected = []
    lm = MobileicsaLM(pretrained=str(artifact))
    for row in rows:
        pairs = [request("loglikelihood", f"Question: {row['question']} Answer:", f" {c}") for c in row["choices"]]
        scores = [score for score, _ in lm.loglikelihood(pairs, disable_tqdm=True)]
        expected.append(float(scores.index(max(scores)) == row["label"]))
    assert [sample["acc"] for sample in samples] == expected
    assert result["results"]["tiny_mcq"]["acc,none"] == pytest.approx(sum(expected) / len(expected))


def test_the_launcher_knows_our_model_class() -> None:
    code = (
        "from mobileicsa.evaluate.lm_eval_run import register; register(); "
        "from lm_eval.api.registry import get_model; print(get_model('mobileicsa').__name__, get_model('hf').__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["MobileicsaLM", "HFLM"]

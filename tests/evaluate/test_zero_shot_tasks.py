"""Our zero-shot task files ask as lm-eval's own definitions do, and every answer belongs to the row it names."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_artifact import write_checkpoint

pytest.importorskip("lm_eval", reason="needs the extra mobileicsa[eval]")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from benchmarks.accuracy.questions import TASKS, answers, choose, load_tasks
from mobileicsa.evaluate.lm_eval_model import MobileicsaLM

Row = dict[str, Any]


@dataclass(frozen=True)
class Original:
    """lm-eval's own file of a task, our data file, and one of our rows in the original's fields."""

    file: str
    data: str
    size: int
    fields: Callable[[Row], Row]
    rows: tuple[int, ...] = (0, 1, 100)


def arc(row: Row) -> Row:
    labels = "ABCDE"[: len(row["choices"])]
    choices = {"text": row["choices"], "label": list(labels)}
    return {"question": row["question"], "choices": choices, "answerKey": labels[row["label"]]}


# The second part of the contexts below, read by hand; WikiHow's have none.
SECOND_PARTS = ("he", "a woman", "a girl dressed in a white blouse and black skirt")


def hellaswag(row: Row) -> Row:
    label, context = row["ctx"].split(": ", 1)
    second = next((part for part in SECOND_PARTS if context.endswith(f" {part}")), "")
    first = context.removesuffix(f" {second}") if second else context
    fields = {"activity_label": label, "ctx_a": first, "ctx_b": second}
    return {**fields, "endings": row["endings"], "label": str(row["label"])}


def winogrande(row: Row) -> Row:
    one, two = row["choices"]
    return {"sentence": row["question"], "option1": one, "option2": two, "answer": str(row["label"] + 1)}


def piqa(row: Row) -> Row:
    return {"goal": row["question"], "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["label"]}


ORIGINALS = {
    "lambada_openai": Original("lambada/lambada_openai.yaml", "lambada/lambada_test_openai.jsonl", 5153, dict),
    # Row 93 has not four choices.
    "arc_easy": Original("arc/arc_easy.yaml", "mcq/arc_easy_test.jsonl.gz", 2376, arc, (0, 1, 93)),
    "arc_challenge": Original("arc/arc_challenge.yaml", "mcq/arc_challenge_test.jsonl.gz", 1172, arc),
    "hellaswag": Original(
        "hellaswag/hellaswag.yaml", "hellaswag/hellaswag_val.jsonl.gz", 10042, hellaswag, (0, 100, 3211, 3243)
    ),
    "piqa": Original("piqa/piqa.yaml", "mcq/piqa_val.jsonl.gz", 1838, piqa),
    "winogrande": Original("winogrande/default.yaml", "mcq/winogrande_xl_val.jsonl.gz", 1267, winogrande),
}


def read_rows(data: Path, name: str) -> list[Row]:
    path = data / ORIGINALS[name].data
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def asked(task: ConfigurableTask, doc: Row) -> tuple[list[tuple[str, str]], Any]:
    """(context, continuation) of every request, and the right answer."""
    made = task.construct_requests(doc, task.fewshot_context(doc, 0))
    requests = made if isinstance(made, list) else [made]
    return [request.args for request in requests], (
        task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    )


@pytest.fixture(scope="module")
def tasks(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ConfigurableTask]:
    missing = [one.data for one in ORIGINALS.values() if not (data_dir / one.data).is_file()]
    if missing:
        pytest.skip(f"{data_dir} has no {missing[0]}")
    return load_tasks(data_dir, tmp_path_factory.mktemp("datasets"))


@pytest.mark.parametrize("name", TASKS)
def test_every_row_of_the_data_is_a_question(tasks: dict[str, ConfigurableTask], name: str) -> None:
    assert len(tasks[name].eval_docs) == ORIGINALS[name].size


@pytest.mark.parametrize("name", TASKS)
def test_prompts_choices_and_metrics_are_those_of_the_original(
    tasks: dict[str, ConfigurableTask], data_dir: Path, tmp_path: Path, name: str
) -> None:
    loader = pytest.importorskip("lm_eval.tasks._yaml_loader", reason="reads lm-eval's task files as 0.4.13 keeps them")
    original, task = ORIGINALS[name], tasks[name]
    rows = [read_rows(data_dir, name)[index] for index in original.rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(original.fields(row)) for row in rows))
    config = loader.load_yaml(Path(lm_eval.__file__).parent / "tasks" / original.file)
    split = config.get("test_split") or config["validation_split"]
    config |= {"dataset_path": "json", "dataset_name": None, "training_split": None, "validation_split": None}
    config |= {"test_split": split, "dataset_kwargs": {"data_files": {split: str(tmp_path / "rows.jsonl")}}}
    config["dataset_kwargs"]["cache_dir"] = str(tmp_path)
    theirs = ConfigurableTask(config={key: value for key, value in config.items() if key != "tag"})
    assert [asked(task, task.eval_docs[index]) for index in original.rows] == [
        asked(theirs, doc) for doc in theirs.eval_docs
    ]
    assert task.OUTPUT_TYPE == theirs.OUTPUT_TYPE
    assert set(task._metric_fn_list) == set(theirs._metric_fn_list)


def test_a_prompt_reads_as_expected(tasks: dict[str, ConfigurableTask]) -> None:
    requests, label = asked(tasks["winogrande"], tasks["winogrande"].eval_docs[0])
    assert requests == [
        ("Sarah was a much better surgeon than Maria so Sarah", " always got the easier cases."),
        ("Sarah was a much better surgeon than Maria so Maria", " always got the easier cases."),
    ]
    assert label == 1
    requests, label = asked(tasks["hellaswag"], tasks["hellaswag"].eval_docs[0])
    assert requests[3] == (
        "Roof shingle removal: A man is sitting on a roof. He",
        " starts pulling up roofing on a roof.",
    )
    assert label == 3


def test_more_questions_keep_the_earlier_ones() -> None:
    few, many = choose(1000, 20), choose(1000, 50)
    assert set(few) < set(many)
    assert many == sorted(set(many))
    assert choose(3, 20) == [0, 1, 2]


def test_each_answer_is_that_of_the_row_it_names(
    tasks: dict[str, ConfigurableTask], data_dir: Path, tmp_path: Path
) -> None:
    lm = MobileicsaLM(str(write_checkpoint(tmp_path / "checkpoint", max_position_embeddings=4096)))
    found = answers(lm, tasks, 3)
    assert list(found) == list(TASKS)
    assert set(found["lambada_openai"]) == {"rows", "questions", "acc", "log_likelihood"}
    assert "acc_norm" not in found["winogrande"]
    all_rows = read_rows(data_dir, "arc_challenge")
    for row, acc, acc_norm in zip(*(found["arc_challenge"][key] for key in ("rows", "acc", "acc_norm")), strict=True):
        question, choices, label = (all_rows[row][key] for key in ("question", "choices", "label"))
        pairs = [(f"Question: {question}\nAnswer:", f" {choice}") for choice in choices]
        requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]
        scores = [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]
        by_length = [score / len(choice) for score, choice in zip(scores, choices, strict=True)]
        assert acc == float(scores.index(max(scores)) == label)
        assert acc_norm == float(by_length.index(max(by_length)) == label)

"""The accuracy table of a model that was trained here: its own texts, and its place in README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_data

from benchmarks import steps, tables
from benchmarks.accuracy.run import ROWS
from benchmarks.accuracy.texts import calibration_file, text_files
from benchmarks.small_model.corpus import PLAYS, WIKI, WIKI_TEST, held_out_plays
from mobileicsa.core.errors import InputError

FOUND = {"perplexity": 40.0, "tokens": 20400}
RESULT: dict[str, Any] = {
    "model": "small-llama",
    "window": 256,
    "float": {"wikitext2": FOUND, "shakespeare": FOUND},
    "rows": [
        {
            "scheme": "w8a8",
            "recipe": "rotated",
            "effort": "default",
            "quantize_s": 60.0,
            "runtimes": {"executorch": {"perplexity": 42.125}},
            "texts": {name: {"perplexity": 42.0, "ratio": 1.05} for name in ("wikitext2", "shakespeare")},
        },
        {
            "scheme": "w4a8",
            "recipe": "rotated",
            "effort": "default",
            "quantize_s": 60.0,
            "texts": {
                "wikitext2": {"perplexity": 44.0, "ratio": 1.1, "kl_to_reference": 0.25, "top1_agreement": 0.75},
                "shakespeare": {"perplexity": 44.0, "ratio": 1.1},
            },
        },
    ],
    "peers": [],
    "environment": {"cores": 2, "cpu": "Some CPU"},
    "training": {"parameters": 5_475_584, "tokens": {"seen": 8_600_000}},
}


def test_a_model_that_read_the_plays_is_measured_on_the_rest(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    files = text_files(data, tmp_path, trained_here=True)
    assert files["shakespeare"].read_text(encoding="utf-8") == held_out_plays(
        (data / PLAYS).read_text(encoding="utf-8")
    )
    assert files["wikitext2"] == data / WIKI_TEST
    assert text_files(data, tmp_path, trained_here=False)["shakespeare"] == data / PLAYS


def test_the_second_table_is_there_when_its_result_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "RESULTS", tmp_path)
    page = "Before\n<!-- table: recipes_small -->\n<!-- end -->\nafter\n"
    assert tables.fill(page) == page
    (tmp_path / "accuracy-small-llama.json").write_text(json.dumps(RESULT))
    filled = tables.fill(page)
    assert "small-llama, first 20,400 tokens" in filled
    assert "Times, if not said otherwise, of 2 cores, Some CPU." in filled
    assert "5.5 M parameters on no grid, trained here on 8.6 M tokens" in filled
    assert "| w8a8 | rotated | 42.00 | 1.050× |  |  |  | 42.12 | 42.00 | 1.050× | 1 min |" in filled
    assert "| w4a8 | rotated | 44.00 | 1.100× | 0.250 | 75.0% |  |  | 44.00 | 1.100× | 1 min |" in filled
    (tmp_path / "accuracy-small-llama.json").unlink()
    assert tables.fill(filled) == page


def test_the_text_to_calibrate_on_has_no_marks_for_rare_words(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / WIKI).write_text(" = Title = \n The <unk> lobster , <unk> . \n", encoding="utf-8")
    assert calibration_file(data, tmp_path).read_text(encoding="utf-8") == " = Title = \n The lobster , . \n"
    (data / WIKI).unlink()
    with pytest.raises(InputError, match="no such file"):
        calibration_file(data, tmp_path)


def test_a_row_says_what_it_was_calibrated_on() -> None:
    facts = [row.facts() | {"name": row.name} for row in ROWS if (row.scheme, row.recipe) == ("w4a8", "learned")]
    names = {row["name"]: tables._recipe(row) for row in facts}
    assert names["w4a8-learned"] == "learned"
    assert names["w4a8-learned-text"] == "learned, on WikiText-2 valid"
    assert names["w4a8-learned-best-text"] == "learned, effort best, on WikiText-2 valid"

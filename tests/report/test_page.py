"""The page's sections on what is measured after the build, from sections of report.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mobileicsa.report.comparison import comparison_view
from mobileicsa.report.html import render
from mobileicsa.report.positions import positions_figure, positions_view


@pytest.fixture
def report(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "report.json").read_text())
    return found


def positions(**changes: Any) -> dict[str, Any]:
    rows = [
        {"from": a, "to": b, "tokens": 4 * (b - a + 1), "log2_position": x, "loss": 3.5, "reference_loss": 3.25,
         "difference": 0.25, "standard_error": 0.01, "kl_to_reference": 0.1}
        for a, b, x in ((0, 127, 5.6), (128, 255, 7.6), (256, 510, 8.6))
    ]  # fmt: skip
    terms = {"text": "wiki.txt", "sha256": "ab" * 32, "backend": "onnx", "window": 512, "windows": 4, "warning": None}
    verdict = {"slope": 0.02, "slope_standard_error": 0.001, "threshold": 0.005, "drift": True}
    verdict |= {"kl_slope": -0.003, "kl_slope_standard_error": 0.002}
    return {**terms, "buckets": rows, **verdict, **changes}


def comparison(**changes: Any) -> dict[str, Any]:
    pairs = [
        {"prompt": "1 <b>2", "equal_tokens": 2, "tokens": 3,
         "float": {"text": "so & on", "token_ids": [5, 6, 7], "differs": [5, 7]},
         "artifact": {"text": "so & ", "token_ids": [5, 6], "differs": [5, 5]}},
        {"prompt": "x", "equal_tokens": 1, "tokens": 1,
         "float": {"text": "y", "token_ids": [8]}, "artifact": {"text": "y", "token_ids": [8]}},
    ]  # fmt: skip
    terms = {"backend": "simulator", "target": "host-cpu", "reference": "tiny", "tokens": 3, "warning": None}
    summary = {"prompts": 2, "finished": True, "identical": 1, "token_agreement": 0.75}
    return {**terms, **summary, "pairs": pairs, **changes}


def section(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def test_what_was_not_measured_names_its_command(report: dict[str, Any]) -> None:
    page = render(report)
    assert "--by-position" in section(page, "positions")
    assert "mobileicsa compare DIR" in section(page, "texts")


def test_texts_are_shown_whole_and_escaped_with_the_first_difference_marked(report: dict[str, Any]) -> None:
    shown = section(render({**report, "comparison": comparison()}), "texts")
    assert "1 &lt;b&gt;2" in shown
    assert re.findall(r'<p class="text">(.*?)</p>', shown) == [
        "so &amp; <mark>on</mark>",
        "so &amp; <mark>(ends)</mark>",
        "y",
        "y",
    ]
    assert "2 of 3 tokens equal" in shown
    assert "75.0 % of all tokens" in shown
    assert "Interrupted" not in shown


def test_every_part_of_a_text_is_kept_and_blanks_that_differ_can_be_seen() -> None:
    pair = comparison()["pairs"][0]
    pair["float"] |= {"text": "a\n\nb", "differs": [1, 2]}
    view = comparison_view(comparison(pairs=[pair]))
    assert view is not None
    assert view["pairs"][0]["sides"][0] == {"name": "float32", "head": "a", "mark": "↵", "tail": "\nb"}


def test_positions_show_rows_figure_and_verdict(report: dict[str, Any]) -> None:
    shown = section(render({**report, "by_position": positions()}), "positions")
    assert '<span class="no">yes</span>: with each doubling of the position the difference' in shown
    assert "changes by +0.0200 ± 0.0010 nats, KL to float by -0.0030 ± 0.0020; drift would be" in shown
    assert "<td>128–255</td><td>512</td><td>3.5000</td><td>3.2500</td><td>0.2500</td><td>0.0100</td>" in shown
    assert "<svg" in shown
    assert "ONNX Runtime on wiki.txt: 4 whole windows of 512 tokens" in shown


def test_positions_without_a_reference_have_losses_and_no_verdict() -> None:
    kept = ("from", "to", "tokens", "log2_position", "loss")
    found = positions(buckets=[{name: row[name] for name in kept} for row in positions()["buckets"]])
    for name in ("slope", "slope_standard_error", "kl_slope", "kl_slope_standard_error", "threshold", "drift"):
        del found[name]
    view = positions_view(found)
    assert view is not None
    assert (view["verdict"], view["basis"]) == (None, None)
    assert view["rows"][0]["difference"] == "—"
    assert "loss over float" not in str(positions_figure(found))


def test_a_report_from_before_the_divergence_had_a_slope_shows_the_losss_alone() -> None:
    found = positions()
    del found["kl_slope"], found["kl_slope_standard_error"]
    view = positions_view(found)
    assert view is not None
    assert "+0.0200 ± 0.0010 nats; drift would be" in view["basis"]


def test_what_could_not_be_judged_is_not_called_no_drift(report: dict[str, Any]) -> None:
    found = positions(slope_standard_error=None, drift=None, note="not judged: it takes 4 windows")
    shown = section(render({**report, "by_position": found}), "positions")
    assert '<span class="soft">not judged</span>' in shown
    assert "it takes 4 windows" in shown


def test_each_stage_shows_its_figures_and_noisiest_edges(report: dict[str, Any]) -> None:
    worst = [{"edge": "layers.0.mlp.product", "bits": 8, "sqnr_db": 21.25}]
    base = {"windows": 8, "unseen": True, "kl": 0.25, "perplexity": 6.0, "float_perplexity": 5.0, "worst": worst}
    rows = [{"stage": stage, **base} for stage in ("base", "block", "model")]
    shown = section(render({**report, "quality": rows}), "quality")
    assert re.findall(r'<tr class="top"><td>(.*?)</td>', shown) == [
        "rounded",
        "learned block by block",
        "learned end to end",
    ]
    assert "<td>0.2500</td><td>6.00</td><td>1.200×</td>" in shown
    assert "<code>layers.0.mlp.product</code> 21.2 dB at 8 bits" in shown
    assert "8 windows that neither calibration nor learning saw; float32 behind the same prefix" in shown
    assert "has perplexity 5.00 there" in shown
    shown = section(render({**report, "quality": rows, "prefix": {**report["prefix"], "ids": []}}), "quality")
    assert "saw; float32 has perplexity 5.00 there" in shown


def test_what_a_stage_could_not_measure_is_a_dash(report: dict[str, Any]) -> None:
    row = {"stage": "base", "windows": 1, "unseen": False, "kl": None, "perplexity": None, "worst": []}
    shown = section(render({**report, "quality": [{**row, "float_perplexity": None}]}), "quality")
    assert "<td>—</td><td>—</td><td>—</td>" in shown
    assert "1 window of the calibration text" in shown


def test_a_report_of_an_older_version_has_no_such_section(report: dict[str, Any]) -> None:
    report.pop("quality")
    assert 'id="quality"' not in render(report)


def test_prefixes_show_their_expected_losses_and_those_of_an_older_version_only_their_number(
    report: dict[str, Any],
) -> None:
    trials = [{"ids": [1], "loss": 0.5}, {"ids": report["prefix"]["ids"], "loss": -0.25}]
    found = section(render({**report, "prefix": {**report["prefix"], "trials": trials}}), "prefix")
    assert "-0.250 behind the chosen one, 0.500 behind BOS alone" in found
    assert "<svg" in found
    older = [{"ids": trial["ids"], "noise": 0.1} for trial in trials]
    found = section(render({**report, "prefix": {**report["prefix"], "trials": older}}), "prefix")
    assert "2 prefixes tried." in found
    assert "Expected loss" not in found
    assert "<svg" not in found

"""The two texts of the accuracy benchmark, of which a model trained here gets what it has not seen, and one to
calibrate on.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.small_model.corpus import PLAYS, UNKNOWN, WIKI, WIKI_TEST, evaluation_texts, read_file

HELD_OUT_PLAYS = "shakespeare-held-out.txt"
CALIBRATION = "WikiText-2 valid"


def text_files(data: Path, work: Path, *, trained_here: bool) -> dict[str, Path]:
    """Files by name, of the data folder. A model that learned from Tiny Shakespeare gets the rest, written to `work`.

    Raises InputError naming a file that is missing.
    """
    texts = evaluation_texts(data)
    files = {"wikitext2": data / WIKI_TEST, "shakespeare": data / PLAYS}
    if trained_here:
        files["shakespeare"] = work / HELD_OUT_PLAYS
        files["shakespeare"].write_text(texts["shakespeare"], encoding="utf-8")
    return files


def calibration_file(data: Path, work: Path) -> Path:
    """WikiText-2's validation split, written to `work`: other articles than the test's.

    It has `<unk>` for rare words, which the raw test has not; without them it reads like the test.
    """
    file = work / "wikitext2-valid.txt"
    file.write_text(read_file(data, WIKI, {}).replace(f" {UNKNOWN}", ""), encoding="utf-8")
    return file

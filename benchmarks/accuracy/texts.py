"""The two texts of the accuracy benchmark; for a model that was trained here, only what it has not seen of them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.small_model.corpus import PLAYS, WIKI_TEST, evaluation_texts

HELD_OUT_PLAYS = "shakespeare-held-out.txt"


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

"""What the small model is measured on is not in what it learns from; files become documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_data import write_data

from benchmarks.small_model.corpus import (
    LICENCES,
    PLAYS,
    UNKNOWN,
    WIKI_TEST,
    Corpus,
    evaluation_texts,
    held_out_plays,
    read_corpus,
    training_plays,
    wiki_articles,
)
from mobileicsa.calibrate.overlap import line_hashes
from mobileicsa.core.errors import InputError

# Text in common of that many words is taken for contamination (GPT-3, arXiv 2005.14165, appendix C).
RUN_WORDS = 13


@pytest.fixture(scope="module")
def corpus(data_dir: Path) -> Corpus:
    return read_corpus(data_dir)


@pytest.fixture(scope="module")
def measured(data_dir: Path) -> dict[str, str]:
    return evaluation_texts(data_dir)


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + RUN_WORDS]) for start in range(len(words) - RUN_WORDS + 1)}


def test_no_line_of_an_evaluation_text_is_in_the_corpus(corpus: Corpus, measured: dict[str, str]) -> None:
    known = set().union(*(line_hashes(text) for text in corpus.train + corpus.validation))
    assert {name: len(known & line_hashes(text)) for name, text in measured.items()} == dict.fromkeys(measured, 0)
    assert known & line_hashes(corpus.train[0])


def test_no_run_of_words_of_an_evaluation_text_is_in_the_corpus(corpus: Corpus, measured: dict[str, str]) -> None:
    known = set().union(*(runs(text) for text in corpus.train + corpus.validation))
    assert {name: len(known & runs(text)) for name, text in measured.items()} == dict.fromkeys(measured, 0)


def test_the_validation_text_is_not_in_the_training_text(corpus: Corpus) -> None:
    known = set().union(*(line_hashes(text) for text in corpus.train))
    assert all(line_hashes(text) and not known & line_hashes(text) for text in corpus.validation)


def test_the_tokens_form_of_wikitext_has_the_spaces_of_the_raw_test(data_dir: Path) -> None:
    """Why nothing is detokenised: the two differ in unknown words only."""
    raw = (data_dir / WIKI_TEST).read_text(encoding="utf-8").split("\n")
    tokens = (data_dir / WIKI_TEST).with_suffix(".tokens").read_text(encoding="utf-8").split("\n")
    for one, other in zip(raw, tokens, strict=True):
        pairs = list(zip(one.split(), other.split(), strict=True))
        assert all(word == known or known == UNKNOWN for word, known in pairs)


def test_plays_are_cut_once_behind_nine_tenths(data_dir: Path) -> None:
    whole = (data_dir / PLAYS).read_text(encoding="utf-8")
    assert training_plays(whole) + held_out_plays(whole) == whole
    assert 0.099 < len(held_out_plays(whole)) / len(whole) <= 0.1
    assert held_out_plays(whole).startswith("GREMIO:\n")


def test_an_article_begins_at_its_title_and_holds_its_parts() -> None:
    articles = wiki_articles(" \n = One = \n \n Text = 2 . \n = = Part = = \n More .\n = Two = \n Text .\n")
    assert [article.split("\n")[0] for article in articles] == [" = One = ", " = Two = "]
    assert "= = Part = =" in articles[0]


def test_rows_become_documents_without_their_marks(tmp_path: Path) -> None:
    train = read_corpus(write_data(tmp_path)).train
    assert train[-5:] == [
        "How many?\n6*2=12.\n#### 12",
        "Say yes.\nYes.",
        "Add.\nDone.\u2028Really.",
        "One. Two.",
        "Three.",
    ]


def test_every_file_that_is_read_has_its_licence_and_hash(tmp_path: Path) -> None:
    files = read_corpus(write_data(tmp_path)).files
    assert files.keys() == LICENCES.keys()
    (tmp_path / PLAYS).write_text((tmp_path / PLAYS).read_text() + "\nKING:\nMore.\n")
    changed = read_corpus(tmp_path).files
    assert {name for name, digest in files.items() if changed[name] != digest} == {PLAYS}


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    path = write_data(tmp_path) / "instructions/dolly_subset.jsonl"
    path.write_text("{}")
    with pytest.raises(InputError, match=r"dolly_subset\.jsonl: not in the form expected: KeyError"):
        read_corpus(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"dolly_subset\.jsonl: no such file"):
        read_corpus(tmp_path)

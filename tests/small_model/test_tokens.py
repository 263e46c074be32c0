"""Tokenizer, windows and batches of the small model."""

from __future__ import annotations

import pytest
import torch
from tiny_data import sentences

from benchmarks.small_model.tokens import (
    BOS_ID,
    EOS_ID,
    UNKNOWN_ID,
    UNSCORED,
    Batches,
    labels_of,
    token_stream,
    train_tokenizer,
    windows_of,
)
from mobileicsa.core.errors import UsageError

TEXT = sentences(200, 0)


def test_any_text_comes_back_from_its_tokens() -> None:
    tokenizer = train_tokenizer([TEXT], 300)
    text = "Ünknown\twords  \n and 数字 12 .@"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    assert tokenizer.get_vocab_size() == 300


def test_an_unknown_word_is_one_token_with_its_space_and_is_not_scored() -> None:
    tokenizer = train_tokenizer([TEXT], 300)
    ids = token_stream(tokenizer, ["the <unk> sea"])
    before, after = (tokenizer.encode(text, add_special_tokens=False).ids for text in ("the", " sea"))
    assert ids.tolist() == [*before, UNKNOWN_ID, *after, EOS_ID]
    assert (labels_of(ids[None]) == UNSCORED).sum() == 1


def test_a_text_too_small_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="--vocab 4000: this text gives"):
        train_tokenizer([TEXT], 4000)


def test_windows_are_bos_and_the_text_in_order() -> None:
    assert windows_of(torch.arange(10, 21), 4, offset=1).tolist() == [
        [BOS_ID, 11, 12, 13],
        [BOS_ID, 14, 15, 16],
        [BOS_ID, 17, 18, 19],
    ]


def test_an_epoch_has_every_window_once_and_the_next_one_other_cuts() -> None:
    stream = torch.arange(100, 1100)
    batches = Batches(stream, length=11, batch=3, seed=5)
    epochs = [torch.cat([batches.at(epoch * batches.steps + i) for i in range(batches.steps)]) for epoch in range(2)]
    for rows in epochs:
        assert rows.shape == (99, 11)
        assert len(set(rows[:, 1:].flatten().tolist())) == 990
    assert not set(epochs[0][:, 1].tolist()) & set(epochs[1][:, 1].tolist())


def test_a_batch_follows_from_seed_and_step() -> None:
    stream = torch.arange(1000)
    one, same, other = (Batches(stream, 11, 3, seed) for seed in (5, 5, 6))
    assert torch.equal(one.at(40), same.at(40))
    assert not torch.equal(one.at(40), other.at(40))


def test_a_text_that_fills_no_batch_is_refused() -> None:
    with pytest.raises(UsageError, match="does not fill one batch"):
        Batches(torch.arange(30), length=11, batch=3, seed=0)

"""The small model's tokenizer (byte-level BPE), and its windows of token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from benchmarks.small_model.corpus import UNKNOWN
from mobileicsa.core.errors import UsageError

BOS, EOS = "<s>", "</s>"
# In this order their ids are 0, 1, 2.
SPECIAL = (BOS, EOS, UNKNOWN)
BOS_ID, EOS_ID, UNKNOWN_ID = range(len(SPECIAL))
# What the model's loss leaves out (transformers' own number).
UNSCORED = -100


def train_tokenizer(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` ids. Raises UsageError where the documents do not hold so many tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # The space before it belongs to it: alone it would be a token that no other text has.
    special = [AddedToken(token, special=True, normalized=False, lstrip=token == UNKNOWN) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.replace(f" {UNKNOWN}", "") for document in documents), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise UsageError(
            f"--vocab {vocab_size}: this text gives {tokenizer.get_vocab_size()} tokens",
            hint="give that number, or more text",
        )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: Sequence[str]) -> Tensor:
    """Ids (N) int64 of all documents, EOS behind each."""
    encoded = tokenizer.encode_batch(list(documents), add_special_tokens=False)
    return torch.tensor([token for one in encoded for token in (*one.ids, EOS_ID)], dtype=torch.int64)


def windows_of(stream: Tensor, length: int, offset: int = 0) -> Tensor:
    """BOS and the next length - 1 ids, in rows (N, length), from `offset` on; what is left at the end is not used."""
    body = length - 1
    count = (len(stream) - offset) // body
    rows = stream[offset : offset + count * body].view(count, body)
    return torch.cat((torch.full((count, 1), BOS_ID), rows), dim=1)


def labels_of(windows: Tensor) -> Tensor:
    """The windows as targets: a rare word that the text does not tell is not scored."""
    return windows.masked_fill(windows == UNKNOWN_ID, UNSCORED)


class Batches:
    """Windows in random order, all of them once an epoch; every epoch cuts the text at other places.

    A batch follows from seed and step alone, so that a run that was interrupted goes on with the same ones.
    """

    def __init__(self, stream: Tensor, length: int, batch: int, seed: int) -> None:
        self._stream, self._length, self._batch, self._seed = stream, length, batch, seed
        # An epoch may begin up to length - 2 ids into the text.
        self.steps = (len(stream) - (length - 2)) // (length - 1) // batch
        if self.steps < 1:
            raise UsageError(f"a text of {len(stream)} tokens does not fill one batch", hint="give more text")

    def at(self, step: int) -> Tensor:
        """Token ids (batch, length) int64 of step 0, 1, ..."""
        epoch, place = divmod(step, self.steps)
        random = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        offset = int(torch.randint(0, self._length - 1, (), generator=random))
        windows = windows_of(self._stream, self._length, offset)
        order = torch.randperm(len(windows), generator=random)
        return windows[order[place * self._batch : (place + 1) * self._batch]]

"""Which tokens begin and end a text, from generation_config.json, else config.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mobileicsa.models.config_reader import MAX_VOCAB, ConfigReader

logger = logging.getLogger(__name__)


def special_tokens(
    generation: Mapping[str, Any], config: Mapping[str, Any], vocab_size: int, where: str
) -> tuple[int | None, tuple[int, ...]]:
    """BOS and every EOS id; an id outside the vocabulary can never occur and is left out with a warning."""
    sources = (ConfigReader(generation, where, "generation "), ConfigReader(config, where))
    text = sources[1].section("text_config")
    readers = sources if text is None else (*sources, text)
    bos = _first(readers, "bos_token_id", vocab_size)
    return (bos[0] if bos else None), _first(readers, "eos_token_id", vocab_size)


def _first(readers: tuple[ConfigReader, ...], field: str, vocab_size: int) -> tuple[int, ...]:
    for reader in readers:
        value = reader.value(field)
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= MAX_VOCAB for i in ids):
            raise reader.error(field, "a token id or a list of token ids")
        known = tuple(dict.fromkeys(i for i in ids if i < vocab_size))
        if len(known) < len(set(ids)):
            logger.warning("%s: %s %s is outside the vocabulary of %d", reader.where, field, ids, vocab_size)
        return known
    return ()

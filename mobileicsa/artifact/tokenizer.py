"""The tokenizer of an artifact or checkpoint folder: `tokenizer.json` alone decides, no code of the model's runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as _Tokenizer

from mobileicsa.artifact import layout
from mobileicsa.core.errors import InputError
from mobileicsa.core.spec import ModelSpec
from mobileicsa.io.json_file import read_json


class Tokenizer:
    """Text to ids and back, without special tokens unless the text spells them out."""

    def __init__(self, folder: Path) -> None:
        path = folder / layout.TOKENIZER
        if not path.is_file():
            raise InputError(f"{path}: no such file", hint="the model folder needs its tokenizer.json")
        try:
            self._tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every kind of damage
            raise InputError(f"{path}: not a tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._template = _chat_template(folder)
        self._config = _optional_json(folder / "tokenizer_config.json")

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token(self, index: int) -> str:
        """How one id reads, special tokens included."""
        return str(self._tokenizer.decode([index], skip_special_tokens=False))

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """The model's own chat form of messages ({"role", "content"}), ready for its answer."""
        if self._template is None:
            raise InputError("this model has no chat template", hint="use plain completion: run without --chat")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        special = {k: _content(v) for k, v in self._config.items() if k.endswith("_token")}
        try:
            template = environment.from_string(self._template)
            return template.render(messages=list(messages), add_generation_prompt=True, **special)
        except TemplateError as error:
            raise InputError(f"chat template: {error}") from error


def open_tokenizer(folder: Path, spec: ModelSpec, where: str) -> Tokenizer:
    """The folder's tokenizer; InputError naming `where` if it has tokens that the model's embedding has not."""
    tokenizer = Tokenizer(folder)
    if tokenizer.vocab_size > spec.vocab_size:
        raise InputError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, the embedding {spec.vocab_size} rows",
            hint="the tokenizer belongs to another model",
        )
    return tokenizer


def _content(value: Any) -> str:
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _chat_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = _optional_json(folder / "tokenizer_config.json").get("chat_template")
    return template if isinstance(template, str) else None

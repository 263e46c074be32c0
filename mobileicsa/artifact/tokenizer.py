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
        """The smallest embedding that holds every id: ids may have gaps, so that their number says too little."""
        return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)

    def check_special(self, spec: ModelSpec, where: str) -> list[str]:
        """InputError where a special token of the model is another one here; what is merely odd is returned."""
        notes = []
        for kind, ids in (("bos", () if spec.bos_id is None else (spec.bos_id,)), ("eos", spec.eos_ids)):
            absent = [i for i in ids if self._tokenizer.id_to_token(i) is None]
            if ids and len(absent) == len(ids):
                raise InputError(
                    f"{where}: {kind}_token_id is {absent[0]}, which the tokenizer does not have",
                    hint="the tokenizer belongs to another model, or the config's special tokens are wrong",
                )
            named = _content(self._config.get(f"{kind}_token"))
            found = self._tokenizer.token_to_id(named) if named else None
            if not ids or found is None or found in ids:
                continue
            message = (
                f"{where}: {kind}_token {named!r} of the tokenizer is id {found}, {kind}_token_id of the model {ids[0]}"
            )
            if kind == "bos":
                raise InputError(message, hint="the tokenizer belongs to another model, or one of the two is wrong")
            # Fine-tuned models often end their turns with another token than their config says.
            notes.append(message)
        return notes

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
    highest = tokenizer.vocab_size - 1
    if highest >= spec.vocab_size:
        raise InputError(
            f"{where}: the tokenizer's token {tokenizer.token(highest)!r} is id {highest}, "
            f"the embedding has {spec.vocab_size} rows",
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

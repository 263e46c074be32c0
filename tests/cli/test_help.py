"""--help: examples for every verb that really parse, short summaries, and nothing heavy imported for it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import Any

import pytest
import typer
from commands import Command

from mobileicsa.cli.main import METHOD_LIST, METHOD_VERBS, RECIPE_VERBS, VERBS, Verb, build_app

ALL = [([verb.name], verb) for verb in (*VERBS, METHOD_LIST)] + [
    ([group, verb.name], verb)
    for group, verbs in (("recipes", RECIPE_VERBS), ("methods", METHOD_VERBS))
    for verb in verbs
]
NAMES = [" ".join(name) for name, _ in ALL]
HEAVY = ("torch", "transformers", "numpy", "onnx", "onnxruntime", "executorch", "matplotlib", "rich")


@pytest.mark.parametrize(("name", "verb"), ALL, ids=NAMES)
def test_help_shows_the_examples_line_by_line(command: Command, name: list[str], verb: Verb) -> None:
    result = command(*name, "--help")
    assert (result.code, result.err) == (0, "")
    assert verb.examples.strip()
    assert "Examples:" in result.out
    for example in verb.examples.strip().splitlines():
        assert f"  {example.strip()}\n" in result.out
        assert len(example) <= 78


@pytest.mark.parametrize(("name", "verb"), ALL, ids=NAMES)
def test_every_example_is_a_command_that_parses(name: list[str], verb: Verb) -> None:
    for example in verb.examples.strip().splitlines():
        program, *words = (word for word in shlex.split(example) if word != "--json")
        assert program == "mobileicsa"
        command: Any = typer.main.get_command(build_app())
        while words and hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        context = command.make_context(command.name, words)
        assert context.params


def test_no_summary_in_the_list_of_commands_is_cut_off(command: Command) -> None:
    for group in ([], ["recipes"], ["methods"]):
        assert "..." not in command(*group, "--help").out.partition("Commands:")[2]


def test_debug_and_version_are_listed(command: Command) -> None:
    shown = command("--help").out
    assert "--debug" in shown
    assert "--version" in shown


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import json, sys
from mobileicsa.cli.main import execute
codes = [execute([*name.split(), "--help"]) for name in {["", *NAMES]!r}]
sys.stderr.write(json.dumps([codes, sorted(set(sys.modules) & set({HEAVY!r}))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    codes, heavy = json.loads(done.stderr)
    assert set(codes) == {0}
    assert heavy == []

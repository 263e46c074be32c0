"""Torture list, cases 42 and 50: odd locales and terminals, and a reader that goes away."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command

MOBILEICSA = [sys.executable, "-c", "from mobileicsa.cli.main import main; main()"]
ESCAPE = "\x1b"


def mobileicsa(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run([*MOBILEICSA, *arguments], env={**clean, **environment}, capture_output=True, timeout=120)


def on_terminal(width: int, *arguments: str, **environment: str) -> str:
    """What the command writes to a terminal of that width."""
    parent, child = pty.openpty()
    given = {"TERM": "xterm-256color", "COLUMNS": str(width), **environment}
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    process = subprocess.Popen(
        [*MOBILEICSA, *arguments], env={**clean, **given}, stdout=child, stderr=child, stdin=child
    )
    os.close(child)
    shown = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(parent)
    assert process.wait() == 0
    return shown.decode().replace("\r\n", "\n")


NARROW_ENCODINGS = [
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"},
]


@pytest.mark.parametrize("environment", NARROW_ENCODINGS, ids=["ascii", "latin-1"])
def test_fault_50_json_survives_a_locale_that_lacks_its_characters(tmp_path: Path, environment: dict[str, str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: größe 🦙\ndescription: für Ñandú\n", encoding="utf-8")
    done = mobileicsa("recipes", "show", str(recipe), "--json", **environment)
    assert done.returncode == 0
    assert json.loads(done.stdout)["name"] == "größe 🦙"
    assert done.stdout.isascii()


@pytest.mark.parametrize("environment", NARROW_ENCODINGS, ids=["ascii", "latin-1"])
def test_fault_50_text_in_a_locale_that_lacks_characters_is_shown_with_marks(environment: dict[str, str]) -> None:
    done = mobileicsa("schemes", **environment)
    assert done.returncode == 0
    assert done.stderr == b""
    assert b"w4a16" in done.stdout
    assert mobileicsa("verify", "größe", **environment).returncode == 3


def test_fault_50_utf_8_stays_readable_in_json(command: Command, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: größe 🦙\n", encoding="utf-8")
    assert '"größe 🦙"' in command("recipes", "show", recipe, "--json").out


def german(folder: Path) -> dict[str, str]:
    """An environment in which numbers have a decimal comma; its locale is compiled into `folder`."""
    compiler = shutil.which("localedef")
    made = compiler and subprocess.run(
        [compiler, "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")], capture_output=True
    )
    if not made or made.returncode:
        pytest.skip("localedef or the source of a locale with a decimal comma is not installed")
    return {**os.environ, "LOCPATH": str(folder), "LC_ALL": "de_DE.UTF-8"}


def test_fault_50_a_decimal_comma_changes_no_number(
    command: Command, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    environment = german(tmp_path)
    given = ["eval", "--model", checkpoint, "--text", text, "--window", 16, "--max-windows", 1]
    # A library may switch the whole process to the user's locale.
    code = (
        "import locale; locale.setlocale(locale.LC_ALL, ''); assert locale.localeconv()['decimal_point'] == ',';"
        "from mobileicsa.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, given)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, command(*given).out)


def test_fault_50_a_dumb_terminal_gets_no_escapes() -> None:
    assert ESCAPE not in on_terminal(80, "schemes", TERM="dumb")
    assert ESCAPE not in on_terminal(80, "recipes", "ls", TERM="dumb")


def test_fault_50_no_color_gets_no_colors() -> None:
    for shown in (on_terminal(80, "doctor", NO_COLOR="1"), on_terminal(80, "schemes", NO_COLOR="1")):
        assert not re.search(r"\x1b\[(?:\d+;)*[34]\d", shown)


@pytest.mark.parametrize("width", [30, 80, 200])
def test_fault_50_tables_and_facts_fit_the_terminal(width: int) -> None:
    for arguments in (["schemes"], ["doctor"], ["recipes", "ls"]):
        for line in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", on_terminal(width, *arguments)).splitlines():
            assert len(line.rstrip()) <= width


def test_fault_50_a_pipe_gets_neither_escapes_nor_bars(command: Command, artifact: Path) -> None:
    result = command("verify", artifact, "--backend", "simulator", "--no-greedy", "--no-save")
    assert ESCAPE not in result.out + result.err
    assert re.fullmatch(r"\[ *\d+\.\d s\] verify simulator\n", result.err)


@pytest.mark.parametrize("arguments", [["schemes"], ["schemes", "--json"], ["recipes", "show", "prefix"], ["--help"]])
def test_fault_42_a_reader_that_goes_away_ends_the_command_quietly(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*MOBILEICSA, *arguments], stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 141


def test_fault_39_standard_output_on_a_full_disk_is_an_environment_fault() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    for arguments in (["schemes"], ["schemes", "--json"]):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run([*MOBILEICSA, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert done.returncode == 4
        assert b"Traceback" not in done.stderr
        assert b"No space left" in done.stderr


def test_a_closed_standard_output_is_survived(tmp_path: Path) -> None:
    shell = f"{shlex.join(MOBILEICSA)} recipes cp prefix r.yaml >&-"
    done = subprocess.run(["sh", "-c", shell], cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "r.yaml").read_text().startswith("name: prefix")

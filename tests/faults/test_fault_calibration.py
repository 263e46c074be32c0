"""Torture list, cases 31 to 33 and 36 to 38: texts that are empty, short, broken, huge, leaked or private."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_artifact import TEXT
from tiny_command import Tiny

import mobileicsa
from mobileicsa.calibrate.overlap import SKETCH_SIZE, line_sketch, overlap_warning
from mobileicsa.calibrate.text import read_text
from mobileicsa.core.errors import InputError
from mobileicsa.io.hashing import sha256_bytes


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
@pytest.mark.parametrize("content", ["", "\n \n\t\r\n", "\ufeff\n"])
def test_fault_31_a_text_without_words_is_refused_before_any_work(tiny: Tiny, name: str, content: str) -> None:
    tiny.text = tiny.folder / name
    tiny.text.write_text(content)
    ran = tiny.quantize("--dry-run")
    assert ran.code == 3
    assert ran.message == f"{tiny.text}: holds no text"
    assert not tiny.output.exists()


def test_fault_31_json_lines_whose_texts_are_empty_are_refused(tiny: Tiny) -> None:
    tiny.text = tiny.folder / "text.jsonl"
    tiny.text.write_text('{"text": ""}\n{"text": "  "}\n')
    assert "holds no text" in tiny.quantize().message


@pytest.mark.parametrize("recipe", ["minmax", "prefix"])
def test_fault_32_one_token_works_and_its_ranges_are_flagged(tiny: Tiny, recipe: str) -> None:
    tiny.text.write_text("a")
    ran = tiny.quantize(recipe=recipe)
    assert ran.code == 0
    assert ran.document["calibration"]["tokens"] == 1
    for place in (ran.notes, ran.document["calibration"]["note"], (tiny.output / "report.html").read_text()):
        assert "n = 1: ranges are unreliable" in place
    assert tiny.perplexity().code == 0


def test_fault_32_one_sample_of_self_written_text_is_flagged_too(tiny: Tiny) -> None:
    ran = tiny.quantize("calibration.samples=1", calibration=False)
    assert ran.code == 0
    assert ran.document["calibration"]["source"] == "self-generated"
    assert ran.document["calibration"]["note"] == "n = 1: ranges are unreliable"
    assert "n = 1: ranges are unreliable" in ran.notes


def test_fault_33_fewer_samples_than_asked_for_are_counted(tiny: Tiny) -> None:
    tiny.text.write_text("x" * 100)
    ran = tiny.quantize("calibration.samples=50")
    assert ran.code == 0
    assert ran.document["calibration"]["windows"] == 3
    assert "3 of 50 windows asked for" in ran.notes
    assert ran.document["calibration"]["note"] == "3 of 50 windows asked for"


def test_fault_33_a_text_shorter_than_a_window_shortens_it(tiny: Tiny) -> None:
    tiny.text.write_text("x" * 20)
    ran = tiny.quantize()
    assert ran.code == 0
    assert "only 20 tokens, windows shortened to 20" in ran.notes


def test_fault_33_windows_longer_than_the_context_are_cut_and_said(tiny: Tiny) -> None:
    ran = tiny.quantize("calibration.length=5000", "calibration.samples=1")
    assert ran.code == 0
    expected = "calibration.length 5000 shortened to 96: the model's context is 96"
    assert expected in ran.notes
    assert ran.document["notes"] == [expected]
    assert ran.document["calibration"]["length"] == 96


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"fine\nnot \xff fine\n", "line 2: not UTF-8 (byte 9)"),
        (b"\xef\xbb\xbffine\n\nbroken \xe2\x82", "line 3: not UTF-8 (byte 16)"),
        (b"one\r\ntwo\r\nthr\0ee", "line 3: holds a NUL byte"),
        ("\ud800".encode("utf-8", "surrogatepass"), "line 1: not UTF-8 (byte 0)"),
        ("wide".encode("utf-16"), "line 1: not UTF-8 (byte 0)"),
    ],
)
def test_fault_36_bytes_that_are_no_text_are_refused_by_line(tiny: Tiny, content: bytes, expected: str) -> None:
    tiny.text.write_bytes(content)
    ran = tiny.quantize("--dry-run")
    assert ran.code == 3
    assert ran.message == f"{tiny.text}: {expected}"
    evaluated = tiny.run("eval", "--model", str(tiny.checkpoint), "--text", str(tiny.text))
    assert (evaluated.code, evaluated.message) == (3, ran.message)


def test_fault_36_windows_line_ends_are_the_same_text(tiny: Tiny) -> None:
    lines = b"The first line.\nAnd the second one, a little longer.\n" * 20
    tiny.text.write_bytes(lines)
    plain = tiny.quantize()
    tiny.text.write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
    other = tiny.quantize("--overwrite")
    assert (plain.code, other.code) == (0, 0)
    assert plain.document["calibration"] == other.document["calibration"]


PEAK = """
import resource, sys
from pathlib import Path
from mobileicsa.artifact.tokenizer import Tokenizer
from mobileicsa.calibrate.overlap import line_sketch
from mobileicsa.calibrate.text import make_windows, read_text
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
text = read_text(Path(sys.argv[1]))
made = make_windows(text, Tokenizer(Path(sys.argv[2])).encode, 259, 32, 256, "text")
line_sketch(text)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, *made.windows.shape)
"""


def test_fault_36_a_line_of_a_hundred_megabytes_takes_bounded_memory(tiny: Tiny) -> None:
    with tiny.text.open("wb") as file:
        for _ in range(100):
            file.write(("é " * (1 << 20))[: (1 << 20) // 3 * 2].encode())
    assert tiny.text.stat().st_size > 100_000_000
    arguments = [sys.executable, "-c", PEAK, str(tiny.text), str(tiny.checkpoint)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    tiny.text.unlink()  # pytest keeps folders
    kibibytes, windows, length = map(int, run.stdout.split())
    assert (windows, length) == (32, 255)
    # 64 MiB of it are read: bytes, characters (2 bytes each here) and a copy or two.
    assert kibibytes < 600 << 10
    assert "only its first 64 MiB are used" in run.stderr


def test_fault_36_a_huge_evaluation_text_is_tokenised_in_part(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobileicsa.evaluate.perplexity.MAX_CHARACTERS", 1000)
    assert tiny.quantize().code == 0
    text = "abcdefghi\n" * 1000
    ran, short = tiny.perplexity(text=text), tiny.perplexity(text=text[:1000])
    assert ran.document["tokens"] == 1000
    assert ran.document["perplexity"] == short.document["perplexity"]
    assert ran.document["note"] == "only the first 1000 of 10000 characters are used"
    assert "note" not in short.document


LINES = [f"Line number {i} of a text that somebody wrote for this test alone." for i in range(2000)]


def facts(lines: list[str]) -> dict[str, object]:
    text = "\n".join(lines)
    return {"source": "file", "sha256": sha256_bytes(text.encode()), "line_hashes": line_sketch(text)}


def test_fault_37_evaluating_on_the_calibration_text_warns_in_result_and_report(tiny: Tiny) -> None:
    assert tiny.quantize().code == 0
    ran = tiny.perplexity(text=TEXT)
    assert ran.code == 0
    warning = ran.document["warning"]
    assert "this text is the calibration text" in warning
    assert tiny.artifact("report.json")["evaluation"]["warning"] == warning
    assert f'<p class="no">{warning}</p>' in (tiny.output / "report.html").read_text()
    assert warning in (tiny.output / "README.md").read_text()


def test_fault_37_another_text_takes_the_warning_away_again(tiny: Tiny) -> None:
    assert tiny.quantize().code == 0
    tiny.perplexity(text=TEXT)
    ran = tiny.perplexity(text="Something else altogether, of which the model has not seen a single line before.\n")
    assert "warning" not in ran.document
    assert tiny.artifact("report.json")["evaluation"]["warning"] is None
    assert 'class="no"' not in (tiny.output / "report.html").read_text()


@pytest.mark.parametrize(
    ("calibration", "evaluation"),
    [
        (LINES[:1000], [*LINES[:1000], "one more line that is new in the evaluation text"]),
        (LINES[:1000], LINES),
        (LINES, LINES[400:1400]),
        (LINES[:1000], LINES[900:1900]),
        (LINES[:50], LINES[::2]),
        (LINES[:1000], [f"  {line}\r" for line in LINES[:1000]]),
    ],
    ids=["one more", "inside", "outside", "a tenth", "small", "spaces"],
)
def test_fault_37_shared_lines_are_told_from_hashes(calibration: list[str], evaluation: list[str]) -> None:
    known = facts(calibration)
    assert len(line_sketch("\n".join(calibration))) <= SKETCH_SIZE
    warning = overlap_warning(known, "\n".join(evaluation))
    assert warning is not None
    assert "% of the lines" in warning


def test_fault_37_texts_without_a_common_line_and_common_headings_are_no_leak() -> None:
    assert overlap_warning(facts(LINES[:1000]), "\n".join(LINES[1000:])) is None
    headings = [f"= Chapter {i} =" for i in range(100)]
    assert overlap_warning(facts(headings + LINES[:10]), "\n".join(headings + LINES[10:20])) is None
    assert overlap_warning({"source": "self-generated", "sha256": "0" * 64}, "\n".join(LINES)) is None


def test_fault_37_the_wikitext_splits_do_not_overlap(data_dir: Path) -> None:
    valid, test = (read_text(data_dir / "wikitext2" / f"wiki.{part}.tokens") for part in ("valid", "test"))
    known = {"sha256": sha256_bytes(valid.encode()), "line_hashes": line_sketch(valid)}
    assert len(known["line_hashes"]) == SKETCH_SIZE
    assert overlap_warning(known, test) is None
    assert overlap_warning(known, valid[: len(valid) // 3]) is not None


CANARY = "Zebulon Quagmire lives at 17 Thistledown Crescent"


def leaks(folder: Path, needles: list[str]) -> list[str]:
    """Places below a folder that hold one of the needles, in a name or in bytes, as text or as UTF-16."""
    forms = [form for needle in needles for form in (needle.encode(), needle.encode("utf-16-le"))]
    found = []
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        data = name.encode() + (path.read_bytes() if path.is_file() else b"")
        found += [f"{name}: {form!r}" for form in forms if form in data]
    return found


def test_fault_38_nothing_of_the_calibration_text_is_kept(tiny: Tiny) -> None:
    private = tiny.folder / "private"
    private.mkdir()
    tiny.text = private / "diary-of-zebulon.txt"
    tiny.text.write_text(f"{CANARY}, and nobody knows. " * 30)
    ran = tiny.quantize(recipe="prefix")
    assert ran.code == 0
    needles = [CANARY, "Zebulon", "Quagmire", "Thistledown", "zebulon", str(tiny.folder)]
    assert leaks(tiny.output, needles) == []
    assert CANARY not in json.dumps(ran.document)
    assert tiny.left_behind() == ["out", "private"]
    tiny.perplexity(text="An evaluation adds to the report. " * 9)
    assert leaks(tiny.output, needles) == []


def test_fault_38_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"\0\1" + CANARY.encode("utf-16-le"))
    (tmp_path / "Zebulon").mkdir()
    assert len(leaks(tmp_path, [CANARY, "Zebulon"])) == 3


def test_fault_38_an_interrupted_run_keeps_no_text_either(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.text.write_text(f"{CANARY}, and nobody knows. " * 30)

    def broken(*arguments: object) -> None:
        raise InputError("planned")

    monkeypatch.setattr("mobileicsa.artifact.build.record", broken)
    assert tiny.quantize(recipe="prefix").code == 3
    (work,) = tiny.left_behind()
    assert ".partial-" in work
    assert leaks(tiny.folder / work, [CANARY, "Zebulon", "Thistledown"]) == []


def test_fault_38_exported_files_hold_no_calibration_text_and_no_path(artifact: Path) -> None:
    """The whole artifact with .onnx and .pte; `TEXT` calibrated it."""
    exported = {path.suffix for path in artifact.rglob("*")}
    assert {".onnx", ".data", ".pte", ".safetensors"} <= exported
    phrases = ["quick brown fox", "lazy dog", "does not mind at all", "calibration.txt"]
    assert all(phrase in TEXT for phrase in phrases[:3])
    places = [str(artifact.parent), "site-packages", "/home/", str(Path(mobileicsa.__file__).parents[1])]
    assert leaks(artifact, phrases + places) == []


def test_the_model_writes_its_share_and_what_a_short_text_lacks(tiny: Tiny) -> None:
    tiny.text.write_text("The quick brown fox jumps over the lazy dog. " * 8)
    ran = tiny.quantize("calibration.samples=40", "calibration.length=24", "calibration.written=0.25")
    assert ran.code == 0
    facts = ran.document["calibration"]
    assert (facts["source"], facts["windows"]) == ("file", 40)
    assert 10 < facts["self_generated_windows"] < 40, "the text has windows for less than its share"
    assert "of 30 windows asked for" in facts["note"]
    said = f"{facts['self_generated_windows']} of them written by the model itself"
    assert said in (tiny.output / "report.html").read_text()


def test_fault_32_a_text_shorter_than_a_window_is_left_out_where_the_model_writes_too(tiny: Tiny) -> None:
    tiny.text.write_text("The quick brown fox")
    ran = tiny.quantize("calibration.samples=4", "calibration.length=64", "calibration.written=0.25")
    assert ran.code == 0
    facts = ran.document["calibration"]
    assert (facts["source"], facts["windows"], facts["length"]) == ("self-generated", 4, 64)
    assert facts["note"] == f"the text has {len('The quick brown fox')} tokens, less than a window: left out"
    assert facts["note"] in ran.notes

"""The demo app and the bench agree about what they hand each other; `make check-android` compiles and tests the app."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mobileicsa.bench.phone import app, model_files
from mobileicsa.bench.phone.phone import WORK

DEMO = Path(__file__).parents[2] / "android_demo"
HEADLESS = (DEMO / "app/src/main/kotlin/org/mobileicsa/demo/HeadlessActivity.kt").read_text()


def test_the_app_reads_what_the_bench_asks() -> None:
    asked = set(re.findall(r"--e[si] (\w+)", Path(app.__file__).read_text()))
    assert asked == set(re.findall(r'get(?:String|Int)Extra\("(\w+)"', HEADLESS))
    assert app.ACTIVITY.endswith("HeadlessActivity")
    assert "bench-$run.json" in HEADLESS


def test_the_bench_reads_what_the_app_writes() -> None:
    written = set(
        re.findall(r'"(\w+)" to', (DEMO / "core/src/main/kotlin/org/mobileicsa/core/Benchmark.kt").read_text())
    )
    read = set(re.findall(r'data(?:\.get\(|\[)"(\w+)"', Path(app.__file__).read_text()))
    assert read <= written
    assert set(app.WINDOWS) <= written


def test_the_app_finds_every_fact_of_the_model() -> None:
    source = (DEMO / "core/src/main/kotlin/org/mobileicsa/core/ModelFacts.kt").read_text()
    needed = set(re.findall(r'json\.(?:text|int|list|child)\("(\w+)"\)', source))
    given = set(re.findall(r'^        "(\w+)":', Path(model_files.__file__).read_text(), re.MULTILINE))
    assert needed <= given
    assert f'File("{WORK}")' in (DEMO / "app/src/main/kotlin/org/mobileicsa/demo/Models.kt").read_text()


def test_the_apps_names_are_those_of_its_flavours() -> None:
    gradle = (DEMO / "app/build.gradle.kts").read_text()
    base = re.search(r'applicationId = "(.+)"', gradle)
    suffixes = re.findall(r'applicationIdSuffix = "(.+)"', gradle)
    assert base
    assert {base[1] + suffix for suffix in suffixes} == set(app.PACKAGES.values())


@pytest.mark.slow
def test_what_can_be_compiled_and_tested_is(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO / "check/check.py"), "--work", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "xml: passed" in done.stdout

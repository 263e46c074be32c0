"""`make check-android`: what can be verified of the demo without Android's SDK. Steps without their tools are skipped.

    python check.py --work DIR

Standard library only. Kotlin's compiler comes from the PyPI package kotlin-jupyter-kernel (folder with its .jar files in
KOTLIN_JARS, or installed beside this interpreter); the rest from Debian: openjdk-17-jdk-headless, junit4, aapt,
android-framework-res, zipalign, apksigner.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

DEMO = Path(__file__).resolve().parents[1]
STUBS = DEMO / "check" / "stubs"
MAIN = DEMO / "app" / "src" / "main"
FLAVOURS = ("executorch", "onnxruntime")
ANDROID = "{http://schemas.android.com/apk/res/android}"
FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
JUNIT = [Path("/usr/share/java") / name for name in ("junit4.jar", "hamcrest.jar")]
TEXTS = (
    "The capital of France is",
    "Hello,  world!\n\n\tdef f(x):\n    return x**2  # 1234567",
    "naïve café — “quotes” … 東京 Привет 😀👩‍👩‍👧",
    "it's we'll I'D don't",
    "  leading and trailing  ",
    "a\r\nb\u00a0c\u2003d",
    "x²+½=٣ e\u0301 \u200b 3.14159 1,000,000",
    "<|im_start|>user\nhi<|im_end|>\n",
)
NAMES = ("text", "hint", "label", "contentDescription")


class Skip(Exception):
    """The tools of a step are not here."""


class Failed(Exception):
    """A step found something wrong."""


def run(*command: object, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Failed(f"{Path(str(command[0])).name}:\n{(done.stdout + done.stderr).strip()[-4000:]}")
    return done.stdout


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Skip(f"{name} is not installed")
    return found


def jars() -> Path:
    given = os.environ.get("KOTLIN_JARS")
    if given:
        return Path(given)
    spec = importlib.util.find_spec("run_kotlin_kernel")
    if spec is None or spec.origin is None:
        raise Skip("no Kotlin compiler: pip install --no-deps kotlin-jupyter-kernel, or set KOTLIN_JARS")
    return Path(spec.origin).parent / "jars"


def one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise Skip(f"{folder} has no {pattern}")
    return found[0]


def kotlinc(sources: list[Path], classpath: list[Path], output: Path, *friends: str) -> None:
    library = jars()
    stdlib = one(library, "kotlin-stdlib-*.jar")
    run(
        tool("java"), "-Xmx1g", "-cp", f"{library}/*", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib", "-no-reflect",
        "-jvm-target", "17", "-Werror", "-cp", os.pathsep.join(map(str, [stdlib, *classpath])), "-d", output, *friends, *sources,
    )  # fmt: skip


def versions(work: Path) -> str:
    """Results name the runtimes' versions: those of the catalogue."""
    catalogue = (DEMO / "gradle" / "libs.versions.toml").read_text()
    named = (MAIN / "kotlin/org/mobileicsa/demo/BuildVersions.kt").read_text()
    for flavour in FLAVOURS:
        wanted = re.search(rf'^{flavour} = "(.+)"', catalogue, re.MULTILINE)
        found = re.search(rf'{flavour.upper()} = "(.+)"', named)
        if not wanted or not found or wanted[1] != found[1]:
            raise Failed(f"BuildVersions.kt and libs.versions.toml disagree about {flavour}")
    return "runtimes' versions agree"


def lint_xml(work: Path) -> str:
    """Well-formed; every text a string resource that exists and is used; every id that code looks up is in a layout."""
    files = sorted(MAIN.rglob("*.xml"))
    trees = {path: ElementTree.parse(path).getroot() for path in files}
    strings = {node.get("name") for path, root in trees.items() if path.parent.name == "values" for node in root.iter("string")}
    used, ids = set(), set()
    for path, root in trees.items():
        for node in root.iter():
            for name in NAMES:
                value = node.get(ANDROID + name)
                if value and not value.startswith("@"):
                    raise Failed(f"{path.name}: {name} is written out: {value}")
                if value and value.startswith("@string/"):
                    used.add(value.removeprefix("@string/"))
            ids.add((node.get(ANDROID + "id") or "").removeprefix("@+id/"))
    code = "\n".join(path.read_text() for path in (DEMO / "app/src").rglob("*.kt"))
    used |= set(re.findall(r"R\.string\.(\w+)", code))
    # app_name is written by each flavour.
    if used - {"app_name"} != strings:
        raise Failed(f"strings missing: {sorted(used - strings - {'app_name'})}, unused: {sorted(strings - used)}")
    lost = set(re.findall(r"(?<!android\.)\bR\.id\.(\w+)", code)) - ids
    if lost:
        raise Failed(f"ids without a view: {sorted(lost)}")
    classes = {node.get(ANDROID + "name") for node in trees[MAIN / "AndroidManifest.xml"].iter("activity")}
    for name in classes:
        if not (MAIN / "kotlin" / f"{str(name).replace('.', '/')}.kt").is_file():
            raise Failed(f"the manifest names {name}, which is not written")
    return f"{len(files)} files, {len(strings)} strings, {len(classes)} activities"


def aapt(work: Path, *options: object) -> str:
    if not FRAMEWORK.is_file():
        raise Skip("android-framework-res is not installed")
    # Gradle adds the package, the SDK versions and the flavour's app_name.
    values = work / "res" / "values"
    values.mkdir(parents=True, exist_ok=True)
    (values / "flavour.xml").write_text('<resources><string name="app_name">mobileicsa</string></resources>')
    manifest = work / "AndroidManifest.xml"
    text = (MAIN / "AndroidManifest.xml").read_text()
    manifest.write_text(text.replace("<manifest ", '<manifest package="org.mobileicsa.demo" ', 1))
    return run(
        tool("aapt"), "package", "-f", "-M", manifest, "-S", MAIN / "res", "-S", work / "res", "-I", FRAMEWORK,
        "--auto-add-overlay", "--min-sdk-version", 26, "--target-sdk-version", 29, *options,
    )  # fmt: skip


def package(work: Path) -> str:
    """Resources and manifest compiled, aligned, signed, verified. No code is inside: nothing here makes dex files."""
    plain, aligned, signed, key = (work / name for name in ("plain.apk", "aligned.apk", "signed.apk", "key.jks"))
    aapt(work, "-F", plain)
    run(tool("zipalign"), "-f", 4, plain, aligned)
    key.unlink(missing_ok=True)
    run(
        tool("keytool"), "-genkeypair", "-keystore", key, "-storepass", "checking", "-keypass", "checking", "-alias", "a",
        "-keyalg", "RSA", "-dname", "CN=check",
    )  # fmt: skip
    run(tool("apksigner"), "sign", "--ks", key, "--ks-pass", "pass:checking", "--min-sdk-version", 26, "--out", signed, aligned)
    run(tool("apksigner"), "verify", "--min-sdk-version", 26, signed)
    badging = run(tool("aapt"), "dump", "badging", signed)
    if "launchable-activity: name='org.mobileicsa.demo.ChatActivity'" not in badging:
        raise Failed("the chat screen is not launchable")
    return f"{signed.stat().st_size:,} bytes, signature verified, launchable"


def core(work: Path) -> str:
    kotlinc(sorted((DEMO / "core/src/main").rglob("*.kt")), [], work / "core")
    return "compiled"


def tests(work: Path) -> str:
    missing = [path.name for path in JUNIT if not path.is_file()]
    if missing:
        raise Skip(f"{', '.join(missing)} not installed (Debian: junit4)")
    sources = sorted((DEMO / "core/src/test").rglob("*.kt"))
    kotlinc(sources, [work / "core", *JUNIT], work / "tests", f"-Xfriend-paths={work / 'core'}")
    classes = [f"org.mobileicsa.core.{path.stem}" for path in sources if path.stem.endswith("Test")]
    path = os.pathsep.join(map(str, [one(jars(), "kotlin-stdlib-*.jar"), work / "core", work / "tests", *JUNIT]))
    told = run(tool("java"), "-cp", path, "org.junit.runner.JUnitCore", *classes, environment=reference(work))
    compared = (work / "tokenized.jsonl").is_file()
    return re.findall(r"^OK .*", told, re.MULTILINE)[0] + (", a real tokenizer among them" if compared else "")


def reference(work: Path) -> dict[str, str]:
    """With MOBILEICSA_TOKENIZER (a tokenizer.json) and the package tokenizers: what its ids must be."""
    source = os.environ.get("MOBILEICSA_TOKENIZER")
    (work / "tokenized.jsonl").unlink(missing_ok=True)
    if not source or importlib.util.find_spec("tokenizers") is None:
        return {**os.environ}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(source)
    rows = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append(json.dumps({"text": text, "ids": ids, "decoded": tokenizer.decode(ids)}))
    (work / "tokenized.jsonl").write_text("\n".join(rows))
    return {**os.environ, "MOBILEICSA_TOKENIZED": str(work / "tokenized.jsonl")}


def app(work: Path) -> str:
    """Both flavours against stubs of the APIs they call, with R made by aapt where it is installed."""
    stubs, made = work / "stubs", work / "R"
    made.mkdir(exist_ok=True)
    aapt(work, "-m", "-J", made)
    run(tool("javac"), "-nowarn", "-d", stubs, *sorted(STUBS.rglob("*.java")), *sorted(made.rglob("*.java")))
    for flavour in FLAVOURS:
        sources = [path for part in ("main", flavour) for path in sorted((DEMO / "app/src" / part).rglob("*.kt"))]
        kotlinc(sources, [work / "core", stubs], work / f"app-{flavour}")
    return f"{' and '.join(FLAVOURS)} compiled against stubs"


STEPS: dict[str, Callable[[Path], str]] = {
    "versions": versions,
    "xml": lint_xml,
    "package": package,
    "core": core,
    "core tests": tests,
    "app": app,
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--work", type=Path, required=True, help="folder for what is built")
    work = options.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for name, step in STEPS.items():
        try:
            outcome, words = "passed", step(work)
        except Skip as reason:
            outcome, words = "skipped", str(reason)
        except Failed as reason:
            outcome, words = "failed", str(reason)
        counts[outcome] += 1
        print(f"{name}: {outcome}: {words}", flush=True)
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

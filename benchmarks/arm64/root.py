"""An arm64 Python with onnxruntime and ExecuTorch in a folder, for qemu-user: nothing is installed on this system.

Debian's own arm64 packages of Python are unpacked, wheels are downloaded by pip; the apt sources are this system's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

EMULATOR = "qemu-aarch64-static"
PYTHON = "3.11"
PACKAGES = (
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    *("libc6", "libstdc++6", "libgcc-s1", "libgomp1", "zlib1g", "libexpat1", "libffi8"),
)
# onnxruntime 1.32.0 for arm64 crashes under qemu-user 7.2 when it is imported; 1.27.0 runs, and reads opset 21.
# ExecuTorch's binding needs the PyTorch of its release, and 2.10 is the last with an arm64 wheel that is not for CUDA.
WHEELS = (
    *("numpy==2.1.3", "onnxruntime==1.27.0", "executorch==1.1.0", "torch==2.10.0", "typing_extensions==4.15.0"),
    *("sympy==1.14.0", "mpmath==1.3.0", "networkx==3.6.1", "jinja2==3.1.6", "markupsafe==3.0.3"),
    *("filelock==3.20.0", "fsspec==2025.10.0"),
)
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
STAMP = ".complete"


def missing() -> str | None:
    """Why this machine cannot make or run the root, or None."""
    tools = (EMULATOR, "apt-get", "dpkg")
    absent = [tool for tool in tools if shutil.which(tool) is None]
    return f"{', '.join(absent)} not found (Debian: apt-get install qemu-user-static)" if absent else None


def make(root: Path) -> None:
    """Fill `root` unless that was done before; a half-made one, or one of other wheels, is made anew."""
    stamp = "\n".join(WHEELS)
    if (root / STAMP).is_file() and (root / STAMP).read_text() == stamp:
        return
    shutil.rmtree(root, ignore_errors=True)
    state, packages, wheels = root / "apt", root / "packages", root / "wheels"
    for folder in (state / "lists/partial", state / "cache/archives/partial", packages, wheels):
        folder.mkdir(parents=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Dir::State::Lists": str(state.resolve() / "lists"),
        "Dir::State::status": "/dev/null",
        "Dir::Cache": str(state.resolve() / "cache"),
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    _run([*apt, "update"])
    _run([*apt, "download", *PACKAGES], cwd=packages)
    for package in sorted(packages.glob("*.deb")):
        _run(["dpkg", "-x", str(package), str(root / "system")])
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    version = PYTHON.replace(".", "")
    interpreter = [f"--python-version={version}", "--implementation=cp", f"--abi=cp{version}"]
    _run([*pip, *interpreter, *platforms, "--dest", str(wheels), *WHEELS])
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / "site")
    (root / STAMP).write_text(stamp)


def command(root: Path) -> list[str]:
    """The command line of the root's Python, all instructions of the newest Arm processor that qemu knows allowed."""
    system = root / "system"
    python = str(system / f"usr/bin/python{PYTHON}")
    return [EMULATOR, "-cpu", "max", "-L", str(system), "-E", f"PYTHONPATH={root.resolve() / 'site'}", python]


def _run(line: Sequence[str], cwd: Path | None = None) -> None:
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}: exit status {done.returncode}\n{done.stderr}")

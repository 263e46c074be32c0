"""What a number was measured on: package versions, CPU, memory, platform. Reads facts, imports nothing heavy."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mobileicsa.io.cores import usable_cores

PACKAGES = ("mobileicsa", "torch", "transformers", "tokenizers", "safetensors", "onnx", "onnxruntime", "executorch")
# Flags that decide which integer kernels a runtime picks, x86 first, then Arm.
KERNEL_FLAGS = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8")
ARM_FLAGS = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme")
CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")


def environment() -> dict[str, Any]:
    """JSON values only; a package that is not installed and a fact that the system does not tell are None."""
    cpu = _cpu_info()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return {
        "versions": {name: installed_version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release().partition('-')[0]}",  # a vendor's build says nothing
        "machine": platform.machine(),
        "cpu": cpu.get("model name") or platform.processor() or None,
        "cpu_flags": [flag for flag in (*KERNEL_FLAGS, *ARM_FLAGS) if flag in flags],
        "cores": usable_cores(),
        "ram_bytes": _ram_bytes(),
    }


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_info() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo."""
    if not CPUINFO.is_file():
        return {}
    first = CPUINFO.read_text(errors="replace").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, separator, value in pairs if separator}


def _ram_bytes() -> int | None:
    if not MEMINFO.is_file():
        return None
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None

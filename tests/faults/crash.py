"""A small run of three stages in a child process that can be killed anywhere."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mobileicsa.io.faults import VARIABLE
from mobileicsa.io.hashing import sha256_bytes, sha256_tree
from mobileicsa.io.lock import OutputLock
from mobileicsa.io.staging import Staging

STAGES = ("load", "learn", "export:onnx")


def run(output: Path) -> list[str]:
    """Do the three stages, each from the result of the one before, and commit; names the stages that really ran."""
    ran = []
    with OutputLock(output), Staging(output, "0123abcd") as staging:
        previous = torch.ones(5000)
        for number, stage in enumerate(STAGES):
            inputs = sha256_bytes(previous.numpy().tobytes() + bytes([number]))
            if not staging.stages.done(stage, inputs):
                staging.stages.save(stage, inputs, {"x": previous * 1.5 + number}, {"stage": stage})
                ran.append(stage)
            tensors, data = staging.stages.load(stage)
            previous = tensors["x"]
            staging.write_json(f"{stage.replace(':', '/')}.json", data)
        staging.write_tensors("weights.safetensors", {"x": previous})
        staging.write_json("manifest.json", {"sum": previous.sum().item()})
        staging.commit(overwrite=True)
    return ran


def in_child(work: Callable[[], object], *, fault: str | None = None, kill_after_s: float | None = None) -> int:
    """Run `work` in a forked child; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            if fault is not None:
                os.environ[VARIABLE] = fault
            work()
            os._exit(0)
        except BaseException as error:
            os._exit(getattr(error, "exit_code", 99))
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def old_artifact(output: Path) -> str:
    output.mkdir()
    (output / "manifest.json").write_text("old")
    return sha256_tree(output)

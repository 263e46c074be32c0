"""Torture list, cases 44, 46, 48 and 49 at the command line: memory, the hub, what is not installed, threads."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from tiny_artifact import write_checkpoint

from mobileicsa.evaluate import lm_eval_run
from mobileicsa.io import cgroup, machine

MIB = 1 << 20


def limited(bytes_of_address_space: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process that may reserve so much address space (`ulimit -v`)."""
    return subprocess.run(
        [sys.executable, "-c", "from mobileicsa.cli.main import main; main()", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (bytes_of_address_space,) * 2),
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.parametrize("limit_mib", [200, 600, 1400])
def test_fault_44_quantize_below_its_need_is_refused_with_both_figures(
    quantize: list[str], tmp_path: Path, limit_mib: int
) -> None:
    result = limited(limit_mib * MIB, *quantize, "--output", tmp_path / "out")
    assert (result.returncode, result.stdout) == (4, "")
    left = max(limit_mib - machine.RESERVED_ADDRESSES_BYTES // MIB, 0)
    assert f"needs about 900 MiB of memory, {left} MiB are available" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["verify"], ["run", "--prompt", "x"], ["bench"]], ids=lambda value: value[0])
def test_fault_44_commands_on_an_artifact_say_that_memory_lacks(artifact: Path, arguments: list[str]) -> None:
    verb, *more = arguments
    result = limited(500 * MIB, verb, artifact, *more, "--json")
    assert result.returncode == 4
    assert "MiB are available" in json.loads(result.stdout)["error"]["message"]
    assert "Traceback" not in result.stderr


def test_fault_44_memory_that_runs_out_on_the_way_is_an_environment_fault(
    command: Command, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), ImportError):

        def fail(*arguments: Any, error: Any = error) -> None:
            raise error if error is not ImportError else ImportError("x.so: failed to map segment from shared object")

        monkeypatch.setattr("mobileicsa.report.contents.read_manifest", fail)
        result = command("inspect", artifact)
        assert result.code == 4
        assert "memory ran out" in result.err


@pytest.mark.slow
def test_fault_44_a_plan_that_says_yes_has_enough(quantize: list[str], tmp_path: Path) -> None:
    least = machine.BASE_MEMORY_BYTES + machine.RESERVED_ADDRESSES_BYTES + 2 * MIB
    result = limited(least, *quantize, "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "manifest.json").is_file()


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_fault_44_the_tightest_control_group_counts_without_its_file_cache(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/outer/inner\n")
    stat = "anon 1\ninactive_file 100\n"
    write_group(tmp_path / "fs" / "outer", memory__max="1000\n", memory__current="600\n", memory__stat=stat)
    write_group(tmp_path / "fs" / "outer" / "inner", memory__max="max\n", memory__current="600\n", memory__stat=stat)
    assert cgroup.available_memory(tmp_path / "fs", membership) == 500


def test_fault_44_control_groups_of_version_1_count_too(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("5:cpu:/x\n4:memory:/docker/0123\n")
    files = {"memory__limit_in_bytes": "1000", "memory__usage_in_bytes": "900", "memory__stat": "total_inactive_file 0"}
    write_group(tmp_path / "fs" / "memory", **files)
    assert cgroup.available_memory(tmp_path / "fs", membership) == 100


def test_fault_44_without_control_groups_nothing_limits(tmp_path: Path) -> None:
    assert cgroup.available_memory(tmp_path, tmp_path / "none") is None


def test_fault_46_a_hub_id_is_fetched_planned_and_pinned(text: Path, tmp_path: Path) -> None:
    from fake_hub import NAME, fake_hub

    folder = write_checkpoint(tmp_path / "hub")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('ran')")
    with fake_hub(folder) as server:
        environment = {**os.environ, "HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home")}
        given = ["quantize", "--scheme", "w8a8", "--calibration", str(text), "--dry-run", "--json"]
        code = "from mobileicsa.cli.main import main; main()"
        results = {
            name: subprocess.run(
                [sys.executable, "-c", code, *given, "--model", name, "--output", str(tmp_path / "out")],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
            )
            for name in (f"{NAME}@v1", f"{NAME}@v9")
        }
        assert server.fetched() == {"config.json", "model.safetensors", "tokenizer.json"}
        assert not any("agent" in request for request in server.requests)
    assert results[f"{NAME}@v1"].returncode == 0
    assert json.loads(results[f"{NAME}@v1"].stdout)["model_type"] == "llama"
    assert "MiB of weights from the model hub" in results[f"{NAME}@v1"].stderr
    assert results[f"{NAME}@v9"].returncode == 4
    assert "no such revision" in json.loads(results[f"{NAME}@v9"].stdout)["error"]["message"]


class Without:
    """A finder of modules that does not find some."""

    def __init__(self, finder: Any, names: tuple[str, ...]) -> None:
        self.finder, self.names = finder, names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self.names:
            return None
        found: ModuleSpec | None = self.finder.find_spec(name, path, target)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


@pytest.fixture
def hide() -> Iterator[Callable[..., None]]:
    """Make packages look as if they were not installed."""
    with pytest.MonkeyPatch.context() as patch:

        def hidden(*names: str) -> None:
            for module in [m for m in sys.modules if m.partition(".")[0] in names]:
                patch.delitem(sys.modules, module)
            patch.setattr(sys, "meta_path", [Without(finder, names) for finder in sys.meta_path])

        yield hidden


EXTRAS = [("executorch", "executorch"), ("onnxruntime", "onnx")]


@pytest.mark.parametrize(("package", "extra"), EXTRAS)
def test_fault_48_quantize_without_a_back_end_says_how_to_install_it(
    command: Command, quantize: list[str], tmp_path: Path, hide: Callable[..., None], package: str, extra: str
) -> None:
    hide(package)
    result = command(*quantize, "--output", tmp_path / "out")
    assert (result.code, result.out) == (4, "")
    assert f"pip install 'mobileicsa[{extra}]'" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("package", "extra"), EXTRAS)
def test_fault_48_commands_on_a_missing_back_end_say_how_to_install_it(
    command: Command, artifact: Path, hide: Callable[..., None], package: str, extra: str
) -> None:
    hide(package)
    for line in (["run", artifact, "--prompt", "x"], ["verify", artifact, "--no-save"], ["bench", artifact]):
        result = command(*line, "--backend", extra, "--json")
        assert result.code == 4
        assert f"pip install 'mobileicsa[{extra}]'" in result.out


@pytest.mark.parametrize(("package", "extra"), EXTRAS)
def test_fault_48_the_rest_goes_on_without_a_back_end(
    command: Command, artifact: Path, hide: Callable[..., None], package: str, extra: str
) -> None:
    hide(package)
    for line in (["--help"], ["quantize", "--help"], ["schemes"], ["targets"]):
        assert command(*line).code == 0
    assert f"pip install 'mobileicsa[{extra}]'" in command("doctor", "--json").json["backends"][extra]
    result = command("verify", artifact, "--no-greedy", "--no-save", "--json")
    assert (result.code, result.json["ok"]) == (0, True)
    assert "not installed" in result.json["backends"][extra]["skipped"]
    assert command("run", artifact, "--prompt", "x", "--max-new-tokens", 1).code == 0


def test_fault_48_lm_eval_missing_says_how_to_install_it(
    hide: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    hide("lm_eval")
    with pytest.raises(SystemExit) as caught:
        lm_eval_run.main()
    assert caught.value.code == 4
    assert "pip install 'mobileicsa[eval]'" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["simulator", "onnx", "executorch"])
def test_fault_49_one_thread_and_two_give_the_same_tokens(command: Command, artifact: Path, backend: str) -> None:
    given = ["run", artifact, "--backend", backend, "--prompt", "The quick brown fox", "--max-new-tokens", 24, "--json"]
    one, two = (command(*given, "--threads", threads).json["token_ids"] for threads in (1, 2))
    assert one == two
    assert len(one) > 1


@pytest.mark.parametrize("backend", ["onnx", "executorch"])
def test_fault_49_one_thread_and_two_give_the_same_integers(artifact: Path, backend: str) -> None:
    from mobileicsa.artifact.model import QuantizedModel

    logits = []
    for threads in (1, 2):
        model = QuantizedModel.from_pretrained(artifact, backend=backend, threads=threads)
        logits.append(model.logits(list(range(3, 60))))
        model.close()
    assert logits[0].equal(logits[1])

"""Torture list, case 46, against a hub that works: what is fetched, and what is not; and one that stalls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from build import pickle_bomb, write_model, write_sharded_model
from fake_hub import COMMIT, NAME, fake_hub

from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.io import hub
from mobileicsa.io.checkpoint import open_checkpoint

# What a repository may hold beside the model, and must stay where it is.
UNWANTED = ("modeling_tiny.py", "pytorch_model.bin", "model.gguf", "README.md", "consolidated.safetensors")
BELOW = ("onnx/config.json", "original/model.safetensors")


@pytest.fixture
def aimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Point the hub's client to an endpoint, with an empty cache and little patience."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(hub, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)

    def aim(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + path)

    return aim


def repository(folder: Path, write: Callable[[Path], Path] = write_model) -> Path:
    write(folder)
    for name in (*UNWANTED, *BELOW):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    (folder / "pytorch_model.bin").write_bytes(pickle_bomb(folder / "canary"))
    return folder


def test_fault_46_only_the_models_data_files_are_fetched(tmp_path: Path, aimed: Callable[[str], None]) -> None:
    with fake_hub(repository(tmp_path / "hub")) as server:
        aimed(server.endpoint)
        checkpoint = open_checkpoint(NAME)
        assert server.fetched() == {"config.json", "tokenizer.json", "model.safetensors"}
    assert checkpoint.revision == COMMIT
    assert checkpoint.tensors.identity() == open_checkpoint(str(tmp_path / "hub")).tensors.identity()
    assert not (tmp_path / "hub" / "canary").exists()


def test_fault_46_of_a_sharded_model_the_shards_of_its_index_are_fetched(
    tmp_path: Path, aimed: Callable[[str], None]
) -> None:
    with fake_hub(repository(tmp_path / "hub", write_sharded_model)) as server:
        aimed(server.endpoint)
        checkpoint = open_checkpoint(NAME)
        shards = {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
        assert server.fetched() == {"config.json", "tokenizer.json", "model.safetensors.index.json", *shards}
    assert checkpoint.tensors.get("model.norm.weight").shape == (8,)


def test_fault_46_a_repository_of_pickles_only_is_refused_unread(tmp_path: Path, aimed: Callable[[str], None]) -> None:
    folder = write_model(tmp_path / "hub")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle_bomb(tmp_path / "canary"))
    with fake_hub(folder) as server:
        aimed(server.endpoint)
        with pytest.raises(InputError, match="safetensors"):
            open_checkpoint(NAME)
        assert server.fetched() == {"config.json", "tokenizer.json"}
    assert not (tmp_path / "canary").exists()


def test_fault_46_a_revision_is_asked_for_by_name(tmp_path: Path, aimed: Callable[[str], None]) -> None:
    with fake_hub(write_model(tmp_path / "hub")) as server:
        aimed(server.endpoint)
        assert open_checkpoint(f"{NAME}@v1").revision == COMMIT
        assert f"GET /api/models/{NAME}/revision/v1" in server.requests


@pytest.mark.parametrize(
    ("name", "words"), [(f"{NAME}@v9", "revision v9.*no such revision"), ("org/none", "no such model")]
)
def test_fault_46_an_unknown_model_or_revision_is_said_to_be_unknown(
    tmp_path: Path, aimed: Callable[[str], None], name: str, words: str
) -> None:
    with fake_hub(write_model(tmp_path / "hub")) as server:
        aimed(server.endpoint)
        with pytest.raises(EnvironmentFault, match=words) as caught:
            open_checkpoint(name)
    assert caught.value.exit_code == 4
    assert server.fetched() == set()


def test_fault_46_a_second_time_the_cache_serves_and_says_so_when_the_hub_is_gone(
    tmp_path: Path, aimed: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    with fake_hub(write_model(tmp_path / "hub")) as server:
        aimed(server.endpoint)
        first = open_checkpoint(NAME)
        server.requests.clear()
        open_checkpoint(NAME)
        assert server.fetched() == set()
    caplog.clear()
    assert open_checkpoint(NAME).identity == first.identity
    assert f"hub cache is used, commit {COMMIT}" in caplog.text


def test_fault_46_a_damaged_download_is_found_by_the_hash_that_the_hub_gave(
    tmp_path: Path, aimed: Callable[[str], None]
) -> None:
    with fake_hub(write_model(tmp_path / "hub")) as server:
        aimed(server.endpoint)
        folder = open_checkpoint(NAME).folder
    assert folder is not None
    weights = (folder / "model.safetensors").resolve()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    with pytest.raises(InputError, match="SHA-256"):
        open_checkpoint(NAME)


@pytest.mark.parametrize("stall", ["info", "config.json", "model.safetensors"])
def test_fault_46_a_hub_that_stalls_is_given_up(tmp_path: Path, aimed: Callable[[str], None], stall: str) -> None:
    with fake_hub(write_model(tmp_path / "hub"), stall) as server:
        aimed(server.endpoint)
        with pytest.raises(EnvironmentFault, match=r"no answer|timed out") as caught:
            open_checkpoint(NAME)
    assert caught.value.exit_code == 4


def test_fault_46_after_a_broken_download_only_the_missing_file_is_fetched(
    tmp_path: Path, aimed: Callable[[str], None]
) -> None:
    folder = write_model(tmp_path / "hub")
    with fake_hub(folder, stall="model.safetensors") as server:
        aimed(server.endpoint)
        with pytest.raises(EnvironmentFault, match="finished files are kept"):
            open_checkpoint(NAME)
    with fake_hub(folder) as server:
        aimed(server.endpoint)
        open_checkpoint(NAME)
        assert server.fetched() == {"model.safetensors"}

"""Stock clients, not ours, run the artifact's files and give the simulator's tokens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mobileicsa_export.executorch import MODEL_FILE
from mobileicsa_export.onnx_stock import DYNAMIC_FILE, GENAI_CONFIG
from tokenizers import AddedToken, Tokenizer, models

from mobileicsa.artifact.model import SIMULATOR, QuantizedModel

PROMPT = "The quick brown fox"
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def expected(artifact: Path) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of what the simulator writes behind it."""
    model = QuantizedModel.from_pretrained(artifact, backend=SIMULATOR)
    ids = model.tokenizer.encode(PROMPT)
    return ids, model.generate(ids, max_new_tokens=NEW_TOKENS).token_ids


@pytest.fixture(scope="module")
def free(artifact: Path) -> int:
    """Tokens that fit behind the prefix."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    plan = json.loads((artifact / "quant_plan.json").read_text())
    context: int = manifest["targets"][manifest["default_target"]]["context"]
    return context - len(plan["prefix_ids"])


def spelling_ids(folder: Path, vocabulary: int) -> Path:
    """A tokenizer whose text is the ids: what a random model writes need not be UTF-8."""
    names = {f"<{i}>": i for i in range(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=names, merges=[]))
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    tokenizer.save(str(folder / "ids.json"))
    return folder / "ids.json"


class TestLlmRunner:
    """ExecuTorch's own runner, whose C++ is also that of LlmModule on Android."""

    @pytest.fixture
    def runner(self, artifact: Path, tmp_path: Path) -> Any:
        module = pytest.importorskip("executorch.extension.llm.runner", reason="executorch is not installed")
        vocabulary = json.loads((artifact / "config.json").read_text())["vocab_size"]
        return module.TextLLMRunner(str(artifact / "executorch" / MODEL_FILE), str(spelling_ids(tmp_path, vocabulary)))

    def test_it_writes_the_simulators_tokens_turn_after_turn(
        self, runner: Any, expected: tuple[list[int], list[int]]
    ) -> None:
        for _ in range(2):
            assert written_by(runner, *expected) == expected[1]
            runner.reset()

    def test_it_loads_our_tokenizer(self, artifact: Path) -> None:
        module = pytest.importorskip("executorch.extension.llm.runner", reason="executorch is not installed")
        runner = module.TextLLMRunner(str(artifact / "executorch" / MODEL_FILE), str(artifact / "tokenizer.json"))
        runner.prefill(PROMPT, module.GenerationConfig())

    def test_it_stops_where_the_context_is_full(
        self, runner: Any, expected: tuple[list[int], list[int]], free: int
    ) -> None:
        ids, _ = expected
        assert len(written_by(runner, ids, [0] * free)) <= free - len(ids)


def written_by(runner: Any, ids: list[int], like: list[int]) -> list[int]:
    from executorch.extension.llm.runner import GenerationConfig

    pieces: list[str] = []
    config = GenerationConfig(echo=False, max_new_tokens=len(like), temperature=0.0)
    runner.generate("".join(f"<{i}>" for i in ids), config, pieces.append)
    return [int(piece.strip("<>")) for piece in pieces if piece]


class TestGenai:
    @pytest.fixture(scope="class")
    def genai(self) -> Any:
        return pytest.importorskip("onnxruntime_genai", reason="not installed: pip install 'mobileicsa[stock]'")

    @pytest.fixture(scope="class")
    def model(self, artifact: Path, genai: Any) -> Any:
        return genai.Model(str(artifact / "onnx"))

    def test_it_writes_the_simulators_tokens(
        self, genai: Any, model: Any, expected: tuple[list[int], list[int]]
    ) -> None:
        ids, tokens = expected
        assert self.written(genai, model, ids, len(tokens)) == tokens

    def test_a_prompt_may_come_in_pieces_and_be_taken_back(
        self, genai: Any, model: Any, expected: tuple[list[int], list[int]]
    ) -> None:
        ids, tokens = expected
        generator = genai.Generator(model, genai.GeneratorParams(model))
        generator.append_tokens(ids[:5])
        generator.append_tokens(ids[5:])
        generator.generate_next_token()
        assert list(generator.get_sequence(0))[len(ids) :] == tokens[:1]
        generator.rewind_to(5)
        generator.append_tokens(ids[5:])
        generator.generate_next_token()
        assert list(generator.get_sequence(0))[len(ids) :] == tokens[:1]

    def test_it_loads_our_tokenizer(
        self, genai: Any, artifact: Path, expected: tuple[list[int], list[int]], tmp_path: Path
    ) -> None:
        # It asks for tokenizer_config.json, which the tiny checkpoint has not and every published one has.
        shutil.copy(artifact / "tokenizer.json", tmp_path)
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
        config = genai.Config(str(artifact / "onnx"))
        config.overlay(json.dumps({"model": {"tokenizer_dir": os.path.relpath(tmp_path, artifact / "onnx")}}))
        tokenizer = genai.Tokenizer(genai.Model(config))
        assert list(tokenizer.encode(PROMPT)) == expected[0]
        assert tokenizer.decode(expected[0]) == PROMPT

    def test_the_context_that_it_knows_leaves_room_for_the_prefix(self, artifact: Path, free: int) -> None:
        config = json.loads((artifact / "onnx" / GENAI_CONFIG).read_text())
        assert config["model"]["context_length"] == config["search"]["max_length"] == free

    def test_it_finds_the_tokenizer_where_the_artifact_has_it(self, artifact: Path) -> None:
        config = json.loads((artifact / "onnx" / GENAI_CONFIG).read_text())
        assert (artifact / "onnx" / config["model"]["tokenizer_dir"] / "tokenizer.json").is_file()

    @staticmethod
    def written(genai: Any, model: Any, ids: list[int], count: int) -> list[int]:
        settings = genai.GeneratorParams(model)
        settings.set_search_options(max_length=len(ids) + count)
        generator = genai.Generator(model, settings)
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        return [int(i) for i in generator.get_sequence(0)][len(ids) :]


# optimum-onnx asks for transformers below 4.58, so that it lives in an environment of its own.
OPTIMUM = """
import json, sys, torch
from optimum.onnxruntime import ORTModelForCausalLM
folder, file, ids, count = json.loads(sys.argv[1])
model = ORTModelForCausalLM.from_pretrained(folder, subfolder="onnx", file_name=file, local_files_only=True)
written = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
print(json.dumps(written[0, len(ids):].tolist()))
"""


def test_optimum_writes_the_simulators_tokens(artifact: Path, expected: tuple[list[int], list[int]]) -> None:
    python = os.environ.get("MOBILEICSA_OPTIMUM_PYTHON")
    if python is None:
        pytest.skip("MOBILEICSA_OPTIMUM_PYTHON names no Python with optimum-onnx: see docs/stock-runtimes.md")
    ids, tokens = expected
    request = json.dumps([str(artifact), DYNAMIC_FILE, ids, len(tokens)])
    answer = subprocess.run([python, "-c", OPTIMUM, request], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout.splitlines()[-1]) == tokens

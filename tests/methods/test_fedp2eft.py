"""`methods run fedp2eft`: its adapters in stock peft, the form of its result, the same numbers again, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from schema import read_result
from tiny_artifact import TEXT, write_checkpoint

from mobileicsa.api import run_method
from mobileicsa.artifact import golden, plan_build
from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.cli.main import execute
from mobileicsa.core.errors import EnvironmentFault, InputError
from mobileicsa.core.target import Target
from mobileicsa.io.checkpoint import Checkpoint, open_checkpoint
from mobileicsa.methods.fedp2eft import adalora, tuning
from mobileicsa.methods.fedp2eft.budget import uniform_mask
from mobileicsa.methods.fedp2eft.client import (
    Allocation,
    Factors,
    as_peft,
    draw_factors,
    fine_tune,
    learn_scales,
    start_adapters,
)
from mobileicsa.methods.fedp2eft.config import SIZES, Config
from mobileicsa.methods.fedp2eft.federation import federate
from mobileicsa.methods.fedp2eft.generator import Generator
from mobileicsa.methods.fedp2eft.method import _files
from mobileicsa.methods.fedp2eft.strategies import ADALORA, BASELINES, CONTROLS, STRATEGIES, Setting
from mobileicsa.methods.fedp2eft.tail import Tail
from mobileicsa.methods.fedp2eft.texts import read_clients
from mobileicsa.methods.fedp2eft.world import Client, World, hidden_states
from mobileicsa.methods.lora import Adapter
from mobileicsa.methods.overrides import configure
from mobileicsa.methods.peft_vector import PeftVector
from mobileicsa.models.adapter import read_adapter
from mobileicsa.models.load import load_decoder, read_spec

peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def finished(base: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    run_method("fedp2eft", "smoke", output, overrides=[f"base={base}", f"data={data_dir}", "seeds=2"])
    return output


@pytest.fixture(scope="module")
def world(base: Path, data_dir: Path) -> tuple[World, Config]:
    config = configure(SIZES, "smoke", [f"base={base}", f"data={data_dir}", "new_languages=[]"])
    return World(config, _files(config), lambda: None), config


def stock_model(base: Path, adapter: Path | None = None) -> Any:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    return model if adapter is None else peft.PeftModel.from_pretrained(model, adapter)


def test_the_result_has_every_baseline_and_control_at_equal_parameters(finished: Path) -> None:
    document = read_result(finished)
    assert set(document["baselines"]) == {*BASELINES, *CONTROLS[SIZES["smoke"].keep_scales]}
    parameters = {name: m["parameters"]["mean"] for name, m in document["baselines"].items() if name != ADALORA}
    parameters["ours"] = document["metrics"]["parameters"]["mean"]
    # What no rank fits in any more is less than the cheapest one's 48.
    assert all(0 <= parameters["uniform"] - found < 48 for found in parameters.values()), parameters
    assert {"loss_rank_1", "loss_rank_2", "loss_seen", "loss_new", "untuned_loss"} <= set(document["metrics"])


def test_the_adapters_are_for_the_whole_base_in_stock_peft(finished: Path, base: Path) -> None:
    folder = finished / read_result(finished)["artifacts"]["adapter"]
    adapter = PeftVector.load(folder)
    assert adapter.base_identity == open_checkpoint(str(base)).identity
    assert len(set(adapter.ranks.values())) > 1 or len(adapter.ranks) < 7, "as uniform as without a generator"
    # The route reads the same updates.
    route = read_adapter(folder, read_spec(open_checkpoint(str(base))))
    for name, update in adapter.updates.items():
        torch.testing.assert_close(route.updates[name].product(), update.product())
    assert set(route.updates) == set(adapter.updates)
    ids = torch.arange(5, 25).view(2, 10)
    merged = stock_model(base)
    weights = {name: merged.get_submodule(name).weight.detach() for name in adapter.updates}
    for name, weight in adapter.merge(weights).items():
        merged.get_submodule(name).weight.data = weight
    with torch.no_grad():
        loaded, expected = stock_model(base, folder)(ids).logits, merged(ids).logits
    assert not torch.equal(expected, stock_model(base)(ids).logits)
    torch.testing.assert_close(loaded, expected, atol=1e-5, rtol=1e-4)


def test_two_adapters_stand_beside_one_integer_base(
    finished: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`quantize --adapter A --adapter B` and `run --adapter NAME`, on the simulator alone."""
    bare = Target(name="bare", description="", backends=(), context=64, prefill_chunk=8)
    monkeypatch.setattr(plan_build, "find_target", lambda name: bare)
    monkeypatch.setattr(golden, "PROMPTS", golden.PROMPTS[:2])
    (tmp_path / "calibration.txt").write_text(TEXT)
    names = ("unseen-de", "unseen-hi")
    adapters = [argument for name in names for argument in ("--adapter", str(finished / "adapters" / name))]
    request = ["quantize", "--model", str(base), "--scheme", "w8a8", "--recipe", "minmax", "--output"]
    request += [str(tmp_path / "out"), "--calibration", str(tmp_path / "calibration.txt"), *adapters]
    # Two clients of two steps: what matters here is that they are told apart.
    request += ["--max-adapter-saturation", "1", "calibration.samples=2", "calibration.length=32", "--json"]

    def command(*arguments: str) -> Any:
        capfd.readouterr()
        assert execute(list(arguments)) == 0
        return json.loads(capfd.readouterr().out)

    assert command(*request, "--dry-run")["adapters"] == list(names)
    command(*request)
    ask = ["run", str(tmp_path / "out"), "--prompt", "The dog", "--max-new-tokens", "4", "--json"]
    for chosen in ((), ("--adapter", "unseen-de"), ("--adapter", "unseen-hi")):
        assert command(*ask, *chosen)["token_ids"]
    model = QuantizedModel.from_pretrained(tmp_path / "out", backend="simulator")
    logits = []
    for name in (None, *names, None):
        model.use_adapter(name)
        logits.append(torch.cat(list(model.logit_chunks([5, 6, 7]))))
    assert (logits[0] == logits[3]).all()
    assert not (logits[0] == logits[1]).all()
    assert not (logits[1] == logits[2]).all()


def test_dropped_updates_are_counted(finished: Path) -> None:
    document = read_result(finished)
    config = SIZES["smoke"]
    assert document["metrics"]["rejected_updates"]["per_seed"] == [0.0, 0.0]
    for trial in json.loads((finished / document["artifacts"]["trials"]).read_text())["fedp2eft"]:
        assert trial["updates"] == {
            "accepted": config.rounds * config.per_round,
            "rejected": 0,
            "failed_rounds": 0,
        }


def test_a_broken_client_is_dropped_and_counted(world: tuple[World, Config], monkeypatch: pytest.MonkeyPatch) -> None:
    w, config = world
    calls: list[int] = []

    def follow(generator: Any, *arguments: Any, **named: Any) -> float:
        calls.append(len(calls))
        if calls[-1] == 1:
            generator.last.bias.data.fill_(float("nan"))
        return 0.0

    monkeypatch.setattr("mobileicsa.methods.fedp2eft.federation.follow", follow)
    state, counts = federate(w, config, 0, lambda: None)
    assert counts["rejected"] == counts["rejected_not_finite"] == 1
    assert counts["accepted"] == config.rounds * config.per_round - 1
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_the_generator_is_written(finished: Path) -> None:
    state = load_file(finished / read_result(finished)["artifacts"]["psg"])
    config = SIZES["smoke"]
    # Two numbers for each of two blocks' seven linears in, a scale for every rank of one block's out.
    assert state["first.weight"].shape[1] == 2 * 2 * 7
    assert state["last.weight"].shape[0] == 7 * config.rank


def test_the_same_seed_gives_the_same_numbers(finished: Path, base: Path, data_dir: Path, tmp_path: Path) -> None:
    run_method("fedp2eft", "smoke", tmp_path / "out", overrides=[f"base={base}", f"data={data_dir}", "seed=1"])
    again, before = read_result(tmp_path / "out"), read_result(finished)
    for name, estimate in again["metrics"].items():
        assert estimate["per_seed"][0] == before["metrics"][name]["per_seed"][1], name


def test_what_is_trained_on_the_tail_is_what_stock_peft_computes(
    world: tuple[World, Config], base: Path, tmp_path: Path
) -> None:
    """The tail over cached states, its q unscaled, against the whole model with the written adapter."""
    w, config = world
    client = w.clients["unseen-de"]
    mask = uniform_mask(len(w.costs), config.rank, 2)
    mask[0] = False  # a module without adapter, and ranks that differ
    mask[3, 3] = True
    allocation = Allocation(mask=mask, scales=torch.rand(mask.shape) + 0.5, factor=2.0)
    adapters = fine_tune(w, client, draw_factors(w, config.rank, 7), allocation, config, 0.05, 7)
    as_peft(w, adapters).save(tmp_path / "adapter")
    with w.adapted(adapters), torch.no_grad():
        ours = w.decoder.head.norm(w.tail(client.scored.hidden)) @ w._head.T
    assert set(PeftVector.load(tmp_path / "adapter").ranks.values()) == {2, 3}
    model = stock_model(base, tmp_path / "adapter")
    # The windows again, from the cached targets: the start token, then all but the last one.
    ids = torch.cat((torch.full((config.test, 1), 1), w.vocabulary[client.scored.targets[:, :-1]]), dim=1)
    with torch.no_grad():
        theirs = model(ids).logits[..., w.vocabulary]
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def test_a_tail_without_adapters_is_the_decoder(base: Path) -> None:
    decoder, ids = load_decoder(open_checkpoint(str(base))), torch.arange(5, 25).view(2, 10)
    hidden, _ = hidden_states(decoder, 1, ids)
    whole, moments = hidden_states(decoder, 0, ids, observe=True)
    assert len(moments) == 14
    with torch.no_grad():
        expected = decoder(ids)[0]
        for states, count in ((hidden, 1), (whole, 2)):
            torch.testing.assert_close(decoder.head(Tail(decoder, count)(states)), expected, atol=1e-4, rtol=1e-4)


def test_kept_ranks_start_alike_whatever_else_is_kept(world: tuple[World, Config]) -> None:
    w, config = world
    ones, factors = torch.ones(len(w.costs), config.rank), draw_factors(w, config.rank, 3)
    few, all_ = (
        start_adapters(
            w, factors, Allocation(mask=uniform_mask(len(w.costs), config.rank, kept), scales=ones, factor=1.0)
        )
        for kept in (1, config.rank)
    )
    for a, b in zip(few, all_, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a.a, b.a[:1])


def test_variants_of_a_seed_share_a_batches_and_clients(
    world: tuple[World, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a difference between two of them is paired."""
    w, config = world
    config = replace(config, repeats=2)
    state = Generator(4 * 7, len(w.costs), config.rank, 1.0, torch.Generator()).state_dict()
    seen: dict[tuple[str, str, int], Factors] = {}

    def fine_tune(
        w: World, client: Client, factors: Factors, allocation: Allocation, config: Config, rate: float, seed: int
    ) -> list[Adapter | None]:
        seen[variant, client.name, seed] = factors
        return start_adapters(w, factors, allocation)

    def tune(w: World, client: Client, factors: Factors, *_: Any, seed: int, **__: float) -> tuple[Tail, int]:
        seen[variant, client.name, seed] = factors
        return w.tail, 1

    monkeypatch.setattr(tuning, "fine_tune", fine_tune)
    monkeypatch.setattr(adalora, "tune", tune)
    for variant in ("fedp2eft", *BASELINES):
        tuning.Tuning(w, config, variant, 3, state, lambda: None).trial()
    runs = {name: {key[1:] for key in seen if key[0] == name} for name in ("fedp2eft", *BASELINES)}
    assert len(runs["fedp2eft"]) == 2 * len(w.clients)
    assert all(run == runs["fedp2eft"] for run in runs.values())
    first, *others = seen.values()
    assert all(torch.equal(a, b) for factors in others for a, b in zip(first, factors, strict=True))


def test_adalora_starts_from_the_same_a(world: tuple[World, Config]) -> None:
    w, config = world
    factors = draw_factors(w, config.rank, 3)
    tail, _ = adalora.tune(w, w.clients["unseen-de"], factors, config, 2, factor=1.0, rate=0.0, seed=0)
    for (path, _), a in zip(tail.linears(), factors, strict=True):
        assert torch.equal(tail.get_parameter(f"{path}.lora_A.default"), a[:3])


def test_ranks_go_by_what_they_are_worth_a_parameter(world: tuple[World, Config]) -> None:
    w, config = world
    client, modules = w.clients["unseen-de"], len(w.costs)
    setting = Setting(
        world=w,
        config=config,
        generator=Generator(2, modules, config.rank, 1.0, torch.Generator()),
        factors=draw_factors(w, config.rank, 0),
        # As many times larger as a rank is dearer: no module is to be favoured.
        alone={client.name: w.costs.float().unsqueeze(1).expand(-1, config.rank)},
        budget=2,
        factor=1.0,
        seed=0,
    )
    assert len(set(w.costs.tolist())) > 1
    assert torch.equal(STRATEGIES["bayestune"](setting, client).mask, uniform_mask(modules, config.rank, 2))


def test_an_epsilon_lets_scales_move_by_what_they_matter(world: tuple[World, Config]) -> None:
    w, config = world
    client, factors = w.clients["seen-de"], draw_factors(w, config.rank, 5)
    start = torch.ones(len(w.costs), config.rank)
    spreads = []
    for epsilon in (1e-12, 1.0):
        free = replace(config, significance=0.0, sparsity=0.0, scale_epsilon=epsilon)
        moves = (learn_scales(w, client, factors, start, free, 6, 1) - start).abs()
        spreads.append(float(moves.max() / moves.median()))
    assert spreads[0] < 2 < spreads[1], spreads


def test_the_largest_size_has_text_enough(smollm2: Checkpoint, data_dir: Path) -> None:
    config = configure(SIZES, "full", [f"data={data_dir}"])
    clients = read_clients(_files(config), smollm2, read_spec(smollm2), config.length, config.parts)
    assert [f"{client.pool}:{client.language}" for client in clients] == config.clients
    assert all(client.windows.shape == (config.parts.total, config.length + 1) for client in clients)
    seen, unseen = (next(c.windows for c in clients if c.name == f"{pool}-de") for pool in ("seen", "unseen"))
    assert not (seen[:, None, 1:] == unseen[None, :, 1:]).all(dim=2).any()


def test_a_missing_peft_is_said_before_any_work(
    base: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mobileicsa.methods.fedp2eft.adalora.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="needs peft"):
        run_method("fedp2eft", "smoke", tmp_path / "out", overrides=[f"base={base}", f"data={data_dir}"])


def test_broken_xcopa_rows_are_named(base: Path, data_dir: Path, tmp_path: Path) -> None:
    for folder in ("pud_multilingual", "xcopa"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for language in ("de", "hi"):
        name = f"pud_multilingual/pud_{language}.tsv"
        (tmp_path / "data" / name).write_bytes((data_dir / name).read_bytes())
    for part in ("val", "test"):
        (tmp_path / f"data/xcopa/{part}.vi.jsonl").write_text(json.dumps({"premise": "x"}) + "\n")
    with pytest.raises(InputError, match=r"val\.vi\.jsonl: line 1"):
        run_method("fedp2eft", "smoke", tmp_path / "out", overrides=[f"base={base}", f"data={tmp_path / 'data'}"])

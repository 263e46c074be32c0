"""Settings of `methods run fedp2eft`: whose they are, what text they are chosen on, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_artifact import write_checkpoint

from mobileicsa.api import run_method
from mobileicsa.core.errors import InputError
from mobileicsa.methods.fedp2eft import tuning
from mobileicsa.methods.fedp2eft.config import SIZES, Config
from mobileicsa.methods.fedp2eft.method import _files
from mobileicsa.methods.fedp2eft.strategies import BASELINES, CONTROLS
from mobileicsa.methods.fedp2eft.world import World
from mobileicsa.methods.overrides import configure

pytest.importorskip("peft", reason="the extra `peft` is not installed")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"))


def test_settings_are_those_of_variant_and_budget() -> None:
    config = Config(factor=2.0, rate=0.1, tuned=(("uniform", 2, 8.0, 0.3),), alone=(("local_rate", 0.5),))
    assert config.fine_tuning("uniform", 2) == (8.0, 0.3)
    assert config.fine_tuning("uniform", 4) == config.fine_tuning("random", 2) == (2.0, 0.1)
    assert config.by_itself() == replace(config, local_rate=0.5)


def test_every_variant_of_small_has_settings_of_its_own() -> None:
    config = SIZES["small"]
    names = ("fedp2eft", *BASELINES, *CONTROLS[config.keep_scales])
    scored = {(name, budget) for name in names for _, budget in tuning.scored_on(config, name)}
    assert scored == {(name, budget) for name, budget, *_ in config.tuned}


def test_settings_are_chosen_on_other_text_of_seen_clients(base: Path, data_dir: Path) -> None:
    overrides = [f"base={base}", f"data={data_dir}", "new_languages=[]", "languages=[de]"]
    config = configure(SIZES, "smoke", overrides)
    worlds = [World(replace(config, scored=part), _files(config), lambda: None) for part in ("validation", "test")]
    validation, test = (w.pool("unseen")[0] for w in worlds)
    assert (validation.name, test.name) == ("seen-de", "unseen-de")
    assert len(validation.scored.targets) == config.validation
    assert len(test.scored.targets) == config.test
    texts = [torch.cat((w.clients["seen-de"].train.targets, w.clients["seen-de"].scored.targets)) for w in worlds]
    # No window of one part is in another.
    windows = torch.unique(torch.cat((texts[0], texts[1][config.train :])), dim=0)
    assert len(windows) == config.train + config.validation + config.test


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["budgets=[9]"], "within 1 and rank"),
        (["languages=[de, xx]"], "xx unknown"),
        (["adapted_layers=3"], "the base has 2"),
        (["train=100000"], "windows of 12 are asked for"),
        (["data=/nowhere"], "pud_ar.tsv"),
        (["length=0"], "at least 1"),
        (["tuned=[[uniform, 1, 32.0, 0.0]]"], "must be positive"),
        (["tuned=[[uniform, 1, 32.0, .nan]]"], "must be positive"),
        (["tuned=[[adam, 1, 32.0, 0.1]]"], "should be"),
        (["tuned=[[uniform, 1, 32.0, 0.1], [uniform, 1, 8.0, 0.1]]"], "two lines"),
        (["alone=[[factor, 0]]"], "must be positive"),
        (["alone=[[local_rate, 0.1], [local_rate, 0.2]]"], "two lines"),
    ],
)
def test_a_wrong_request_is_refused(
    base: Path, data_dir: Path, tmp_path: Path, overrides: list[str], words: str
) -> None:
    data = [] if overrides[0].startswith("data=") else [f"data={data_dir}"]
    languages = [] if overrides[0].startswith("languages=") else ["languages=[ar, de]"]
    with pytest.raises(InputError, match=words):
        run_method("fedp2eft", "smoke", tmp_path / "out", overrides=[f"base={base}", *data, *languages, *overrides])

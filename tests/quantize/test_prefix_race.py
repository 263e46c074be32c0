"""The prefix search against a model whose losses are written down, and its expected loss against real rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_learning import tiny_weights
from torch import Tensor

from mobileicsa.calibrate.statistics import fake_quantize, finite_range
from mobileicsa.core.encoding import activation
from mobileicsa.core.scheme import find_scheme
from mobileicsa.models.decoder import Decoder
from mobileicsa.models.edge import Edge, replace_edges
from mobileicsa.models.load import empty_weights
from mobileicsa.quantize import prefix
from mobileicsa.quantize.fisher import SensedModel
from mobileicsa.quantize.prefix import ROUNDS, WINDOWS, race_length, search_prefix


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Written:
    """In the place of `SensedModel`: losses by prefix, plus noise of the window; notes who was seen where."""

    losses: dict[tuple[int, ...], float]
    shifts: dict[tuple[int, ...], float]
    seen: list[tuple[tuple[int, ...], int]]
    read: list[tuple[int, ...]]
    device = torch.device("cpu")

    def __init__(self, model: Decoder, scheme: object) -> None:
        pass

    def past(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return ids

    def next_losses(self, windows: Tensor, past: tuple[int, ...]) -> list[float]:
        # Noise of a text, other for other prefixes, that is gone over all texts.
        noise = [0.05 * (-1) ** (int(window[-1]) // 16 + sum(past)) for window in windows]
        self.read.append(past)
        return [3.0 + self.shifts.get(past, 0.0) + n for n in noise]

    def edge_loss(self, window: Tensor, past: tuple[int, ...], generator: torch.Generator) -> float:
        number = int(window[-1])
        self.seen.append((past, number))
        # Noise of a window, other for other prefixes, that is gone over all windows.
        return self.losses.get(past, 1.0) + 0.3 * (-1) ** (number + sum(past))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> type[Written]:
    monkeypatch.setattr(prefix, "SensedModel", Written)
    Written.losses, Written.shifts, Written.seen, Written.read = {}, {}, [], []
    return Written


def numbered_windows() -> Tensor:
    """Windows that end with their number and hold tokens 40 to 61, the lowest most often."""
    row = torch.tensor([token for token in range(40, 62) for _ in range(62 - token)])
    return torch.cat((row.expand(WINDOWS, -1), torch.arange(WINDOWS)[:, None]), dim=1)


def search(tmp_path: Path, windows: Tensor, max_tokens: int) -> tuple[tuple[int, ...], list[prefix.PrefixTrial]]:
    spec, weights = tiny_weights(tmp_path)
    return search_prefix(spec, weights, find_scheme("w8a8"), windows, max_tokens)


def test_the_best_of_noisy_candidates_wins_token_by_token(tmp_path: Path, written: type[Written]) -> None:
    written.losses = {(1,): 5.0, (1, 50): 0.6, (1, 49): 0.65, (1, 50, 43): 0.5}
    ids, trials = search(tmp_path, numbered_windows(), 3)
    assert ids == (1, 50, 43)
    by_ids = {trial.ids: trial for trial in trials}
    for finalist in ((1, 50), (1, 49)):
        assert (by_ids[finalist].windows, by_ids[finalist].texts) == ROUNDS[-1][1:]
    assert by_ids[1, 50].edges == pytest.approx(0.6)
    assert by_ids[1, 50].shift == pytest.approx(0.0)
    assert (by_ids[1, 55].windows, by_ids[1, 55].texts) == ROUNDS[0][1:]
    assert (1, 56) not in by_ids, "more candidates than the most frequent sixteen"
    assert len(written.seen) == len(set(written.seen))
    assert len(written.seen) + len(written.read) == race_length(WINDOWS, 3)


def test_what_a_prefix_does_to_the_float_model_counts_too(tmp_path: Path, written: type[Written]) -> None:
    written.losses = {(1,): 5.0, (1, 50): 0.6, (1, 49): 0.65}
    written.shifts = {(1, 50): 0.1, (1, 49): -0.1}
    ids, trials = search(tmp_path, numbered_windows(), 1)
    assert ids == (1, 49)
    assert next(t for t in trials if t.ids == ids).loss == pytest.approx(0.55)


def test_a_token_that_gains_next_to_nothing_is_not_taken(tmp_path: Path, written: type[Written]) -> None:
    written.losses = {(1,): 1.0, (1, 44): 0.999}
    assert search(tmp_path, numbered_windows(), 2)[0] == (1,)
    written.losses = {(1,): 1.0, (1, 44): 0.99}
    assert search(tmp_path, numbered_windows(), 2)[0] == (1, 44)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_windows_than_the_race_wants_are_enough(tmp_path: Path, written: type[Written], count: int) -> None:
    written.losses = {(1,): 5.0, (1, 50): 0.1}
    assert search(tmp_path, numbered_windows()[:count], 1)[0] == (1, 50)
    assert len(written.seen) + len(written.read) == race_length(count, 1)


class RoundedEdge(Edge):
    def store(self, x: Tensor) -> Tensor:
        low, high = self.fixed or finite_range(x, "here")
        return fake_quantize(x, activation(low, high, 8))


@torch.no_grad()
def test_the_expected_loss_is_near_that_of_rounding_every_edge(tmp_path: Path) -> None:
    spec, weights = tiny_weights(tmp_path)
    scheme = find_scheme("w8a8")
    windows = torch.randint(3, spec.vocab_size, (8, 48), generator=torch.Generator().manual_seed(1))
    windows[:, 0] = 1

    def model() -> Decoder:
        with empty_weights():
            decoder = Decoder(spec, primitive=False)
        weights.fill(decoder, "")
        return decoder

    plain = torch.log_softmax(model()(windows)[0], dim=-1)
    rounded = model()
    replace_edges(rounded, lambda _, e: RoundedEdge(e.role, e.fixed) if scheme.bits(e.role) == 8 else e)
    ours = torch.log_softmax(rounded(windows)[0], dim=-1)
    divergence = float((plain.exp() * (plain - ours)).sum(-1).mean())
    sensed = SensedModel(model(), scheme)
    generator = torch.Generator().manual_seed(0)
    expected = sum(sensed.edge_loss(window, None, generator) for window in windows) / len(windows)
    assert 0.5 < expected / divergence < 2

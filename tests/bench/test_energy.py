"""Energy on the host and by arithmetic: counters that go round, are forbidden or absent; an estimate that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mobileicsa.artifact.model import QuantizedModel
from mobileicsa.bench import rapl
from mobileicsa.bench.estimate import estimate, macs_per_token
from mobileicsa.bench.phone.trace import read_trace


def zone(folder: Path, name: str, value: int, wrap: int = 1000) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    (made / "energy_uj").write_text(f"{value}\n")
    (made / "max_energy_range_uj").write_text(f"{wrap}\n")
    return made / "energy_uj"


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 100), zone(tmp_path, "intel-rapl:1", 50)
    zone(tmp_path, "intel-rapl:0:0", 7)
    counters = rapl.Counters(tmp_path)
    first.write_text("300\n")
    second.write_text("60\n")
    assert counters.read() == 210


def test_a_counter_that_goes_round_counts_on(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", 900)
    counters = rapl.Counters(tmp_path)
    counter.write_text("100\n")
    assert counters.read() == 200
    counter.write_text("150\n")
    assert counters.read() == 250


def test_counters_that_are_absent_or_forbidden_say_so(tmp_path: Path) -> None:
    assert rapl.Counters(tmp_path).refused == rapl.ABSENT
    zone(tmp_path, "intel-rapl:0", 1).unlink()
    counters = rapl.Counters(tmp_path)
    assert counters.refused == rapl.UNREADABLE
    assert counters.read() is None


def turn(joules: float) -> dict[str, Any]:
    return {"decode_joules": joules, "step_ms": [100.0] * 10}


def test_idle_is_subtracted_and_less_than_idle_is_no_figure() -> None:
    opened = {"rapl_refused": None, "idle_watts": 10.0}
    found = rapl.energy(opened, [turn(30.0), turn(50.0), turn(40.0)])
    assert found["energy_mj_per_token"] == pytest.approx(3000)
    assert found["energy_mj_per_token_range"] == pytest.approx([2000, 4000])
    assert found["energy_source"].startswith("rapl")
    assert rapl.energy(opened, [turn(30.0), turn(9.0)]) == {"energy_mj_per_token": None, "energy_source": rapl.RUNS}


def test_the_estimate_names_its_constants_and_says_that_it_is_none_of_a_battery() -> None:
    found = estimate(1_000_000, 2_000_000, "int8")
    assert found["mj_per_token"] == pytest.approx([0.1625 + 0.0006, 0.325 + 0.0006])
    assert "not a measurement" in found["what"]
    assert "Horowitz" in found["source"]
    assert estimate(4_000_000, 2_000_000, "float32")["mj_per_token"][0] > 3 * found["mj_per_token"][0]


def test_products_of_a_step_are_those_of_its_linears_and_attention(artifact: Path) -> None:
    model = QuantizedModel.from_pretrained(artifact)
    # q, o: 32x32; k, v: 32x16; three of 32x48; two layers; head 32x259; q·k and p·v of 4 heads of 8 over 96 slots.
    linears = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 32 * 259
    assert macs_per_token(model.plan, model.target) == linears + 2 * 2 * 4 * 8 * 96


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x7fshort", b"\xff" * 20, b"\x0b"])
def test_what_is_no_trace_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a Perfetto trace"):
        read_trace(data)


def test_an_empty_trace_has_nothing() -> None:
    trace = read_trace(b"")
    assert not trace.rails
    assert not trace.currents

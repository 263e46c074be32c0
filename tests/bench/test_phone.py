"""`bench --device adb` against a scripted adb: figures, order, temperatures, energy, what is left on the phone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import phone_outputs as said
import pytest
from fake_phone import FakePhone

from mobileicsa.bench.phone.run import bench_phone
from mobileicsa.core.errors import DeviceError


def bench(artifact: Path, phone: FakePhone, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"serial": None, "prompt_tokens": 8, "generate_tokens": 4, "repeat": 2}
    return bench_phone(artifact, **{**options, **changes}, clock=phone.clock)


def started(phone: FakePhone) -> list[str]:
    return [re.findall(r"demo\.(\w+)/", call[-1])[0] for call in phone.calls if "am start" in call[-1]]


def test_a_phone_gives_the_host_benchs_figures(artifact: Path, phone: FakePhone) -> None:
    result = bench(artifact, phone)
    assert result["device"] == f"adb:{said.SERIAL}"
    assert result["load_ms"] == 400
    assert result["first_token_ms"] == pytest.approx(128)
    assert result["prefill_tokens_per_s"] == pytest.approx(8 / 0.128)
    assert result["decode_tokens_per_s"] == pytest.approx(1.0)
    assert result["backends"]["executorch"]["decode_tokens_per_s"] == pytest.approx(2.0)
    assert result["decode_tokens_per_s_range"] == [pytest.approx(1.0)] * 2
    assert result["peak_rss_bytes"] == 345678 * 1024
    assert result["laps"][0]["skin_c"] == [31.5, 31.5]
    assert result["environment"]["cpu"] == "Google Pixel 8 (Tensor G3)"
    assert not result["laps"][0]["throttled"]


def test_back_ends_and_float_take_turns(artifact: Path, phone: FakePhone) -> None:
    result = bench(artifact, phone, backends=["onnx", "executorch"])
    assert started(phone) == ["onnxruntime", "executorch"] * 2
    assert len(result["backends"]["onnx"]["turns"]) == 2


def test_float_runs_beside_the_artifact(artifact: Path, phone: FakePhone) -> None:
    row = bench(artifact, phone, backends=["onnx"], baseline_float=True)["backends"]["onnx"]
    assert started(phone) == ["onnxruntime"] * 4
    assert row["ratio_to_float32"]["decode_tokens_per_s"] == pytest.approx(2.0)
    assert row["float32"]["energy_estimate"]["mac_pj"] > row["energy_estimate"]["mac_pj"]


def test_energy_is_that_of_the_compute_rails_above_idle(artifact: Path, phone: FakePhone) -> None:
    row = bench(artifact, phone, backends=["executorch"])
    # 1.45 W while decoding, 0.15 W idle, two tokens a second; the display's rail is not ours.
    assert row["energy_mj_per_token"] == pytest.approx(1300 / 2, rel=0.15)
    assert row["energy_source"].startswith("odpm: rails S1M_VDD_MIF, S4M_VDD_CPUCL0")
    assert len(row["energy_mj_per_token_range"]) == 2


def test_rails_are_read_while_the_phone_charges(artifact: Path, phone: FakePhone) -> None:
    phone.set(answers={"dumpsys battery": said.battery(charging="USB", status=2)})
    assert bench(artifact, phone, backends=["onnx"])["energy_mj_per_token"] > 0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_gauge_is_read_whatever_sign_it_has(artifact: Path, phone: FakePhone, sign: int) -> None:
    phone.set(rails={}, step_s=3.0, slowness={}, gauge={"idle_ua": sign * 150_000, "run_ua": sign * 650_000})
    row = bench(artifact, phone, backends=["executorch"], generate_tokens=10)
    assert row["energy_mj_per_token"] == pytest.approx(0.5 * 4.012 * 3 * 1000, rel=0.05)
    assert row["energy_source"].startswith("gauge: ")


def test_what_runs_is_pushed_with_what_the_app_must_know(artifact: Path, phone: FakePhone) -> None:
    bench(artifact, phone, backends=["onnx"], keep=True)
    folder = next((phone.folder / "disk/data/local/tmp/mobileicsa").iterdir())
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.json", "model.onnx", "model_prefill.onnx", "prefix.bin", "tokenizer.json"}
    facts = json.loads((folder / "model.json").read_text())
    assert (folder / "prefix.bin").stat().st_size == 2 * 2 * 2 * facts["prefix_length"] * 8
    assert facts["inputs"][:2] == ["input_ids", "position"]


def test_nothing_is_left_on_the_phone(artifact: Path, phone: FakePhone) -> None:
    bench(artifact, phone)
    assert phone.files == ["data/misc/perfetto-traces/mobileicsa.pftrace"] or phone.files == []
    assert not (phone.folder / "disk/data/local/tmp/mobileicsa").exists()


def test_a_file_that_is_there_is_not_sent_again(artifact: Path, phone: FakePhone) -> None:
    bench(artifact, phone, backends=["onnx"], keep=True)
    sent = sum("push" in call for call in phone.calls)
    bench(artifact, phone, backends=["onnx"], keep=True)
    assert sum("push" in call for call in phone.calls) == sent


def test_it_waits_until_the_phone_has_cooled(artifact: Path, phone: FakePhone) -> None:
    hot, cool = said.thermal(0, 36.0), said.thermal(0, 31.0)
    phone.set(answers={"dumpsys thermalservice": [cool, hot, hot, hot, cool, cool]})
    result = bench(artifact, phone, backends=["onnx"])
    assert phone.clock.seconds > 10
    assert result["laps"][1]["skin_c"][0] == 31.0


def test_throttled_turns_are_listed_and_in_no_median(artifact: Path, phone: FakePhone) -> None:
    fine, hot = said.thermal(), said.thermal(2, 44.0)
    phone.set(answers={"dumpsys thermalservice": [fine, fine, fine, hot, fine, fine]})
    result = bench(artifact, phone, backends=["onnx"], repeat=3)
    assert [lap["throttled"] for lap in result["laps"]] == [False, True, False]
    assert result["laps"][1]["thermal_status"] == ["none", "moderate"]
    assert len(result["turns"]) == 2
    assert result["throttled_turns"] == 1


def test_an_app_is_installed_first(artifact: Path, phone: FakePhone, tmp_path: Path) -> None:
    apk = tmp_path / "app.apk"
    apk.write_bytes(b"PK")
    bench(artifact, phone, backends=["onnx"], apps=[apk])
    assert ["-s", said.SERIAL, "install", "-r", str(apk)] in phone.calls


def test_the_command_records_it_and_draws_it(
    artifact: Path, phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mobileicsa.bench.phone import run
    from mobileicsa.cli.main import execute

    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    monkeypatch.setattr(run.Phone.__init__, "__defaults__", (None, phone.clock))
    sizes = ("--prompt-tokens", "8", "--generate-tokens", "4", "--repeat", "2")
    assert execute(["bench", str(copy), "--device", "adb", *sizes, "--plot", str(tmp_path / "figures"), "--json"]) == 0
    assert (tmp_path / "figures" / "speed.svg").read_text().startswith("<?xml")
    assert (tmp_path / "figures" / "temperature.svg").is_file()
    assert json.loads((copy / "report.json").read_text())["phone"]["device"] == f"adb:{said.SERIAL}"


@pytest.mark.parametrize("device", ["usb", "adb:", "host:1", "adb:-x"])
def test_an_unknown_device_is_a_usage_error(artifact: Path, device: str, capfd: pytest.CaptureFixture[str]) -> None:
    from mobileicsa.cli.main import execute

    assert execute(["bench", str(artifact), "--device", device]) == 2


def test_a_missing_app_is_named_with_the_way_to_get_it(artifact: Path, phone: FakePhone) -> None:
    phone.set(answers={"pm path": ""})
    with pytest.raises(DeviceError, match=r"org\.mobileicsa\.demo\.onnxruntime is not on it") as caught:
        bench(artifact, phone, backends=["onnx"])
    assert "assembleOnnxruntimeRelease" in str(caught.value.hint)

"""Tables of docs/performance.md and README.md: ratios are of one turn, the fastest first."""

from __future__ import annotations

from typing import Any

from benchmarks.speed.table import YARDSTICK, curves, side_by_side, summary


def row(name: str, decode: list[float], perplexity: float | None) -> dict[str, Any]:
    turns = [{"decode_tokens_per_s": speed, "prefill_tokens_per_s": 10 * speed} for speed in decode]
    middle = sorted(decode)[len(decode) // 2]
    speed = {
        "turns": turns,
        "decode_tokens_per_s": middle,
        "prefill_tokens_per_s": 10 * middle,
        "first_token_ms": 80.0,
        "load_ms": 250.0,
        "peak_rss_bytes": 500_000_000,
    }
    scored = {} if perplexity is None else {"perplexity": perplexity, "tokens": 5100, "windows": 20}
    return {"name": name, "file_bytes": 85_000_000, "speed": {"128": speed, "512": speed}, **scored}


RESULT: dict[str, Any] = {
    "model": "small",
    "text": "wiki.test.raw",
    "threads": 1,
    "generate_tokens": 128,
    "repeat": 3,
    "environment": {"cpu": "some CPU", "cpu_flags": ["avx2"]},
    "skipped": {"genai int4": "not installed"},
    # The machine was twice as fast in the first turn for both: medians alone would say 1.0.
    "rows": [
        row(YARDSTICK, [200.0, 100.0, 100.0], 53.0),
        row("ours", [300.0, 150.0, 150.0], 48.5),
        row("in", [9.0] * 3, None),
    ],
}


def test_ratios_are_taken_turn_by_turn() -> None:
    lines = side_by_side(RESULT)
    assert (
        "| ours | 150 (1.50×) | 1500 (1.50×) | 150 (1.50×) | 1500 (1.50×) | 80 ms | 0.2 s | 500 MB | 85 MB | 48.50 |"
        in lines
    )
    assert lines[-1] == "Left out: genai int4: not installed"
    assert any(line.startswith("| in | 9 (0.09×) |") and line.endswith("|  |") for line in lines)


def test_the_summary_has_scored_contenders_alone_fastest_first() -> None:
    names = [line.split(" | ")[0].removeprefix("| ") for line in summary(RESULT)[4:]]
    assert names == ["ours", YARDSTICK]


def test_curves_are_milliseconds_a_token() -> None:
    rows = [
        {
            "scheme": "w8a8",
            "backend": "onnx",
            "context": c,
            "width": c,
            "decode_tokens_per_s": s,
            "prefill_tokens_per_s": 10 * s,
        }
        for c, s in ((128, 500.0), (256, 250.0))
    ]
    result = {"layers": 4, "threads": 1, "prompt_tokens": 64, "generate_tokens": 32, "context": rows, "width": rows}
    assert "| w8a8 onnx | 2.00 / 0.20 | 4.00 / 0.40 |" in curves(result)

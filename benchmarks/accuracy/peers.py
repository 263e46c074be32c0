"""Peers' quantisers on the same float model, in this process: torchao's 8da4w and ExecuTorch's static PT2E.

    python -m benchmarks.accuracy.peers NAME --model MODEL --text FILE --windows N

prints one JSON answer. Their linears are ours as `nn.Linear`, with the same float weights; the vocabulary projection
and the embedding stay in float32, and norms, softmax and the residual stream too: less is quantised than in our rows.

Not here: AIMET (aimet-torch 2.42 imports torchvision, whose operators do not load beside torch 2.13), and Olive's
QuaRot with GPTQ and static activations (its QDQ pass leaves GroupQueryAttention, so all of attention, in
float; not run yet).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.steps import MODEL, WINDOW
from mobileicsa.artifact.model import FloatModel
from mobileicsa.calibrate.generated import generate_windows
from mobileicsa.evaluate.perplexity import evaluate
from mobileicsa.models.layers import Linear

CALIBRATION_WINDOWS = 32


class _PlainLinear(nn.Linear):
    """One of our linears as the class that the peers look for; the edge behind it, in float, does nothing."""

    def __init__(self, linear: Linear) -> None:
        out_features, in_features = linear.weight.shape
        super().__init__(in_features, out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias  # type: ignore[assignment]


def plain_linears(decoder: nn.Module) -> None:
    """In place, in every decoder layer."""
    for name, module in list(decoder.named_modules()):
        if isinstance(module, Linear) and name.startswith("layers."):
            parent, _, attribute = name.rpartition(".")
            setattr(decoder.get_submodule(parent), attribute, _PlainLinear(module))


def torchao_8da4w(model: FloatModel, group: int | None) -> None:
    """Dynamic 8-bit activations (per token), 4-bit weights per group of columns or per channel."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    plain_linears(model.decoder)
    granularity = PerAxis(0) if group is None else PerGroup(group)
    layers = model.decoder.layers
    quantize_(layers, Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=granularity))  # type: ignore[attr-defined]


def pt2e_static(model: FloatModel) -> None:
    """XNNPACKQuantizer on the linears, static: inputs and outputs per tensor, weights 8 bits per channel."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    plain_linears(model.decoder)
    windows = generate_windows(model.decoder, CALIBRATION_WINDOWS, WINDOW, 0, lambda: None)
    logits = _Logits(model.decoder)
    example = (_with_bos(model, windows[:1]),)
    exported = torch.export.export(logits, example).module()
    # Linears only: with every addition quantised too, that of the attention mask takes its range, and nothing is left.
    config = get_symmetric_quantization_config(is_per_channel=True)
    quantizer = XNNPACKQuantizer().set_module_type(_PlainLinear, config)
    prepared = prepare_pt2e(exported, quantizer)
    for window in windows:
        prepared(_with_bos(model, window[None]))
    converted = convert_pt2e(prepared)
    move_exported_model_to_eval(converted)

    def decoder(ids: Tensor, past: None = None) -> tuple[Tensor, None]:
        padded = torch.nn.functional.pad(ids, (0, WINDOW - ids.shape[1]))
        return converted(padded)[:, : ids.shape[1]], None

    model.decoder = decoder  # type: ignore[assignment]


class _Logits(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.decoder(ids)[0]
        return logits


def _with_bos(model: FloatModel, windows: Tensor) -> Tensor:
    assert model.bos_id is not None
    return torch.cat((torch.full((windows.shape[0], 1), model.bos_id), windows), dim=1)


@dataclass(frozen=True)
class Peer:
    """A quantiser that changes a float model in place, and the scheme of ours that it stands beside."""

    scheme: str
    apply: Callable[[FloatModel], None]


PEERS = {
    "torchao-8da4w-channel": Peer("w4a8", lambda model: torchao_8da4w(model, None)),
    "torchao-8da4w-group32": Peer("w4a8", lambda model: torchao_8da4w(model, 32)),
    "executorch-pt2e-static": Peer("w8a8", pt2e_static),
}


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=None)
    options = parser.parse_args(arguments)
    model = FloatModel.from_pretrained(options.model)
    start = time.monotonic()
    PEERS[options.name].apply(model)
    seconds = round(time.monotonic() - start, 1)
    text = options.text.read_text(encoding="utf-8")
    found = evaluate(model, text, window=WINDOW, max_windows=options.windows)
    print(json.dumps({"name": options.name, "quantize_s": seconds, **found}))


if __name__ == "__main__":
    main()

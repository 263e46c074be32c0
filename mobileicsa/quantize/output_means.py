"""Mean outputs of a block's linears over calibration windows, from the means of their inputs: W E[x] + b."""

from __future__ import annotations

from torch import Tensor

from mobileicsa.calibrate.inputs import InputMean, values
from mobileicsa.models.decoder import DecoderLayer
from mobileicsa.quantize.feedback import GROUPS


class FloatMeans:
    """Watches a float block's linears while windows go through it."""

    def __init__(self, layer: DecoderLayer) -> None:
        self.layer = layer
        self.inputs = {group[0]: InputMean(values) for group in GROUPS}
        self.hooks = [layer.get_submodule(name).register_forward_pre_hook(hook) for name, hook in self.inputs.items()]

    def finish(self, prefix: str) -> dict[str, Tensor]:
        """Mean output (out,) float64 of each linear, by its name under `prefix`; the watch ends."""
        for hook in self.hooks:
            hook.remove()
        found: dict[str, Tensor] = {}
        for group in GROUPS:
            for name in group:
                linear = self.layer.get_submodule(name)
                weight, bias = self.layer.get_parameter(f"{name}.weight"), linear.bias
                assert bias is None or isinstance(bias, Tensor)
                found[f"{prefix}.{name}"] = mean_output(weight, bias, self.inputs[group[0]].mean)
        return found


def mean_output(weight: Tensor, bias: Tensor | None, mean: Tensor) -> Tensor:
    """Mean output (out,) float64, before its edge, of a linear (out, in) whose inputs have the mean (in,) float64."""
    output = weight.double() @ mean
    return output if bias is None else output + bias.double()

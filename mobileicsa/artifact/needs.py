"""What a build needs of the machine: peak memory and disk in bytes, told from counts before heavy work."""

from __future__ import annotations

from mobileicsa.core.spec import ModelSpec
from mobileicsa.core.target import Target
from mobileicsa.io.machine import BASE_MEMORY_BYTES
from mobileicsa.quantize.budget import Limits
from mobileicsa.quantize.recipe import Learning, Recipe, windows_of


def estimate(spec: ModelSpec, recipe: Recipe, limits: Limits | None, targets: tuple[Target, ...]) -> tuple[int, int]:
    """Peak memory and disk in bytes, from counts alone."""
    table = spec.vocab_size * spec.hidden_size * (1 if spec.tied_head else 2)
    integers = spec.decoder_weight_count + table
    hidden = windows_of(recipe) * recipe.calibration.length * spec.hidden_size * 4
    block = spec.decoder_weight_count // spec.num_layers * 4
    quantizing = integers + 6 * block + 3 * hidden
    # The whole model in float beside its integers; writing its text and exporting need no more.
    judging = integers * 5 + 2 * hidden + 4 * recipe.calibration.length * spec.vocab_size * 4
    learning = [_learning_memory(spec, stage, recipe.calibration.length, integers) for stage in recipe.learn]
    backward = integers * 4 + _backward_memory(spec, recipe.calibration.length)
    sensing = [] if limits is None else [backward]
    turning = [backward + _moments_memory(spec)] if recipe.rotation == "learned" else []
    memory = BASE_MEMORY_BYTES + max(quantizing, judging, *sensing, *turning, *learning)
    copies = 1 + sum(len(target.backends) for target in targets)
    # Learning keeps the real weights, and those that a latent stage has learned, until the run is done.
    kept = 4 * spec.decoder_weight_count * (1 + len(recipe.learn)) if recipe.learn else 0
    disk = integers + hidden * 2 + copies * (integers + table) + kept + (64 << 20)
    return memory, disk


def saving_memory(recipe: Recipe) -> Recipe:
    """The recipe with blocks computed again for their gradient wherever the whole model learns."""
    stages = (
        stage.model_copy(update={"save_memory": True}) if stage.scope == "model" else stage for stage in recipe.learn
    )
    return recipe.model_copy(update={"learn": tuple(stages)})


def _learning_memory(spec: ModelSpec, learning: Learning, length: int, integers: int) -> int:
    """Real weights, the student's, and what a backward pass and the optimiser keep, in bytes.

    Block by block only one block has gradients, moments and passes at a time; end to end with `save_memory` all have,
    but passes are kept of one block.
    """
    weights, logits = 4 * spec.decoder_weight_count, length * spec.vocab_size * 4 * 4
    block = _block_pass_memory(spec, length)
    moments = (5 if learning.weights == "latent" else 1) * weights
    if learning.scope == "block":
        kept = moments // spec.num_layers + learning.batch * block
    else:
        streams = length * spec.hidden_size * 4 * spec.num_layers
        passes = streams + block if learning.save_memory else block * spec.num_layers
        kept = moments + learning.batch * (passes + logits)
    return integers * 5 + 2 * weights + kept


def _moments_memory(spec: ModelSpec) -> int:
    """What learned rotations keep of every layer, twice but for the down projection's inputs."""
    return 4 * spec.num_layers * (10 * spec.hidden_size**2 + spec.intermediate_size**2)


def _backward_memory(spec: ModelSpec, length: int) -> int:
    """What one window keeps for its backward pass through the whole model."""
    return _block_pass_memory(spec, length) * spec.num_layers + length * spec.vocab_size * 4 * 4


def _block_pass_memory(spec: ModelSpec, length: int) -> int:
    """What one window keeps for its backward pass through one block."""
    return length * (8 * spec.hidden_size + 10 * spec.intermediate_size + 6 * spec.num_heads * length) * 4

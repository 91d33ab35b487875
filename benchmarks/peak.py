"""What a device can do, and what a model asks for."""

import sys
import time
from collections.abc import Callable
from typing import Any

PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOP/s by `device_kind`, from the makers' data sheets."""


def peak_of(device: Any) -> Callable[[], float]:
    """A function that gives the peak FLOP/s: of a matrix product measured when it is called on a CPU, of the table
    elsewhere."""
    import jax
    import jax.numpy as jnp

    if device.platform != "cpu":
        if device.device_kind not in PEAK:
            sys.exit(f"error: the peak of {device.device_kind!r} is not known: known are {', '.join(PEAK)}")
        return lambda: PEAK[device.device_kind]
    size = 2048
    product = jax.jit(jnp.matmul)
    a, b = (jax.random.normal(jax.random.key(seed), (size, size)) for seed in range(2))
    product(a, b).block_until_ready()

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(8):
            product(a, b).block_until_ready()
        return 8 * 2 * size**3 / (time.perf_counter() - start)

    return measure


def forward_flops(model: Any, length: int) -> float:
    """FLOPs a token of reading a row: two for every weight that is multiplied with, and attention.

    Each of the two products of a layer's attention meets every key, or where the model is causal half of them on
    average. Nothing that is computed again counts.
    """
    from transformer_zoo import registry, trees

    config = model.config
    flat = trees.flatten(registry.param_shapes(model))
    weights = sum(leaf.size for path, leaf in flat.items() if path.endswith("kernel"))
    if hasattr(type(model), "logits") and model.task in ("causal-lm", "masked-lm"):
        weights += config.vocab_size * flat["token_embed/embedding"].shape[1]
    keys = length / 2 if model.task == "causal-lm" else length
    return 2 * weights + 4 * config.num_layers * keys * config.width

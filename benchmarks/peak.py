"""The peaks of devices, and the FLOPs and bytes that a model needs."""

import math
import re
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
BANDWIDTH = {
    "TPU v4": 1.2e12,
    "TPU v5 lite": 0.819e12,
    "TPU v5": 2.765e12,
    "TPU v5p": 2.765e12,
    "TPU v6 lite": 1.64e12,
    "NVIDIA A100-SXM4-40GB": 1.555e12,
    "NVIDIA A100-SXM4-80GB": 2.039e12,
    "NVIDIA H100 80GB HBM3": 3.35e12,
    "NVIDIA H200": 4.8e12,
}
"""Bytes a second of a device's memory, from the same data sheets."""


def peak_of(device: Any) -> Callable[[], float]:
    """A function that returns the peak FLOP/s: on a CPU, measured on a matrix product at each call; elsewhere, from the
    table."""
    if device.platform == "cpu":
        return product_rate(2048, "float32")
    if device.device_kind not in PEAK:
        sys.exit(f"error: the peak of {device.device_kind!r} is not known: known are {', '.join(PEAK)}")
    return lambda: PEAK[device.device_kind]


def bandwidth_of(device: Any) -> Callable[[], float]:
    """A function that returns the bytes a second that memory is read at: from the table or, on a device that it lacks,
    measured at each call."""
    if device.device_kind in BANDWIDTH:
        return lambda: BANDWIDTH[device.device_kind]
    return read_rate(2**28)


def product_rate(size: int, dtype: str, times: int = 8) -> Callable[[], float]:
    """A function that measures the FLOP/s of a product of two square matrices, computed so many times."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    a, b = (jax.random.normal(jax.random.key(seed), (size, size), dtype) for seed in range(2))
    return lambda: 2 * size**3 / _seconds(lambda: product(a, b), times)


def copy_rate(size: int, times: int = 8) -> Callable[[], float]:
    """A function that measures the bytes a second, read and written, of a copy of `size` bytes."""
    import jax
    import jax.numpy as jnp

    copy = jax.jit(lambda x: x + 1)
    x = jnp.zeros(size // 4, jnp.float32)
    return lambda: 2 * x.nbytes / _seconds(lambda: copy(x), times)


def read_rate(size: int, times: int = 4) -> Callable[[], float]:
    """A function that measures the bytes a second that an array of `size` bytes is read at."""
    import jax
    import jax.numpy as jnp

    total, x = jax.jit(jnp.sum), jnp.ones(size // 4, jnp.float32)
    return lambda: x.nbytes / _seconds(lambda: total(x), times)


def _seconds(call: Callable[[], Any], times: int) -> float:
    """The mean seconds of a call, over this number of calls in succession."""
    call().block_until_ready()
    start = time.perf_counter()
    for _ in range(times):
        result = call()
    result.block_until_ready()
    return (time.perf_counter() - start) / times


def forward_flops(model: Any, length: int, *, target: int = 0, predicted: int | None = None) -> float:
    """FLOPs of the forward pass of a row: two for every weight that a token is multiplied with, and attention.

    Each of the two products of attention counts the keys that a query sees: half of them on average in a causal model,
    those in the window in a local layer. Lookups of embeddings and recomputation count as 0.

    Args:
        length: tokens of the row, or of the source.
        target: tokens of the target.
        predicted: number of tokens whose logits are computed. None: all of the row, or of the target.
    """
    predicted = (target or length) if predicted is None else predicted
    flops = 2 * _output_weights(model) * predicted
    for path, leaf in _kernels(model):
        flops += 2 * leaf.size * _tokens(path, length, target, predicted)
        if re.search(r"(^|/)query/kernel$", path):
            layers, _, heads, size = leaf.shape
            flops += 4 * heads * size * _pairs(model, path, layers, length, target)
    return flops


def step_bytes(model: Any, batch: int, held: float, source: float = 0) -> float:
    """Bytes that a decoder must read to generate a token in each of `batch` rows: every weight of a product once, and
    the keys and values of the `held` tokens in each row's cache, and of the `source` tokens of each row."""
    import jax.numpy as jnp

    weights, kept = _output_weights(model), 0.0
    for path, leaf in _kernels(model):
        if path.startswith("encoder_blocks/"):
            continue
        of_source = re.match(r"decoder_blocks/cross_attention/(key|value)/", path)  # computed once
        weights += 0 if of_source else leaf.size
        if re.search(r"(^|/)(key|value)/kernel$", path):
            kept += leaf.size // leaf.shape[1] * (source if of_source else held)
    stored, computed = (jnp.dtype(name).itemsize for name in (model.compute.param_dtype, model.compute.dtype))
    return stored * weights + computed * kept * batch


def _kernels(model: Any) -> list[tuple[str, Any]]:
    """Paths and shapes of the weights of dense layers."""
    from transformer_zoo import registry, trees

    flat = trees.flatten(registry.param_shapes(model))
    return [(path, leaf) for path, leaf in flat.items() if path.endswith("kernel")]


def _output_weights(model: Any) -> int:
    """The number of weights of the output layer, which may be tied to the embeddings."""
    from transformer_zoo import registry, trees

    if model.task not in ("causal-lm", "masked-lm", "seq2seq-lm"):
        return 0
    table = trees.flatten(registry.param_shapes(model))["token_embed/embedding"]
    return model.config.vocab_size * table.shape[1]


def _tokens(path: str, length: int, target: int, predicted: int) -> int:
    """The number of a row's tokens that are multiplied with a weight."""
    counts = {
        r"pooler/": 1,
        r"(lm_)?head/": predicted,
        r"decoder_blocks/cross_attention/(key|value)/": length,
        r"decoder_blocks/": target,
    }
    return next((tokens for pattern, tokens in counts.items() if re.match(pattern, path)), length)


def _pairs(model: Any, path: str, layers: int, length: int, target: int) -> float:
    """Visible pairs of query and key, over the layers of a stack."""
    if path.startswith("decoder_blocks/cross_attention/"):
        return layers * target * length
    if path.startswith("decoder_blocks/"):
        return layers * target * target / 2
    if model.task == "causal-lm":
        return layers * length * length / 2
    if hasattr(model.config, "global_every"):
        global_layers = math.ceil(layers / model.config.global_every)
        reach = min(model.config.window // 2, length - 1)
        near = length * (2 * reach + 1) - reach * (reach + 1)  # a window is cut off at the ends of a row
        return global_layers * length * length + (layers - global_layers) * near
    return layers * length * length

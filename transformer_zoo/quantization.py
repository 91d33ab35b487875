"""Weight-only quantisation of any family's model: which parameters are held in few bits (`nn/quantized.py`)."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo import arguments, registry, sharding, trees
from transformer_zoo.nn import quantized
from transformer_zoo.nn.embedding import TokenEmbedding
from transformer_zoo.nn.experts import ExpertLayers
from transformer_zoo.nn.lora import LINEAR
from transformer_zoo.nn.stack import STACKED

KEPT = r".*/(router|delta/(decay|beta))"
"""Small layers that stay as they are: a router with an error chooses other experts, and errors of decay add up."""


def quantize(m: arguments.Loaded, format: str) -> Any:
    """The model with its matrices in few bits, to generate, predict, embed and evaluate: the kernels of the linear
    layers and experts in its blocks, and the token embeddings. That saves memory, not time.

    Each number is rounded to the nearest level of its block. The relative error of weights is about 1 % for int8 and
    10 % for the others. Matrices are expanded to numbers where they are used, one layer after another, and so is the
    table of tokens. With one token a row that takes longer than the product: about 1.2 to 1.4 times as long as bfloat16
    on an H200; on a CPU, 2.5 times as long as float32 for one row (int8), 1.5 times for eight. The compiler of a TPU
    expands them inside of the products, without memory of their size.

    Args:
        m: its own parameters stay as they are.
        format: "int8", a scale for each output; "int4" and "nf4", a scale for each output and block of at most 64
            inputs: 4.5 bits a number. Those of nf4 are quantiles of the normal distribution (Dettmers et al. 2023).
            Token embeddings are int8 in each format, and so are matrices with an odd number of inputs.

    Raises:
        ValueError: an unknown format, or a model that is quantised already.
        TypeError: an argument of another type.
    """
    arguments.check(quantize, locals())
    check_format(format, "format")
    refuse(m.params, "quantize")
    return dataclasses.replace(m, params=quantized_params(m.model, m.params, format))


def check_format(format: str, name: str) -> None:
    """Raises ValueError unless there is such a format; name: of the argument that gives it."""
    if format not in quantized.FORMATS:
        raise ValueError(f"{name} is {format!r}: choose one of {', '.join(quantized.FORMATS)}")


def refuse(params: trees.Tree, function: str) -> None:
    """Raises ValueError if some parameters are quantised, for a function that needs their numbers."""
    if quantized.has_quantized(params):
        raise ValueError(
            f"{function}: the model is quantised. Pass the one that zoo.quantize made it from, or one that was loaded "
            "without quantize"
        )


def quantized_params(
    model: nn.Module, params: trees.Tree, format: str, chosen: Callable[[str], bool] = lambda path: True
) -> trees.Tree:
    """A model's parameters with its matrices quantised, each in its sharding.

    Args:
        chosen: whether the parameter of a path may be.
    """
    of = quantized_parameter(model, format)
    return trees.map_paths(lambda path, x: of(path, x) if chosen(path) else x, params)


def quantized_parameter(model: nn.Module, format: str) -> Callable[[str, Any], Any]:
    """The parameter of a path as a quantised model has it: by a function, so that they can be quantised one by one."""
    axes = matrices(model)

    def of(path: str, x: Any) -> Any:
        if path not in axes:
            return x
        own = "int8" if path.endswith("/embedding") else format
        return _quantized(path, jnp.asarray(x), own, axes[path])

    return of


def _quantized(path: str, x: jax.Array, format: str, inputs: tuple[int, ...]) -> quantized.Quantized:
    found = _compiled(x, format, inputs)
    if isinstance(x, jax.core.Tracer) or not isinstance(x.sharding, jax.sharding.NamedSharding):
        return found
    (shardings,) = trees.flatten(sharding.param_shardings({path: found}, x.sharding.mesh)).values()
    return jax.device_put(found, shardings)


_compiled = jax.jit(quantized.quantized, static_argnames=("format", "inputs"))


@functools.lru_cache(maxsize=32)
def matrices(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The parameters that can be quantised by their paths, and their axes of inputs, counted from the end."""
    found = {}
    for path, layer in registry.layers(model, (*LINEAR, ExpertLayers, TokenEmbedding)).items():
        if isinstance(layer, TokenEmbedding):
            found[f"{path}/embedding"] = (-1,)
        elif re.fullmatch(STACKED, path) and not re.fullmatch(KEPT, path):
            ins = len(layer.axis) if isinstance(getattr(layer, "axis", -1), tuple) else 1
            outs = len(layer.features) if isinstance(getattr(layer, "features", 1), tuple) else 1
            found[f"{path}/kernel"] = tuple(range(-ins - outs, -outs))
    return found

"""Matrices in few bits (weight-only quantisation). They are held as codes and scales, and a layer that asks for its
parameter gets numbers: it is expanded where it is used, layer by layer, and no module need know of it."""

import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.core import meta

FORMATS = ("int8", "int4", "nf4")
BLOCK = 64
"""The most inputs that share a scale in 4 bits (Dettmers et al. 2023, section 3)."""
_LEVELS = {"int8": 127, "int4": 7, "nf4": 1}
"""Format -> the level of the largest number of a block."""


class Quantized(struct.PyTreeNode, meta.AxisMetadata[jax.Array]):
    """A matrix [..., *I, *O] (inputs and outputs) in few bits, a leaf in a tree of parameters. Leading axes, such as
    those of stacked layers, may be cut.

    To flax it is a box around the array, which `Module.param` opens.
    """

    codes: jax.Array
    """int8, of the matrix's shape; or uint8 with two numbers of 4 bits in each, along `axis`."""
    scales: jax.Array
    """One for each output, or for each block of inputs and output: the inputs' axes have the size 1, or `axis` the
    number of blocks."""
    format: str = struct.field(pytree_node=False)
    axis: int = struct.field(pytree_node=False)
    """The last axis of the inputs, counted from the end."""
    dtype: Any = struct.field(pytree_node=False)
    """Of the expanded matrix."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the expanded matrix."""
        shape = list(self.codes.shape)
        shape[self.axis] *= 1 if self.format == "int8" else 2
        return tuple(shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def unbox(self) -> jax.Array:
        """The expanded matrix."""
        blocks = self.scales.shape[self.axis]
        x = _split(self._levels(), self.axis, blocks) * _split(self.scales, self.axis, blocks)
        return x.reshape(self.shape).astype(self.dtype)

    def _levels(self) -> jax.Array:
        """What the codes stand for, before it is scaled."""
        if self.format == "int8":
            return self.codes.astype(self.scales.dtype)
        shifts = jnp.array([0, 4], jnp.uint8).reshape(2, *[1] * (-1 - self.axis))
        pairs = _split(self.codes, self.axis, self.codes.shape[self.axis])  # [..., pairs, 1, ...]
        numbers = ((pairs >> shifts) & 15).reshape(self.shape)
        if self.format == "int4":
            return numbers.astype(self.scales.dtype) - 8
        # By comparisons, one for each bit: a TPU looks numbers up in a table one by one. With the zeros the levels
        # depend on the codes, or else JAX would compute an array of each outside of a scan.
        zeros = (numbers & 0).astype(self.scales.dtype)
        levels = [zeros + level for level in normal_levels()]
        for bit in range(4):
            is_set = (numbers >> bit) & 1 == 1
            levels = [jnp.where(is_set, high, low) for low, high in zip(levels[::2], levels[1::2])]
        return levels[0]

    def replace_boxed(self, val: Any) -> Any:
        return val

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Quantized":
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Quantized":
        return self


def quantized(x: jax.Array, format: str, inputs: Sequence[int]) -> Quantized:
    """A matrix in few bits: each number is rounded to the nearest level times the scale of its block, which is the
    largest absolute value in it over the largest level.

    Args:
        x: [..., *I, *O].
        format: "int8": 255 equal steps, a scale for each output; "int4" and "nf4": 15 equal steps, or 16 quantiles of
            the normal distribution (`normal_levels`), a scale for each output and block of inputs. A block is the
            largest part of the last input axis with at most `BLOCK` numbers. If this axis is odd, int8 is taken.
        inputs: the axes of the inputs, counted from the end, in order.
    """
    axis = inputs[-1]
    size = x.shape[axis]
    format = "int8" if size % 2 else format
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if format == "int8":
        blocks, largest = 1, jnp.abs(wide).max(axis=tuple(inputs), keepdims=True)
    else:
        blocks = min(n for n in range(1, size + 1) if size % n == 0 and size // n <= BLOCK)
        largest = jnp.abs(_split(wide, axis, blocks)).max(axis=axis)
    scales = jnp.where(largest > 0, largest, 1) / _LEVELS[format]
    levels = (_split(wide, axis, blocks) / _split(scales, axis, blocks)).reshape(x.shape)
    if format == "int8":
        codes = jnp.round(levels).astype(jnp.int8)
    else:
        nearest = jnp.round(levels) + 8 if format == "int4" else sum(levels > border for border in _borders())
        pairs = _split(nearest.astype(jnp.uint8), axis, size // 2)
        low, high = jnp.moveaxis(pairs, axis, 0)
        codes = low | high << 4
    return Quantized(codes, scales, format, axis, x.dtype)


def is_quantized(x: Any) -> bool:
    """Whether a leaf in a tree of parameters is quantised."""
    return isinstance(x, Quantized)


def has_quantized(params: Any) -> bool:
    """Whether some parameters in a tree are quantised."""
    return any(map(is_quantized, jax.tree.leaves(params, is_leaf=is_quantized)))


def in_turn(params: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    """Both as they are, but quantised parameters are not expanded before there is x, which they multiply: XLA would
    move that out of a decoding loop, and all of them would be in memory at once."""
    return jax.lax.optimization_barrier((params, x)) if has_quantized(params) else (params, x)


def relative_error(x: jax.Array, found: Quantized) -> jax.Array:
    """The root of the mean squared error of a quantised matrix, over that of its numbers: about 0.7 % of normally
    distributed ones in int8, 10 % in int4, 9 % in nf4."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.linalg.norm((found.unbox() - wide).ravel()) / jnp.linalg.norm(wide.ravel())


@functools.cache
def normal_levels() -> tuple[float, ...]:
    """The 16 levels of NF4: quantiles of the normal distribution, 7 below zero, zero and 8 above, scaled to [-1, 1]
    (Dettmers et al. 2023, section 3 and appendix E)."""
    last = 1 - (1 / 32 + 1 / 30) / 2
    quantile = statistics.NormalDist().inv_cdf
    below, above = ([quantile(last + (0.5 - last) * i / n) / quantile(last) for i in range(n)] for n in (7, 8))
    return (*(-x for x in below), 0.0, *reversed(above))


def _borders() -> np.ndarray:
    """Between neighbouring levels."""
    levels = np.array(normal_levels())
    return (levels[:-1] + levels[1:]) / 2


def _split(x: jax.Array, axis: int, parts: int) -> jax.Array:
    """An axis (counted from the end) as two: parts, and the numbers in each. With these, `axis` is the second one."""
    axis += x.ndim
    return x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])

"""How a model is computed: the settings that no checkpoint fixes. Every module gets them."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo import arguments, sharding
from transformer_zoo.nn.checks import check_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compute:
    """Settings of speed, memory and precision. None of them changes the meaning of the parameters.

    Raises:
        ValueError: an unknown dtype or rematerialisation, or an unroll below 1.
        TypeError: a setting of another type.
    """

    dtype: str = "float32"
    """The dtype of activations: float32, bfloat16, float16 or float64."""
    param_dtype: str = "float32"
    """The dtype of the parameters in memory."""
    attention: str = "auto"
    """The implementation of attention: auto, or a name in `kernels.IMPLEMENTATIONS`."""
    remat: str = "none"
    """Recomputed in the backward pass: none; dots: all except matrix products; full: all except the blocks' inputs."""
    unroll: int = 1
    """Layers per iteration of the scan over layers. All of them: slower to compile; about 10 % faster on a CPU, and
    38 % for a train step of BERT-base on a GPU, where the scan copies each saved activation."""

    def __post_init__(self) -> None:
        arguments.check(type(self), vars(self))
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(DTYPES)}")
        if self.remat not in REMAT:
            raise ValueError(f"remat is {self.remat!r}: choose one of {', '.join(REMAT)}")
        check_sizes(self, "unroll")

    @property
    def accumulation_dtype(self) -> Any:
        """The dtype of softmax, norm statistics, logits and loss: at least float32."""
        return jnp.promote_types(self.dtype, jnp.float32)

    @property
    def dense(self) -> Any:
        return functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype, dot_general=product)

    @property
    def dense_general(self) -> Any:
        return functools.partial(nn.DenseGeneral, dtype=self.dtype, param_dtype=self.param_dtype, dot_general=product)

    @property
    def layer_norm(self) -> Any:
        # The two-pass variance: the fast one, E[x^2] - E[x]^2, cancels in float32 where the mean is large.
        return functools.partial(nn.LayerNorm, dtype=self.dtype, param_dtype=self.param_dtype, use_fast_variance=False)

    @property
    def rms_norm(self) -> Any:
        """RMSNorm: without mean and bias (Zhang and Sennrich 2019); statistics in at least float32."""
        return functools.partial(nn.RMSNorm, dtype=self.dtype, param_dtype=self.param_dtype)

    @property
    def offset_rms_norm(self) -> Any:
        """RMSNorm whose parameter is the scale's difference from one, as in Gemma."""
        return functools.partial(OffsetRMSNorm, dtype=self.dtype, param_dtype=self.param_dtype)


class OffsetRMSNorm(nn.Module):
    """RMSNorm with the scale 1 + offset, which begins at zero; the product too is in at least float32."""

    epsilon: float = 1e-6
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = jnp.promote_types(self.dtype, jnp.float32)
        offset_D = self.param("offset", nn.initializers.zeros_init(), x.shape[-1:], self.param_dtype)
        x = nn.RMSNorm(epsilon=self.epsilon, dtype=wide, use_scale=False)(x)
        return (x * (1 + offset_D.astype(wide))).astype(self.dtype)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """Numbers pressed smoothly into (-cap, cap). None: as they are."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def product(x: jax.Array, kernel: jax.Array, dimensions: Any, precision: Any = None) -> jax.Array:
    """`lax.dot_general` for a dense layer: contracts the last dimensions of `x` with the first ones of `kernel`.

    On a single CPU, both are reshaped to matrices: with more dimensions, XLA copies transposes for the backward pass,
    10 % of a training step. Not on a mesh, where merging dimensions of different shardings would move the data.
    """
    over = len(dimensions[0][0])
    if sharding.platform() != "cpu" or jax.sharding.get_abstract_mesh().size > 1:
        return jax.lax.dot_general(x, kernel, dimensions, precision)
    rows, columns = x.shape[: x.ndim - over], kernel.shape[over:]
    width = math.prod(kernel.shape[:over])
    y = jax.lax.dot(x.reshape(-1, width), kernel.reshape(width, -1), precision=precision)
    return y.reshape(*rows, *columns)


def wide_einsum(formula: str, x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """`einsum` of two arrays with sums and results in `dtype`, which is at least as wide as theirs.

    On a CPU the arrays are converted first: matrix products are fastest in float32 there, and jax 0.7 has none of
    bfloat16 with sums in float32.
    """
    if sharding.platform() == "cpu":
        x, y = x.astype(dtype), y.astype(dtype)
    return jnp.einsum(formula, x, y, preferred_element_type=dtype)


DTYPES = ("float32", "bfloat16", "float16", "float64")
REMAT = ("none", "full", "dots")

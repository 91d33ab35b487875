"""Low-rank adapters (LoRA; Hu et al. 2021) beside the linear layers of any module, which need not know of them.

An adapted layer has, beside its kernel [*I, *O] (inputs and outputs), the parameters

  lora_a [*I, R], lora_b [R, *O]      their product, times a scale, is added to the kernel
  lora_magnitude [*O]                 with DoRA (Liu et al. 2024): the norm that each output's column then gets
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from transformer_zoo.nn.compute import product

A, B, MAGNITUDE = NAMES = "lora_a", "lora_b", "lora_magnitude"
LINEAR = (nn.Dense, nn.DenseGeneral)


@contextlib.contextmanager
def beside(scale: float, dropout: float = 0.0) -> Iterator[None]:
    """While this is open, linear layers with the parameters of an adapter add its output to theirs. Their kernels are
    not changed, no kernel is copied, and differentiation with respect to the adapters computes no gradient of a kernel.

    Args:
        scale: of the product of the factors.
        dropout: rate at which the inputs of the adapters are zeroed, where there is a key for dropout.
    """
    with nn.intercept_methods(functools.partial(_call, scale=scale, dropout=dropout)):
        yield


def _call(call: Any, args: Any, kwargs: Any, context: Any, *, scale: float, dropout: float) -> Any:
    module, y = context.module, call(*args, **kwargs)
    if not (isinstance(module, LINEAR) and context.method_name == "__call__" and module.has_variable("params", A)):
        return y
    variable = lambda name: meta.unbox(module.get_variable("params", name)).astype(y.dtype)
    x, base, a, b = args[0].astype(y.dtype), y, variable(A), variable(B)
    if module.use_bias:
        base = base - variable("bias")
    drops = dropout > 0 and module.has_rng("dropout")
    if drops:
        kept = jax.random.bernoulli(module.make_rng("dropout"), 1 - dropout, x.shape)
        x = jnp.where(kept, x / (1 - dropout), 0)
    inputs = a.ndim - 1
    low = scale * _times(_times(x, a, inputs), b, 1)
    if not module.has_variable("params", MAGNITUDE):
        return y + low
    kernel = variable("kernel")
    # The norm is a constant to the gradient (section 4.3).
    ratio = variable(MAGNITUDE) / jax.lax.stop_gradient(_norm_of_sum(kernel, scale * a, b, inputs))
    return y + (ratio - 1) * (_times(x, kernel, inputs) if drops else base) + ratio * low


def _times(x: jax.Array, kernel: jax.Array, inputs: int) -> jax.Array:
    """The product of a linear layer: the last axes of x with as many first ones of the kernel."""
    return product(x, kernel, ((tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))), ((), ())))


def column_norm(kernel: jax.Array, inputs: Iterable[int]) -> jax.Array:
    """The norm of each output's column, over these axes, in at least float32."""
    wide = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    return jnp.sqrt((wide * wide).sum(axis=tuple(inputs))).astype(kernel.dtype)


def _norm_of_sum(kernel: jax.Array, a: jax.Array, b: jax.Array, inputs: int) -> jax.Array:
    """`column_norm` of kernel + a b, without an array of the kernel's size, which the backward pass would keep."""
    dtype, wide = kernel.dtype, jnp.promote_types(kernel.dtype, jnp.float32)
    kernel, a, b = (x.astype(wide) for x in (kernel, a, b))
    axes = tuple(range(inputs))
    projected, gram = (jnp.tensordot(a, x, (axes, axes)) for x in (kernel, a))
    cross = b * (2 * projected + jnp.tensordot(gram, b, 1))
    return jnp.sqrt((kernel * kernel).sum(axis=axes) + cross.sum(axis=0)).astype(dtype)


def merged(
    kernel: jax.Array, a: jax.Array, b: jax.Array, magnitude: jax.Array | None, scale: float, stacked: int
) -> jax.Array:
    """A kernel with its adapter in it, computed in at least float32 and in the kernel's dtype.

    Args:
        stacked: the leading axes of all four along which layers are stacked.
    """
    if stacked:
        each = functools.partial(merged, scale=scale, stacked=stacked - 1)
        if magnitude is None:
            return jax.vmap(lambda kernel, a, b: each(kernel, a, b, None))(kernel, a, b)
        return jax.vmap(each)(kernel, a, b, magnitude)
    wide = jnp.promote_types(jnp.result_type(kernel, a), jnp.float32)
    changed = kernel.astype(wide) + scale * jnp.tensordot(a.astype(wide), b.astype(wide), 1)
    if magnitude is not None:
        changed *= magnitude.astype(wide) / column_norm(changed, range(a.ndim - 1))
    return changed.astype(kernel.dtype)


def fresh(key: jax.Array, shape: tuple[int, ...], stacked: int, dtype: Any) -> jax.Array:
    """A first factor before training: uniform in +-1/sqrt(inputs). The second one begins at zero."""
    bound = math.prod(shape[stacked:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

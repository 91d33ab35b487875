"""ALiBi: attention knows positions by a penalty of the scores that grows with the distance (Press et al. 2021)."""

import jax
import jax.numpy as jnp
import numpy as np


def slopes(num_heads: int) -> np.ndarray:
    """float64[H]: the penalty of each head for a distance of one token (section 3; for a number of heads that is no
    power of two, the code released with it).

    For n heads, a power of two, they are 2^(-8/n), 2^(-16/n), ..., 2^-8. Further heads have every other slope of those
    for 2n heads.
    """
    n = 1 << (num_heads.bit_length() - 1)
    further_H = 2.0 ** (-4 / n * np.arange(1, 2 * n, 2))
    return np.concatenate([2.0 ** (-8 / n * np.arange(1, n + 1)), further_H[: num_heads - n]])


def bias(ahead_BTS: jax.Array, num_heads: int, dtype: jnp.dtype) -> jax.Array:
    """The biases [B or 1, H, T, S] of the scores, from the position of each key minus the query's."""
    return jnp.asarray(slopes(num_heads), dtype)[:, None, None] * ahead_BTS[:, None].astype(dtype)


def narrow_bias(positions_BS: jax.Array, num_heads: int, dtype: jnp.dtype) -> jax.Array:
    """The biases [B or 1, H, 1, S] of a model that was trained with products of slopes and of the keys' positions in
    bfloat16: they do not grow evenly, so that they depend on the positions and not only on the distances."""
    narrow = lambda x: jax.lax.reduce_precision(x.astype(dtype), exponent_bits=8, mantissa_bits=7)
    return narrow(narrow(jnp.asarray(slopes(num_heads)))[:, None, None] * narrow(positions_BS)[:, None, None])

"""One vector for a row of hidden states, of what is real in it."""

import jax
import jax.numpy as jnp


def first(hidden_BTD: jax.Array, valid_BT: jax.Array) -> jax.Array:
    """The first real token's: [B, D]."""
    return _at(hidden_BTD, jnp.argmax(valid_BT, axis=1))


def last(hidden_BTD: jax.Array, valid_BT: jax.Array) -> jax.Array:
    """The last real token's: [B, D]."""
    return _at(hidden_BTD, valid_BT.shape[1] - 1 - jnp.argmax(valid_BT[:, ::-1], axis=1))


def mean(hidden_BTD: jax.Array, valid_BT: jax.Array, power: float = 1.0) -> jax.Array:
    """The sum, divided by this power of the number of tokens, in at least float32: [B, D]."""
    real_BTD = jnp.where(valid_BT[..., None], hidden_BTD, 0).astype(jnp.promote_types(hidden_BTD.dtype, jnp.float32))
    count_B1 = jnp.maximum(valid_BT.sum(axis=1, keepdims=True), 1).astype(real_BTD.dtype)
    return real_BTD.sum(axis=1) / count_B1**power


def largest(hidden_BTD: jax.Array, valid_BT: jax.Array) -> jax.Array:
    """Of each component the largest: [B, D]."""
    return jnp.where(valid_BT[..., None], hidden_BTD, jnp.finfo(hidden_BTD.dtype).min).max(axis=1)


def _at(hidden_BTD: jax.Array, where_B: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden_BTD, where_B[:, None, None], axis=1)[:, 0]

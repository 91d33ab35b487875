"""Pooling: one vector for a row of hidden states."""

import jax
import jax.numpy as jnp

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken")
"""The poolings of sentence-transformers, in the order in which it concatenates several of them by default."""


def pool(name: str, hidden_BTD: jax.Array, counted_BT: jax.Array) -> jax.Array:
    """One of `POOLINGS` over the tokens that count: [B, D].

    Raises:
        ValueError: an unknown pooling.
    """
    match name:
        case "cls":
            return first(hidden_BTD, counted_BT)
        case "max":
            return largest(hidden_BTD, counted_BT)
        case "mean":
            return mean(hidden_BTD, counted_BT)
        case "mean_sqrt_len":
            return mean(hidden_BTD, counted_BT, power=0.5)
        case "weightedmean":
            return mean(hidden_BTD, counted_BT * jnp.arange(1, counted_BT.shape[1] + 1))
        case "lasttoken":
            return last(jnp.where(counted_BT[..., None], hidden_BTD, 0), counted_BT)  # zero where none counts
    raise ValueError(f"there is no pooling {name!r}: choose among {', '.join(POOLINGS)}")


def first(hidden_BTD: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
    """The hidden state of the first real token: [B, D]. None: all tokens are real."""
    return hidden_BTD[:, 0] if valid_BT is None else _at(hidden_BTD, jnp.argmax(valid_BT, axis=1))


def last(hidden_BTD: jax.Array, valid_BT: jax.Array) -> jax.Array:
    """The hidden state of the last real token: [B, D]."""
    return _at(hidden_BTD, valid_BT.shape[1] - 1 - jnp.argmax(valid_BT[:, ::-1], axis=1))


def mean(hidden_BTD: jax.Array, weights_BT: jax.Array, power: float = 1.0) -> jax.Array:
    """The weighted sum of the hidden states, divided by (sum of the weights) ** power; in at least float32: [B, D].

    Boolean weights mark the real tokens. The result is zero where all weights are zero.
    """
    dtype = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
    weights_BT1 = weights_BT[..., None].astype(dtype)
    total_BD = jnp.where(weights_BT1 != 0, hidden_BTD.astype(dtype) * weights_BT1, 0).sum(axis=1)
    return total_BD / jnp.maximum(weights_BT1.sum(axis=1), 1e-9) ** power


def largest(hidden_BTD: jax.Array, valid_BT: jax.Array) -> jax.Array:
    """The elementwise maximum over the real tokens: [B, D]."""
    return jnp.where(valid_BT[..., None], hidden_BTD, jnp.finfo(hidden_BTD.dtype).min).max(axis=1)


def _at(hidden_BTD: jax.Array, where_B: jax.Array) -> jax.Array:
    return jnp.take_along_axis(hidden_BTD, where_B[:, None, None], axis=1)[:, 0]

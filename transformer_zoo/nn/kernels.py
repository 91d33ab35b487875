"""Scaled dot-product attention, in several implementations of one function. The plain one is the reference."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo.nn.masks import Mask


def weights(
    q_BTHK: jax.Array, k_BSGK: jax.Array, *, mask: Mask | None, bias: jax.Array | None, scale: Any
) -> jax.Array:
    """softmax(scale * q k + bias) over the keys that are seen: [B, H, T, S], in at least float32.

    A query that sees no key at all gets equal weights: finite, and nobody's business.
    """
    B, T, H, K = q_BTHK.shape
    S, G = k_BSGK.shape[1:3]
    wide = jnp.promote_types(q_BTHK.dtype, jnp.float32)
    q_BTGRK = q_BTHK.reshape(B, T, G, H // G, K)  # R queries to a group
    scores = jnp.einsum("BTGRK,BSGK->BGRTS", q_BTGRK, k_BSGK, preferred_element_type=wide).reshape(B, H, T, S)
    scores_BHTS = scores * scale if bias is None else scores * scale + bias
    seen = None if mask is None else mask.dense(T, S)
    if seen is not None:
        scores_BHTS = jnp.where(seen, scores_BHTS, jnp.finfo(wide).min)
    return jax.nn.softmax(scores_BHTS, axis=-1)


def mix(weights_BHTS: jax.Array, v_BSGK: jax.Array) -> jax.Array:
    """The values in these proportions: [B, T, H, K]."""
    B, H, T, S = weights_BHTS.shape
    G, K = v_BSGK.shape[2:]
    weights_BGRTS = weights_BHTS.astype(v_BSGK.dtype).reshape(B, G, H // G, T, S)
    return jnp.einsum("BGRTS,BSGK->BTGRK", weights_BGRTS, v_BSGK).reshape(B, T, H, K)


def plain(q_BTHK, k_BSGK, v_BSGK, *, mask, bias, scale):
    """The definition, in the open; XLA fuses what it can."""
    return mix(weights(q_BTHK, k_BSGK, mask=mask, bias=bias, scale=scale), v_BSGK)


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {"xla": plain}


def attend(
    q_BTHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    *,
    mask: Mask | None = None,
    bias: jax.Array | None = None,
    scale: Any = 1.0,
    implementation: str = "auto",
) -> jax.Array:
    """Attention [B, T, H, K] of H query heads over G key and value heads (G divides H).

    Raises:
        ValueError: an unknown implementation, or one that cannot do what is asked of it.
    """
    name = "xla" if implementation == "auto" else implementation
    return IMPLEMENTATIONS[name](q_BTHK, k_BSGK, v_BSGK, mask=mask, bias=bias, scale=scale)

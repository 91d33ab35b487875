"""Positions, counted over the real tokens, so that padding and packing do not change a result."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.checks import check_like
from transformer_zoo.nn.masks import Mask


def decoder_inputs(
    tokens_BT: jax.Array,
    valid_BT: jax.Array | None,
    positions_BT: jax.Array | None,
    documents_BT: jax.Array | None,
    cache: Cache | None,
) -> tuple[jax.Array, Any, Any, Cache | None]:
    """The inputs of a decoder's first block: positions [B or 1, T], causal mask, where the cache is written, and the
    cache with new slots. Of a cache with a ring, the mask and where it is written are pairs, of layers with a slot for
    each token and of those with the ring (`cache.of_layer`).

    A position is the number of real tokens before it in its row (cached ones included) or, in a packed row, in its
    document.

    Raises:
        ValueError: a shape that differs from the tokens', or packed rows together with a cache.
    """
    for name, x in (("valid_BT", valid_BT), ("positions_BT", positions_BT), ("documents_BT", documents_BT)):
        check_like(x, tokens_BT, name)
    if valid_BT is not None:
        valid_BT = jnp.asarray(valid_BT).astype(bool)
    if cache is None:
        mask = Mask(causal=True, valid_BS=valid_BT, documents_BT=documents_BT, documents_BS=documents_BT)
        before, start = 0, 0
    else:
        if documents_BT is not None:
            raise ValueError("documents_BT and a cache do not go together: decode one document in a row")
        valid_BT = jnp.ones(tokens_BT.shape, bool) if valid_BT is None else valid_BT
        start = cache.length
        before = cache.valid_BS.sum(axis=1, keepdims=True)
        cache = cache.admit(valid_BT)
        # Of a window: there may be padding between two calls.
        ahead_BTS = distances(tokens_BT.shape[1], cache)
        mask = Mask(causal=True, offset=start, valid_BS=cache.valid_BS, ahead_BTS=ahead_BTS)
        if cache.ring is not None:
            position_BT = (before + jnp.cumsum(valid_BT, axis=1) - 1).astype(jnp.int32)
            ring, slots, seen_BS = cache.ring.admit(position_BT, valid_BT)
            ahead_BTS = seen_BS[:, None] - position_BT[:, :, None]
            # Slots are in no order: what is ahead is beyond every window.
            ahead_BTS = jnp.where(ahead_BTS > 0, ring.window, ahead_BTS)
            of_ring = Mask(causal=True, offset=seen_BS.shape[1], valid_BS=seen_BS >= 0, ahead_BTS=ahead_BTS)
            mask, start, cache = (mask, of_ring), (start, slots), cache.replace(ring=ring)
    if positions_BT is None:
        positions_BT = before + positions_of(tokens_BT.shape[1], valid_BT, documents_BT)
    return positions_BT, mask, start, cache


def encoder_inputs(
    tokens_BT: jax.Array,
    valid_BT: jax.Array | None,
    positions_BT: jax.Array | None,
    documents_BT: jax.Array | None = None,
) -> tuple[jax.Array, Mask]:
    """The inputs of an encoder's first block: positions [B or 1, T] and mask. In a packed row, positions count from
    the beginning of the document."""
    valid_BT = None if valid_BT is None else jnp.asarray(valid_BT).astype(bool)
    if positions_BT is None:
        positions_BT = positions_of(tokens_BT.shape[1], valid_BT, documents_BT)
    return positions_BT, Mask(valid_BS=valid_BT, documents_BT=documents_BT, documents_BS=documents_BT)


def cross_inputs(
    target_BT: jax.Array,
    source: jax.Array | None,
    valid_BS: jax.Array | None,
    source_documents_BS: jax.Array | None,
    target_documents_BT: jax.Array | None,
    cache: Cache | None,
) -> tuple[Mask, Cache | None]:
    """The mask of cross-attention: the real tokens of the source and, in packed rows, only the target's own document.

    Only the shape of the source matters, [B, S, ...]: its ids may stand for the encoded source. With a cache, the
    source's padding is stored in it at the first call and read from it later.

    Raises:
        ValueError: there is no source, shapes differ, or one side is packed and the other is not.
    """
    if cache is not None and cache.cross is not None:
        return Mask(valid_BS=cache.cross_valid_BS), cache
    if source is None:
        raise ValueError("there is neither encoded_BSD nor a cache that has seen it: pass what `encode` returns")
    shape = source.shape[:2]
    if shape[0] != target_BT.shape[0]:
        raise ValueError(
            f"the source has {shape[0]} rows and the target {target_BT.shape[0]}: a row of one belongs to a row of "
            "the other"
        )
    if (source_documents_BS is None) != (target_documents_BT is None):
        raise ValueError("source_documents_BS and target_documents_BT go together: give both or none")
    like = jax.ShapeDtypeStruct(shape, bool)
    check_like(valid_BS, like, "valid_BS")
    check_like(source_documents_BS, like, "source_documents_BS")
    valid_BS = None if valid_BS is None else jnp.asarray(valid_BS).astype(bool)
    if cache is not None:
        valid_BS = jnp.ones(shape, bool) if valid_BS is None else valid_BS
        cache = cache.replace(cross_valid_BS=valid_BS)
    return Mask(valid_BS=valid_BS, documents_BT=target_documents_BT, documents_BS=source_documents_BS), cache


def distances(T: int, cache: Cache | None = None) -> jax.Array:
    """int32[B or 1, T, S]: the position of each key minus the query's; negative behind the query.

    Without a cache, positions are slots. With a cache, which already has the slots of the T queries, they count the
    real tokens, because there may be padding between two calls.
    """
    if cache is None:
        return (jnp.arange(T) - jnp.arange(T)[:, None])[None]
    position_BS = jnp.cumsum(cache.valid_BS, axis=1, dtype=jnp.int32)
    slot_BT = jnp.reshape(cache.length, (-1, 1)) - T + jnp.arange(T)
    position_BT = jnp.take_along_axis(position_BS, slot_BT, axis=1)
    return position_BS[:, None] - position_BT[:, :, None]


def positions_of(T: int, valid_BT: jax.Array | None, documents_BT: jax.Array | None) -> jax.Array:
    """int32[B or 1, T]: the number of real tokens before each token in its row, or in its document."""
    if documents_BT is not None:
        slot_T = jnp.arange(T)
        starts_BT = jnp.concatenate([jnp.ones_like(documents_BT[:, :1]), jnp.diff(documents_BT, axis=1)], axis=1) != 0
        return slot_T - jax.lax.cummax(jnp.where(starts_BT, slot_T, 0), axis=1)
    if valid_BT is not None:
        return jnp.maximum(jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32) - 1, 0)
    return jnp.arange(T)[None]


def sinusoids(length: int, width: int) -> np.ndarray:
    """float64[T, D]: sinusoidal position embeddings (Vaswani et al. 2017, section 3.5), of wavelengths from 2 pi to
    20000 pi. All sines come first, then all cosines; in the paper they alternate."""
    angles_TK = np.arange(length)[:, None] / np.power(10000.0, np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles_TK), np.cos(angles_TK[:, : width // 2])], axis=1)


def relative_buckets(T: int, num_buckets: int, farthest: int, causal: bool = False) -> np.ndarray:
    """int32[2T - 1]: the bucket of each distance from a query to a key, 1 - T to T - 1 (Raffel et al. 2020, section
    2.1).

    Half of the buckets are for keys behind the query, or all of them if `causal`. In each direction, the first half of
    the buckets hold one distance each. The others widen logarithmically; the last holds `farthest` and all beyond.
    """
    ahead_R = np.arange(1 - T, T)
    away_R = np.maximum(-ahead_R, 0) if causal else np.abs(ahead_R)
    side = num_buckets if causal else num_buckets // 2
    near = side // 2
    far_R = np.maximum(away_R, near)
    growing_R = near + (np.log(far_R / near) / np.log(farthest / near) * (side - near)).astype(int)
    bucket_R = np.where(away_R < near, away_R, np.minimum(growing_R, side - 1))
    return (bucket_R if causal else bucket_R + side * (ahead_R > 0)).astype(np.int32)

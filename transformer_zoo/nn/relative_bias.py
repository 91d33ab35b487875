"""Relative position bias: a bias of the attention scores by distance, as in T5."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.positions import relative_buckets


class RelativeBias(nn.Module):
    """A learned bias for each head and each bucket of distances (Raffel et al. 2020, section 2.1)."""

    num_buckets: int
    num_heads: int
    farthest: int
    """Distances from this one on share a bucket."""
    compute: Compute
    init: Any
    causal: bool = False
    """Attention is causal: no bucket is for keys ahead of the query."""

    @nn.compact
    def __call__(self, ahead_BTS: jax.Array) -> jax.Array:
        """The biases [B or 1, H, T, S] of `positions.distances`, in at least float32."""
        S = ahead_BTS.shape[-1]
        table_RH = self.param("embedding", self.init, (self.num_buckets, self.num_heads), self.compute.param_dtype)
        by_distance_RH = table_RH[relative_buckets(S, self.num_buckets, self.farthest, self.causal)]
        by_distance_RH = jnp.asarray(by_distance_RH, self.compute.accumulation_dtype)
        return jnp.moveaxis(by_distance_RH[ahead_BTS + S - 1], -1, 1)

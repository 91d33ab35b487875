"""A bias of the scores by distance: T5's way to know the order of tokens."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.positions import relative_buckets


class RelativeBias(nn.Module):
    """A number for each head and each bucket of distances (Raffel et al. 2020, section 2.1), added to the scores."""

    num_buckets: int
    num_heads: int
    farthest: int
    """Distances from here on share a bucket."""
    compute: Compute
    init: Any
    causal: bool = False
    """Whether the keys ahead of a query are never seen, so that no bucket is for them."""

    @nn.compact
    def __call__(self, ahead_BTS: jax.Array) -> jax.Array:
        """Of `positions.distances`, all of them less than S, the biases [B or 1, H, T, S] in at least float32."""
        S = ahead_BTS.shape[-1]
        table_RH = self.param("embedding", self.init, (self.num_buckets, self.num_heads), self.compute.param_dtype)
        by_distance_RH = table_RH[relative_buckets(S, self.num_buckets, self.farthest, self.causal)]
        return jnp.moveaxis(by_distance_RH.astype(self.compute.wide)[ahead_BTS + S - 1], -1, 1)

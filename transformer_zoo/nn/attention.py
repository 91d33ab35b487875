"""Attention: projections, and the two verbs `keys_values` and `__call__`. It knows nothing of caching or of sharding.

The alphabet, in names and in einsums alike, throughout the package:
  B batch   T query positions   S key or source positions   L layers   D width   H query heads   G key and value heads
  K size of one head   F width of the MLP   V vocabulary   C classes
"""

import functools
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo.nn import kernels
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.positions import rotate


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2); with G < H, grouped queries (Ainslie et al. 2023)."""

    num_heads: int
    head_dim: int
    compute: Compute
    num_kv_heads: int | None = None
    use_bias: bool = True
    key_bias: bool = True
    """Whether the keys too have a bias, where there are any: no weight depends on it."""
    dropout: float = 0.0
    init: Any = nn.initializers.lecun_normal()
    out_init: Any = nn.initializers.lecun_normal()
    query_init: Any = None
    """None: as `init`, which that of keys and values is."""

    def setup(self) -> None:
        project = functools.partial(self.compute.dense_general, axis=-1, kernel_init=self.init)
        shape = (self.num_kv_heads or self.num_heads, self.head_dim)
        self.query = project(
            (self.num_heads, self.head_dim), use_bias=self.use_bias, kernel_init=self.query_init or self.init
        )
        self.key = project(shape, use_bias=self.use_bias and self.key_bias)
        self.value = project(shape, use_bias=self.use_bias)

    def keys_values(self, y_BSD: jax.Array, rotation: Any = None) -> tuple[jax.Array, jax.Array]:
        """(k_BSGK, v_BSGK) of what is attended to; with a `positions.rotation` the keys are turned by it."""
        k_BSGK = self.key(y_BSD)
        return k_BSGK if rotation is None else rotate(k_BSGK, rotation), self.value(y_BSD)

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        kv: tuple[jax.Array, jax.Array],
        *,
        mask: Mask | None = None,
        bias: jax.Array | None = None,
        scale: Any = None,
        rotation: Any = None,
        train: bool = False,
    ) -> jax.Array:
        """Attends from x_BTD, its queries turned by the rotation if there is one, to keys and values; scale None is
        1/sqrt(K).

        Where the weights are asked for (`mutable=["intermediates"]`: `weights_BHTS`, and what they come of) or dropped
        out, they are computed in the open; otherwise by the fastest implementation that can.
        """
        q_BTHK, (k_BSGK, v_BSGK) = self.query(x_BTD), kv
        q_BTHK = q_BTHK if rotation is None else rotate(q_BTHK, rotation)
        how = {"mask": mask, "bias": bias, "scale": self.head_dim**-0.5 if scale is None else scale}
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        if self.is_mutable_collection("intermediates") or (train and self.dropout):
            weights_BHTS = kernels.weights(q_BTHK, k_BSGK, **how)
            sown = {"queries_BTHK": q_BTHK, "keys_BSGK": k_BSGK, "values_BSGK": v_BSGK, "weights_BHTS": weights_BHTS}
            for name, x in sown.items():
                self.sow("intermediates", name, x)
            # A barrier, or the random numbers become part of the products, and where there are not as many keys as
            # queries the stack of the TPU's compiler overflows.
            left_BHTS = jax.lax.optimization_barrier(dropout(weights_BHTS).astype(v_BSGK.dtype))
            y_BTHK = kernels.mix(left_BHTS, v_BSGK)
        else:
            y_BTHK = kernels.attend(q_BTHK, k_BSGK, v_BSGK, **how, implementation=self.compute.attention)
        out = self.compute.dense_general(
            x_BTD.shape[-1], axis=(-2, -1), use_bias=self.use_bias, kernel_init=self.out_init, name="out"
        )
        return out(y_BTHK)

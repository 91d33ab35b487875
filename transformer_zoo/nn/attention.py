"""Attention: the projections, and the methods `keys_values` and `__call__`. Caching and sharding are done elsewhere.

The letters of shapes, in names and in einsums, throughout the package:
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
from transformer_zoo.nn.rotary import rotate, rotate_queries


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2); with G < H, grouped queries (Ainslie et al. 2023)."""

    num_heads: int
    head_dim: int
    compute: Compute
    num_kv_heads: int | None = None
    use_bias: bool = True
    key_bias: bool = True
    """Whether the keys have a bias if `use_bias`. The attention weights do not depend on it."""
    out_bias: bool | None = None
    """Whether the output has a bias. None: as `use_bias`."""
    query_key_norm: Any = None
    """Makes the norms of queries and of keys, [B, T, heads, K]: over the elements of a head, or, with axes of its own,
    of all heads. None: there are none."""
    norm_values: Any = None
    """Makes the norm of the values, as `query_key_norm`. None: there is none."""
    values_are_keys: bool = False
    """Whether the values are what the keys are before norm and rotation, and have no projection of their own."""
    score_cap: float | None = None
    """Scores are pressed into (-cap, cap) before the softmax. None: they are not."""
    output_gate: bool = False
    """Whether the output of each head is multiplied by the sigmoid of a projection of x_BTD (Qiu et al. 2025)."""
    sinks: bool = False
    """Whether each head has a learned score of no key at all, to which a query may give its weight (Xiao et al. 2023,
    section 3.3)."""
    dropout: float = 0.0
    init: Any = nn.initializers.lecun_normal()
    out_init: Any = nn.initializers.lecun_normal()
    query_init: Any = None
    """Initialises the query projection. None: `init`, as for keys and values."""

    def setup(self) -> None:
        project = functools.partial(self.compute.dense_general, axis=-1, kernel_init=self.init)
        shape = (self.num_kv_heads or self.num_heads, self.head_dim)
        self.query = project(
            (self.num_heads, self.head_dim), use_bias=self.use_bias, kernel_init=self.query_init or self.init
        )
        self.key = project(shape, use_bias=self.use_bias and self.key_bias)
        if not self.values_are_keys:
            self.value = project(shape, use_bias=self.use_bias)
        if self.output_gate:
            self.gate = project((self.num_heads, self.head_dim), use_bias=self.use_bias)
        if self.query_key_norm is not None:
            self.query_norm, self.key_norm = self.query_key_norm(), self.query_key_norm()
        if self.norm_values is not None:
            self.value_norm = self.norm_values()

    def keys_values(self, y_BSD: jax.Array, rotation: Any = None) -> tuple[jax.Array, jax.Array]:
        """Keys and values (k_BSGK, v_BSGK) of the tokens attended to; a rotation (`nn/rotary.py`) is applied to the
        keys."""
        k_BSGK = self.key(y_BSD)
        v_BSGK = k_BSGK if self.values_are_keys else self.value(y_BSD)
        k_BSGK = k_BSGK if self.query_key_norm is None else self.key_norm(k_BSGK)
        v_BSGK = v_BSGK if self.norm_values is None else self.value_norm(v_BSGK)
        return k_BSGK if rotation is None else rotate(k_BSGK, rotation), v_BSGK

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
        """Attention [B, T, D] of x_BTD over keys and values; a rotation is applied to the queries.

        If the weights are to be returned (`mutable=["intermediates"]`) or dropped out, the plain implementation
        computes them; otherwise the fastest one that supports the arguments. A scale of None is 1/sqrt(K).
        """
        q_BTHK, (k_BSGK, v_BSGK) = self.query(x_BTD), kv
        q_BTHK = q_BTHK if self.query_key_norm is None else self.query_norm(q_BTHK)
        q_BTHK = q_BTHK if rotation is None else rotate_queries(q_BTHK, rotation)
        kwargs = {"mask": mask, "bias": bias, "cap": self.score_cap}
        if self.sinks:
            kwargs["sinks_H"] = self.param("sinks", self.init, (self.num_heads,), self.compute.param_dtype)
        kwargs["scale"] = self.head_dim**-0.5 if scale is None else scale
        y_BTHK = attended(self, q_BTHK, k_BSGK, v_BSGK, train, **kwargs)
        y_BTHK = y_BTHK * nn.sigmoid(self.gate(x_BTD)) if self.output_gate else y_BTHK
        out = self.compute.dense_general(
            x_BTD.shape[-1], axis=(-2, -1), use_bias=self.use_bias if self.out_bias is None else self.out_bias,
            kernel_init=self.out_init, name="out",
        )  # fmt: skip
        return out(y_BTHK)


def attended(
    module: Any, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, train: bool, **kwargs: Any
) -> jax.Array:
    """What the queries of a module with `compute` and a rate of `dropout` read, [B, T, H, K]; the other arguments are
    those of `kernels.weights`. If the weights are to be returned or dropped out, they are computed in the open."""
    if not (module.is_mutable_collection("intermediates") or (train and module.dropout)):
        return kernels.attend(q_BTHK, k_BSGK, v_BSGK, **kwargs, implementation=module.compute.attention)
    weights_BHTS = kernels.weights(q_BTHK, k_BSGK, **kwargs)
    sown = {"queries_BTHK": q_BTHK, "keys_BSGK": k_BSGK, "values_BSGK": v_BSGK, "weights_BHTS": weights_BHTS}
    for name, x in sown.items():
        module.sow("intermediates", name, x)
    left_BHTS = nn.Dropout(module.dropout, deterministic=not train)(weights_BHTS).astype(v_BSGK.dtype)
    # Without the barrier, the random numbers are fused into the products, and the TPU's compiler overflows its stack
    # where the numbers of keys and of queries differ.
    return kernels.mix(jax.lax.optimization_barrier(left_BHTS), v_BSGK)

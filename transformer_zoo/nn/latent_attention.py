"""Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1). The keys and values of all heads are
made of one short vector a token, its latent. One rotary key is shared by all heads.

Letters besides those of `attention.py`: K elements of a head's query and key without positions   P those with rotary
positions   E size of a head's value   R size of a latent, or R + P where its token's rotary key is behind it.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from transformer_zoo.nn.attention import attended
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.rotary import rotate


class LatentAttention(nn.Module):
    """Attention that a cache keeps the latents and rotary keys for, and not the keys and values of the heads.

    Few queries over many cached tokens are multiplied with the latents themselves: the projection from latents to keys
    is applied to the queries, and the one to values to what the queries read.
    """

    num_heads: int
    head_dim: int
    rope_dim: int
    value_dim: int
    latent_dim: int
    query_rank: int | None
    """The size of the vector that the queries are made of. None: they are made of x_BTD."""
    compute: Compute
    norm: Any
    """Makes the norm of the latents, and that of the vectors that queries are made of."""
    use_bias: bool = False
    """Whether the projections of x_BTD to low ranks, and the output, have biases."""
    dropout: float = 0.0
    init: Any = nn.initializers.lecun_normal()

    def setup(self) -> None:
        low = functools.partial(self.compute.dense, use_bias=self.use_bias, kernel_init=self.init)
        heads = functools.partial(self.compute.dense_general, axis=-1, use_bias=False, kernel_init=self.init)
        if self.query_rank is not None:
            self.query_latent, self.query_norm = low(self.query_rank), self.norm()
        self.query = heads((self.num_heads, self.head_dim + self.rope_dim))
        self.latent, self.latent_norm, self.rotary = low(self.latent_dim), self.norm(), low(self.rope_dim)
        self.key, self.value = heads((self.num_heads, self.head_dim)), heads((self.num_heads, self.value_dim))

    def keys_values(self, y_BSD: jax.Array, rotation: Any) -> jax.Array:
        """What a cache keeps of the tokens attended to, as of one head: the latent and, behind it, the rotated key,
        [B, S, 1, R + P]."""
        c_BS1R, k_BS1P = (x[:, :, None] for x in (self.latent_norm(self.latent(y_BSD)), self.rotary(y_BSD)))
        return jnp.concatenate([c_BS1R, rotate(k_BS1P, rotation)], axis=-1)

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, c_BS1R: jax.Array, *, mask: Mask | None = None, scale: Any, rotation: Any,
        train: bool = False,
    ) -> jax.Array:  # fmt: skip
        """Attention [B, T, D] of x_BTD over what `keys_values` returned; a rotation is applied to the queries."""
        h_BTD = x_BTD if self.query_rank is None else self.query_norm(self.query_latent(x_BTD))
        q_BTHK, q_BTHP = jnp.split(self.query(h_BTD), [self.head_dim], axis=-1)
        q_BTHP, seen = rotate(q_BTHP, rotation), {"mask": mask, "bias": None, "scale": scale}
        if self._absorbs(x_BTD.shape[1], c_BS1R.shape[1]):
            q_BTHR = jnp.einsum("BTHK,RHK->BTHR", q_BTHK, _kernel(self.key).astype(q_BTHK.dtype))
            q_BTHR = jnp.concatenate([q_BTHR, q_BTHP], axis=-1)
            # The rotary keys are summed too, and dropped: cheaper than a copy of the latents without them.
            y_BTHR = attended(self, q_BTHR, c_BS1R, c_BS1R, train, **seen)[..., : self.latent_dim]
            y_BTHE = jnp.einsum("BTHR,RHE->BTHE", y_BTHR, _kernel(self.value).astype(y_BTHR.dtype))
        else:
            c_BSR, k_BS1P = c_BS1R[:, :, 0, : self.latent_dim], c_BS1R[..., self.latent_dim :]
            k_BSHK, v_BSHE = self.key(c_BSR), self.value(c_BSR)
            k_BSHP = jnp.broadcast_to(k_BS1P, (*k_BSHK.shape[:-1], self.rope_dim)).astype(k_BSHK.dtype)
            q_BTHK, k_BSHK = jnp.concatenate([q_BTHK, q_BTHP], -1), jnp.concatenate([k_BSHK, k_BSHP], -1)
            y_BTHE = attended(self, q_BTHK, k_BSHK, v_BSHE, train, **seen)
        out = self.compute.dense_general(
            x_BTD.shape[-1], axis=(-2, -1), use_bias=self.use_bias, kernel_init=self.init, name="out"
        )
        return out(y_BTHE)

    def _absorbs(self, T: int, S: int) -> bool:
        """Whether T queries over S tokens take fewer multiplications with the latents than with keys and values. Layers
        that have more than a kernel, as an adapter, are called: they make keys and values."""
        if _kernel(self.key) is None or _kernel(self.value) is None:
            return False
        both = self.head_dim + self.value_dim
        return T * S * (2 * self.latent_dim + self.rope_dim - both) + T * self.latent_dim * both < (
            S * self.latent_dim * both
        )


def _kernel(layer: nn.Module) -> jax.Array | None:
    """The kernel of a linear layer that has nothing else. None: it has, or has no parameters yet."""
    params = layer.variables.get("params", {})
    kernel = meta.unbox(params["kernel"]) if params.keys() == {"kernel"} else None
    return kernel if isinstance(kernel, jax.Array | np.ndarray) else None

"""What blocks are made of whose norms come first and only scale, and whose attention knows where tokens stand by a bias
of the scores (Raffel et al. 2020, section 2.1), for a family's Config with the sizes and rates that T5's has."""

import functools
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo.nn import cache
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.relative_bias import RelativeBias


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + attention(norm(x), encoded source), then x + mlp(norm(x))."""

    config: Any
    compute: Compute

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: Any, mask: Mask, ahead_BTS: jax.Array, bias_BHTS: jax.Array | None, start: Any,
        encoded_BSD: jax.Array | None, cross_mask: Mask, train: bool,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        cfg, compute, (kv, cross) = self.config, self.compute, layer
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention, cross_attention = (unscaled(cfg, compute, name) for name in ("attention", "cross_attention"))

        if bias_BHTS is None:
            bias_BHTS = relative_bias(cfg, compute, causal=True, name="relative_bias")(ahead_BTS)
        h_BTD = norm(name="attention_norm")(x_BTD)
        kv_now = cache.append(kv, attention.keys_values(h_BTD), start)
        x_BTD += drop(attention(h_BTD, cache.seen(kv_now), mask=mask, bias=bias_BHTS, scale=1.0, train=train))

        cross_now = cache.kept(cross_attention.keys_values(encoded_BSD)) if cross is None else cross
        h_BTD = norm(name="cross_attention_norm")(x_BTD)
        x_BTD += drop(cross_attention(h_BTD, cache.seen(cross_now), mask=cross_mask, scale=1.0, train=train))

        x_BTD += drop(mlp(cfg, compute, norm(name="mlp_norm")(x_BTD), drop))
        # For the cache, if there is one; what it holds of the source already is not copied.
        return x_BTD, None if kv is None else (kv_now, cross_now if cross is None else None)


def unscaled(cfg: Any, compute: Compute, name: str) -> Attention:
    """Attention whose scores are not divided by sqrt(K): fresh queries are as much smaller instead."""
    return Attention(
        cfg.num_heads, cfg.head_dim, compute, use_bias=False, dropout=cfg.dropout,
        init=initializer(cfg, cfg.width), query_init=initializer(cfg, cfg.width * cfg.head_dim),
        out_init=initializer(cfg, cfg.num_heads * cfg.head_dim), name=name,
    )  # fmt: skip


def relative_bias(cfg: Any, compute: Compute, causal: bool, name: str | None = None) -> RelativeBias:
    """The table of what is added to the scores by distance."""
    init = nn.initializers.variance_scaling(cfg.init_scale**2, "fan_avg", "uniform")
    return RelativeBias(cfg.num_buckets, cfg.num_heads, cfg.max_distance, compute, init, causal=causal, name=name)


def mlp(cfg: Any, compute: Compute, x_BTD: jax.Array, drop: nn.Dropout) -> jax.Array:
    """A hidden layer, gated or not (Shazeer 2020), in the scope of the block that calls it."""
    up = functools.partial(compute.dense, cfg.mlp_dim, use_bias=False, kernel_init=initializer(cfg, cfg.width))
    down = compute.dense(cfg.width, use_bias=False, kernel_init=initializer(cfg, cfg.mlp_dim), name="mlp_down")
    act = ACTIVATIONS[cfg.activation]
    if cfg.gated_mlp:
        return down(drop(act(up(name="mlp_gate")(x_BTD)) * up(name="mlp_up")(x_BTD)))
    return down(drop(act(up(name="mlp_up")(x_BTD))))


def initializer(cfg: Any, fan: int) -> Any:
    """A normal distribution of the variance 1/fan, as in Mesh TensorFlow, with which T5 was made."""
    return nn.initializers.normal(cfg.init_scale * fan**-0.5)

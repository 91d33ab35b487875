"""The decoder's block of T5, whose norms come first and only scale, and whose attention knows distances by a bias of
the scores (Raffel et al. 2020, section 2.1); and what models made of it share. A family's Config has the fields that
T5's has."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.encoder_decoder import EncoderDecoder
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.positions import distances
from transformer_zoo.nn.relative_bias import RelativeBias


class PreNormTransformer(EncoderDecoder):
    """Embeddings, biases and output layer of these families. A family's `setup` makes `encoder_norm`, `decoder_norm`,
    `decoder_relative_bias` and, where the output layer is not the table of tokens, `head` besides."""

    def embed(self, side: str, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Embeddings [B, T, D] of the tokens alone: attention knows their distances."""
        return self.token_embed(tokens_BT)

    def decoder_shared(self, target_BT: jax.Array, cache: Cache | None) -> tuple[jax.Array, jax.Array | None]:
        ahead_BTS = distances(target_BT.shape[1], cache)
        return ahead_BTS, self.decoder_relative_bias(ahead_BTS)

    def final(self, side: str, x_BTD: jax.Array, train: bool) -> jax.Array:
        return self.drop(getattr(self, f"{side}_norm")(x_BTD), deterministic=not train)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Logits [B, T, V] of the next token, over the padded vocabulary. A loss may take them in chunks."""
        table = self.token_embed if self.config.tied else self.head
        return table.attend(hidden_BTD * self.config.width**-0.5 if self.config.scale_logits else hidden_BTD)


def check_buckets(config: Any) -> None:
    """Raises ValueError unless the buckets of distances are enough, and there are distances beyond the near ones."""
    if config.num_buckets < 4 or config.max_distance <= config.num_buckets // 2:
        raise ValueError(
            f"num_buckets={config.num_buckets} and max_distance={config.max_distance}: there must be at least 4 "
            "buckets, half of which are for a distance each, and distances beyond these"
        )


def init_cache(config: Any, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row for the decoder's input.

    Raises:
        ValueError: no slots.
    """
    if length < 1:
        raise ValueError(f"a cache of {length} tokens: ask for at least 1")
    return caches.empty(config.num_decoder_layers, batch, length, config.num_heads, config.head_dim, dtype)


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + attention(norm(x), encoded source), then x + mlp(norm(x))."""

    config: Any
    compute: Compute

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: Any, mask: Mask, start: Any, encoded_BSD: jax.Array | None, cross_mask: Mask,
        ahead_BTS: jax.Array, bias_BHTS: jax.Array | None, train: bool,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        cfg, compute, (kv, cross) = self.config, self.compute, layer
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention, cross_attention = (t5_attention(cfg, compute, name) for name in ("attention", "cross_attention"))
        if bias_BHTS is None:
            bias_BHTS = relative_bias(cfg, compute, causal=True, name="relative_bias")(ahead_BTS)

        h_BTD = norm(name="attention_norm")(x_BTD)
        kv_now = caches.append(kv, attention.keys_values(h_BTD), start)
        y_BTD = attention(h_BTD, caches.from_cache_layout(kv_now), mask=mask, bias=bias_BHTS, scale=1.0, train=train)
        x_BTD += drop(y_BTD)

        h_BTD = norm(name="cross_attention_norm")(x_BTD)
        cross_now = caches.to_cache_layout(cross_attention.keys_values(encoded_BSD)) if cross is None else cross
        y_BTD = cross_attention(h_BTD, caches.from_cache_layout(cross_now), mask=cross_mask, scale=1.0, train=train)
        x_BTD += drop(y_BTD)

        x_BTD += drop(mlp(cfg, compute, norm(name="mlp_norm")(x_BTD), drop))
        # Only for a cache; keys and values of the source that it holds already are not copied.
        return x_BTD, None if kv is None else (kv_now, cross_now if cross is None else None)


def t5_attention(cfg: Any, compute: Compute, name: str) -> Attention:
    """Attention whose scores are to be left undivided, `scale=1.0`: fresh queries are smaller by sqrt(K) instead."""
    return Attention(
        cfg.num_heads, cfg.head_dim, compute, use_bias=False, dropout=cfg.dropout,
        init=initializer(cfg, cfg.width), query_init=initializer(cfg, cfg.width * cfg.head_dim),
        out_init=initializer(cfg, cfg.num_heads * cfg.head_dim), name=name,
    )  # fmt: skip


def relative_bias(cfg: Any, compute: Compute, causal: bool, name: str | None = None) -> RelativeBias:
    """The biases of the scores by distance."""
    init = nn.initializers.variance_scaling(cfg.init_scale**2, "fan_avg", "uniform")
    return RelativeBias(cfg.num_buckets, cfg.num_heads, cfg.max_distance, compute, init, causal=causal, name=name)


def mlp(cfg: Any, compute: Compute, x_BTD: jax.Array, drop: nn.Dropout) -> jax.Array:
    """The MLP, gated or not (Shazeer 2020), in the scope of the block that calls it."""
    up = functools.partial(compute.dense, cfg.mlp_dim, use_bias=False, kernel_init=initializer(cfg, cfg.width))
    down = compute.dense(cfg.width, use_bias=False, kernel_init=initializer(cfg, cfg.mlp_dim), name="mlp_down")
    act = ACTIVATIONS[cfg.activation]
    if cfg.gated_mlp:
        return down(drop(act(up(name="mlp_gate")(x_BTD)) * up(name="mlp_up")(x_BTD)))
    return down(drop(act(up(name="mlp_up")(x_BTD))))


def initializer(cfg: Any, fan: int) -> Any:
    """A normal distribution of variance 1/fan, as in Mesh TensorFlow, in which T5 was made."""
    return nn.initializers.normal(cfg.init_scale * fan**-0.5)

"""The decoder's block of T5, whose norms come first and only scale, and whose attention knows distances by a bias of
the scores (Raffel et al. 2020, section 2.1); and what models made of it share."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.architecture import Architecture
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.embedding import TokenEmbedding
from transformer_zoo.nn.encoder_decoder import EncoderDecoder
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.positions import distances
from transformer_zoo.nn.relative_bias import RelativeBias


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreNormConfig(Architecture):
    """The fields of all these families. The defaults are T5's small size.

    Raises:
        ValueError: as `Architecture`, and too few buckets of distances.
    """

    vocab_size: int = 32128
    width: int = 512
    tied: bool = True  # the output layer is the table of token embeddings
    scale_logits: bool = True  # by 1/sqrt(width)
    num_layers: int = 6  # of the encoder
    num_decoder_layers: int = 6
    num_heads: int = 8
    head_dim: int = 64
    mlp_dim: int = 2048
    activation: str = "relu"
    gated_mlp: bool = False  # Shazeer 2020, as from T5 1.1 on
    num_buckets: int = 32  # of distances
    max_distance: int = 128  # from here on they share a bucket
    norm_epsilon: float = 1e-6
    init_scale: float = 1.0  # a factor of all fresh weights
    dropout: float = 0.1
    pad_id: int = 0
    eos_id: int | None = 1
    decoder_start_id: int = 0

    # Not annotated, and so no field: attention knows distances, and there is no greatest length.
    max_length = None
    can_be_zero = ("num_decoder_layers",)  # an encoder alone

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_buckets < 4 or self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"num_buckets={self.num_buckets} and max_distance={self.max_distance}: there must be at least 4 "
                "buckets, half of which are for a distance each, and distances beyond these"
            )


class PreNormTransformer(EncoderDecoder):
    """Embeddings, biases and output layer of these families. A family's `setup` calls `add_embeddings`, and makes the
    blocks and `decoder_relative_bias`."""

    def add_embeddings(self) -> None:
        """Makes the layers of `embed`, of `final`, and of `logits` where it is not the table of tokens."""
        cfg, compute = self.config, self.compute
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, initializer(cfg, 1))
        self.drop, self.encoder_norm, self.decoder_norm = nn.Dropout(cfg.dropout), norm(), norm()
        if self.task == "seq2seq-lm" and not cfg.tied:
            self.head = TokenEmbedding(cfg.vocab_size, cfg.width, compute, initializer(cfg, cfg.width))

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

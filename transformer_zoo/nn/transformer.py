"""The blocks of the Transformer (Vaswani et al. 2017, section 3), with its norms last or first, and what models made of
them share."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.architecture import Architecture
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.checks import check_slots
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.embedding import Embedding, TokenEmbedding
from transformer_zoo.nn.encoder_decoder import EncoderDecoder
from transformer_zoo.nn.heads import LogitsBias
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.positions import sinusoids

NORM_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(Architecture):
    """The fields of all these families. The defaults are those of mBART (Liu et al. 2020)."""

    vocab_size: int = 250027
    max_length: int = 1024  # of sources and of targets
    width: int = 1024
    scale_embedding: bool = True  # by sqrt(width)
    num_layers: int = 12  # of the encoder
    num_decoder_layers: int = 12
    num_heads: int = 16
    num_decoder_heads: int = 16
    activation: str = "gelu"
    mlp_dim: int = 4096
    mlp_decoder_dim: int = 4096
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    pad_id: int = 1
    eos_id: int | None = 2
    decoder_start_id: int | None = None  # None: the target's language
    forced_eos_id: int | None = 2  # forced at the maximum length


class Transformer(EncoderDecoder):
    """Embeddings and output layer of these families. A family's `setup` calls `add_embeddings` and makes the blocks."""

    def add_embeddings(self, init: Any) -> None:
        """Makes the layers of `embed` and of `logits`."""
        cfg, compute = self.config, self.compute
        self.token_embed, self.drop = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init), nn.Dropout(cfg.dropout)
        if self.task == "seq2seq-lm":
            self.lm_head = LogitsBias(cfg.vocab_size, compute, trained=False)

    def embed(self, side: str, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Embeddings [B, T, D] of a side's tokens and positions, these by sinusoids (section 3.5)."""
        table_TD = jnp.asarray(sinusoids(self.config.max_length, self.config.width), self.compute.dtype)
        return self.embed_tokens(tokens_BT) + table_TD[positions_BT]

    def embed_tokens(self, tokens_BT: jax.Array) -> jax.Array:
        """Embeddings [B, T, D] of the tokens alone."""
        return self.token_embed(tokens_BT) * (self.config.width**0.5 if self.config.scale_embedding else 1.0)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Logits [B, T, V] of the next token, over the padded vocabulary. A loss may take them in chunks."""
        return self.lm_head(self.token_embed.attend(hidden_BTD))


class LearnedPositions(Transformer):
    """A Transformer whose positions are learned, on either side, and whose embeddings are normalised, as BART's."""

    OFFSET = 2  # rows of the table of positions before that of position 0, which are never read

    def add_embeddings(self, init: Any) -> None:
        super().add_embeddings(init)
        cfg, compute = self.config, self.compute
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        positions = functools.partial(Embedding, self.OFFSET + cfg.max_length, cfg.width, compute, init)
        self.encoder_position_embed, self.encoder_embed_norm = positions(), norm()
        self.decoder_position_embed, self.decoder_embed_norm = positions(), norm()

    def embed(self, side: str, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        table, norm = getattr(self, f"{side}_position_embed"), getattr(self, f"{side}_embed_norm")
        return norm(self.embed_tokens(tokens_BT) + table(self.OFFSET + positions_BT))


def init_cache(config: Any, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row for the decoder's input.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    check_slots(config, length)
    heads, head_dim = config.num_decoder_heads, config.width // config.num_decoder_heads
    return caches.empty(config.num_decoder_layers, batch, length, heads, head_dim, dtype)


class EncoderBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)); with `norm_first`, x + attention(norm(x)) and x + mlp(norm(x))."""

    config: Any
    compute: Compute
    norm_first: bool
    init: Any

    @nn.compact
    def __call__(self, x_BSD: jax.Array, layer: None, mask: Mask, train: bool) -> tuple[jax.Array, None]:
        cfg, (before, after) = self.config, _norms(self)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention = _attention(self, cfg.num_heads, "attention")

        h_BSD = before("attention", x_BSD)
        y_BSD = attention(h_BSD, attention.keys_values(h_BSD), mask=mask, train=train)
        x_BSD = after("attention", x_BSD + drop(y_BSD))
        return after("mlp", x_BSD + drop(_mlp(self, cfg.mlp_dim, before("mlp", x_BSD), train))), None


class DecoderBlock(nn.Module):
    """The same with causal attention, and with attention to the encoded source before the MLP."""

    config: Any
    compute: Compute
    norm_first: bool
    init: Any

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: Any, mask: Mask, start: Any, encoded_BSD: jax.Array | None, cross_mask: Mask,
        train: bool,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        cfg, (kv, cross), (before, after) = self.config, layer, _norms(self)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention = _attention(self, cfg.num_decoder_heads, "attention")
        cross_attention = _attention(self, cfg.num_decoder_heads, "cross_attention")

        h_BTD = before("attention", x_BTD)
        kv_now = caches.append(kv, attention.keys_values(h_BTD), start)
        y_BTD = attention(h_BTD, caches.from_cache_layout(kv_now), mask=mask, train=train)
        x_BTD = after("attention", x_BTD + drop(y_BTD))

        h_BTD = before("cross_attention", x_BTD)
        cross_now = caches.to_cache_layout(cross_attention.keys_values(encoded_BSD)) if cross is None else cross
        y_BTD = cross_attention(h_BTD, caches.from_cache_layout(cross_now), mask=cross_mask, train=train)
        x_BTD = after("cross_attention", x_BTD + drop(y_BTD))

        x_BTD = after("mlp", x_BTD + drop(_mlp(self, cfg.mlp_decoder_dim, before("mlp", x_BTD), train)))
        # Only for a cache; keys and values of the source that it holds already are not copied.
        return x_BTD, None if kv is None else (kv_now, cross_now if cross is None else None)


def _norms(block: Any) -> tuple[Callable[[str, jax.Array], jax.Array], ...]:
    """Functions of a layer's input, and of the sum of its input and output: one normalises, the other does nothing."""
    layer_norm = functools.partial(block.compute.layer_norm, epsilon=NORM_EPSILON)
    norm, same = lambda name, x_BTD: layer_norm(name=f"{name}_norm")(x_BTD), lambda name, x_BTD: x_BTD
    return (norm, same) if block.norm_first else (same, norm)


def _attention(block: Any, num_heads: int, name: str) -> Attention:
    cfg = block.config
    return Attention(
        num_heads, cfg.width // num_heads, block.compute, dropout=cfg.attention_dropout,
        init=block.init, out_init=block.init, name=name,
    )  # fmt: skip


def _mlp(block: Any, mlp_dim: int, x_BTD: jax.Array, train: bool) -> jax.Array:
    cfg, dense = block.config, functools.partial(block.compute.dense, kernel_init=block.init)
    h_BTF = ACTIVATIONS[cfg.activation](dense(mlp_dim, name="mlp_up")(x_BTD))
    h_BTF = nn.Dropout(cfg.activation_dropout, deterministic=not train)(h_BTF)
    return dense(cfg.width, name="mlp_down")(h_BTF)

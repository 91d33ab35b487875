"""BERT's embeddings and its post-norm block (Devlin et al. 2018, section 3; Vaswani et al. 2017, section 3.1)."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.embedding import Embedding, TokenEmbedding
from transformer_zoo.nn.encoder import Encoder, EncoderConfig, Inputs
from transformer_zoo.nn.masks import Mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostNormConfig(EncoderConfig):
    """The fields of an encoder with post-norm blocks. The defaults are those of BERT's base model."""

    norm_epsilon: float = 1e-12
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1


class PostNormEncoder(Encoder):
    """An encoder whose input is the sum of a token's embedding, of its segment's where there are segments, and of its
    position's, normalised. A family's `setup` calls `add_embeddings` and makes `blocks`."""

    @property
    def norm(self) -> Any:
        """The constructor of the layer norms."""
        return functools.partial(self.compute.layer_norm, epsilon=self.config.norm_epsilon)

    def add_embeddings(self, width: int, init: Any, position_init: Any = None) -> None:
        """Makes the layers of `embed`.

        Args:
            width: of the embeddings.
            position_init: of the table of positions. None: as init.
        """
        cfg, compute = self.config, self.compute
        self.token_embed = TokenEmbedding(cfg.vocab_size, width, compute, init)
        self.position_embed = Embedding(cfg.first_position + cfg.max_length, width, compute, position_init or init)
        if cfg.num_segments:
            self.segment_embed = Embedding(cfg.num_segments, width, compute, init)
        self.embed_norm, self.embed_drop = self.norm(), nn.Dropout(cfg.hidden_dropout)

    def embed(self, inputs: Inputs, train: bool) -> jax.Array:
        x_BTE = self.token_embed(inputs.tokens_BT)
        if inputs.segments_BT is not None:
            x_BTE += self.segment_embed(inputs.segments_BT)
        x_BTE += self.position_embed(inputs.positions_BT + self.config.first_position)
        return self.embed_drop(self.embed_norm(x_BTE), deterministic=not train)

    def encode(self, x_BTD: jax.Array, inputs: Inputs, train: bool) -> jax.Array:
        return self.run(self.blocks, x_BTD, None, inputs.mask, None, train)


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)). The Config must have the fields of `PostNormConfig`."""

    config: Any
    compute: Compute
    init: Any
    dropout_after: tuple[str, ...] = ("attention", "mlp")
    """The sublayers whose output has dropout."""

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer: None, mask: Mask, relative: Any, train: bool) -> tuple[jax.Array, None]:
        cfg, compute = self.config, self.compute
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        dense = functools.partial(compute.dense, kernel_init=self.init)
        dropout = nn.Dropout(cfg.hidden_dropout, deterministic=not train)
        drop = lambda sublayer, y_BTD: dropout(y_BTD) if sublayer in self.dropout_after else y_BTD

        y_BTD = self.attend(x_BTD, mask, relative, train)
        x_BTD = norm(name="attention_norm")(x_BTD + drop("attention", y_BTD))
        h_BTF = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, name="mlp_up")(x_BTD))
        y_BTD = dense(cfg.width, name="mlp_down")(h_BTF)
        return norm(name="mlp_norm")(x_BTD + drop("mlp", y_BTD)), None

    def attend(self, x_BTD: jax.Array, mask: Mask, relative: Any, train: bool) -> jax.Array:
        """Self-attention [B, T, D], with a bias [B or 1, H, T, S] as `relative`, or None. A family may have another."""
        cfg, init = self.config, self.init
        attention = Attention(
            cfg.num_heads, cfg.width // cfg.num_heads, self.compute, dropout=cfg.attention_dropout,
            init=init, out_init=init, name="attention",
        )  # fmt: skip
        return attention(x_BTD, attention.keys_values(x_BTD), mask=mask, bias=relative, train=train)

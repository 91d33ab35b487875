"""Tables in which something is looked up; that of the tokens is often also the output layer."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn.compute import Compute
from transformer_zoo.sharding import constrain, platform


def padded_vocab(vocab_size: int) -> int:
    """The rows of a table in memory: a multiple of 128, so that every mesh can shard them (GPT-2's 50257 is odd)."""
    return -(-vocab_size // 128) * 128


def _look_up(table_ND: jax.Array, ids_BT: jax.Array, dtype: Any) -> jax.Array:
    # Where the table lies, and only then exchanged for whole rows: if it were to do both in one step, the compiler
    # would put the result together on every device of a mesh with several axes.
    x_BTD = jnp.take(table_ND, ids_BT, axis=0).astype(dtype)
    return constrain(constrain(x_BTD, "rows length embed"), "batch length _")


class Embedding(nn.Module):
    """[N, D]: looks up what is no token, such as positions and segments."""

    rows: int
    width: int
    compute: Compute
    init: Any

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.init, (self.rows, self.width), self.compute.param_dtype)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        return _look_up(self.embedding, ids_BT, self.compute.dtype)


class TokenEmbedding(nn.Module):
    """[V, D]: looks tokens up, and scores hidden states against every token."""

    vocab_size: int
    width: int
    compute: Compute
    init: Any

    def setup(self) -> None:
        self.embedding = self.param("embedding", self._init, (padded_vocab(self.vocab_size), self.width))

    def _init(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        # Rows that stand for no token are zero in every table, fresh or loaded, and get no gradient.
        table_VD = self.init(key, (self.vocab_size, self.width), self.compute.param_dtype)
        return jnp.pad(table_VD, ((0, shape[0] - self.vocab_size), (0, 0)))

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return _look_up(self.embedding, tokens_BT, self.compute.dtype)

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of the padded vocabulary, in at least float32; tokens that do not exist never win."""
        # Pinned where the table lies, and so is its gradient: of each piece of a loss, a device adds up its own part.
        table_VD = constrain(self.embedding.astype(self.compute.dtype), "vocab embed")
        x_BTD = x_BTD.astype(self.compute.dtype)
        scores = functools.partial(jnp.einsum, preferred_element_type=self.compute.wide)
        if platform() == "cpu" and x_BTD.shape[1] == 1:
            # For a few tokens it is faster to go through the table row by row, unless the compiler turns that round.
            logits_VBT = jax.lax.optimization_barrier(scores("VD,BTD->VBT", table_VD, x_BTD))
            logits_BTV = jnp.moveaxis(logits_VBT, 0, -1)
        else:
            logits_BTV = scores("BTD,VD->BTV", x_BTD, table_VD)
        real_V = jnp.arange(logits_BTV.shape[-1]) < self.vocab_size
        return jnp.where(real_V, logits_BTV, jnp.finfo(logits_BTV.dtype).min)

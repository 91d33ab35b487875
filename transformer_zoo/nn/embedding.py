"""Embedding tables. The table of tokens is often the output layer too."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from transformer_zoo.nn.compute import Compute, soft_cap, wide_einsum
from transformer_zoo.nn.quantized import in_turn
from transformer_zoo.sharding import constrain, platform


def padded_vocab(vocab_size: int) -> int:
    """The number of a table's rows in memory: a multiple of 128, which every mesh can shard (GPT-2 has 50257)."""
    return -(-vocab_size // 128) * 128


def _look_up(table_ND: Any, ids_BT: jax.Array, dtype: Any) -> jax.Array:
    # Two steps: looked up with the table's own sharding, then resharded by rows. In one step, the compiler would gather
    # the whole result on every device of a mesh with several axes.
    rows_BTD = jax.tree.map(lambda x: jnp.take(x, ids_BT, axis=0), table_ND)
    x_BTD = meta.unbox(rows_BTD).astype(dtype)  # of a quantised table, only these rows are expanded
    return constrain(constrain(x_BTD, "rows length embed"), "batch length _")


class Embedding(nn.Module):
    """A table [N, D] of positions, segments or other ids that are not tokens."""

    rows: int
    width: int
    compute: Compute
    init: Any

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.init, (self.rows, self.width), self.compute.param_dtype)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        return _look_up(self.embedding, ids_BT, self.compute.dtype)


class TokenEmbedding(nn.Module):
    """The table [V, D] of the tokens, whose transpose can be the output layer."""

    vocab_size: int
    width: int
    compute: Compute
    init: Any

    def setup(self) -> None:
        self.param("embedding", self._init, (padded_vocab(self.vocab_size), self.width))

    def _init(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        # The rows of padding are zero in every table, fresh or loaded, and get no gradient.
        table_VD = self.init(key, (self.vocab_size, self.width), self.compute.param_dtype)
        return jnp.pad(table_VD, ((0, shape[0] - self.vocab_size), (0, 0)))

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        return _look_up(self.get_variable("params", "embedding"), tokens_BT, self.compute.dtype)

    def attend(self, x_BTD: jax.Array, cap: float | None = None) -> jax.Array:
        """Logits [B, T, V] over the padded vocabulary, in at least float32; the lowest number at the padding. With a
        cap, the others are pressed into (-cap, cap)."""
        # The table and its gradient keep the table's sharding: each device adds up its own part over a loss's chunks.
        table_VD, x_BTD = in_turn(self.get_variable("params", "embedding"), x_BTD.astype(self.compute.dtype))
        table_VD = constrain(meta.unbox(table_VD).astype(self.compute.dtype), "vocab embed")
        product = functools.partial(wide_einsum, dtype=self.compute.accumulation_dtype)
        if platform() == "cpu" and x_BTD.shape[1] == 1:
            # One token a row: faster row by row of the table. The barrier keeps the compiler from reversing the order.
            logits_VBT = jax.lax.optimization_barrier(product("VD,BTD->VBT", table_VD, x_BTD))
            logits_BTV = jnp.moveaxis(logits_VBT, 0, -1)
        else:
            logits_BTV = product("BTD,VD->BTV", x_BTD, table_VD)
        real_V = jnp.arange(logits_BTV.shape[-1]) < self.vocab_size
        return jnp.where(real_V, soft_cap(logits_BTV, cap), jnp.finfo(logits_BTV.dtype).min)

"""The call of every decoder: its arguments, their checks, positions, mask and cache, and the heads of its tasks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import pooling
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.checks import check_ids, check_tokens
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.heads import Classifier
from transformer_zoo.nn.output import Output
from transformer_zoo.nn.positions import decoder_inputs
from transformer_zoo.nn.stack import stack
from transformer_zoo.nn.tasks import TASKS


class Decoder(nn.Module):
    """A decoder, with a language model's output layer for the task `causal-lm`, and without for `base`.

    A family's Model has `setup`, which makes `token_embed`, `blocks`, `final_norm` (unless it has a `final` of its own)
    and, where the output layer is not the table of tokens or the task is another one, `head`; and `embed`. A block is
    called with x_BTD, (its part of the cache or None, its part of `per_layer`), the mask, where the cache is written
    (where there are windows, `cache.of_layer` finds its own of both), what `shared` returns, and `train`.
    """

    config: Any
    task: str = "causal-lm"
    compute: Compute = Compute()

    def __call__(
        self,
        tokens_BT: jax.Array,
        valid_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        documents_BT: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Output:
        """Reads tokens from left to right.

        Args:
            tokens_BT: ids, int[B, T].
            valid_BT: which tokens are real; the rest is padding, on the left or on the right. None: all.
            positions_BT: None: counted over the real tokens of the row or, in packed rows, of the document.
            documents_BT: numbers the documents packed in a row; attention does not cross them.
            cache: of the tokens before these, from `init_cache` or an earlier call.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, too long a row, an empty batch, shapes that differ; positions
                together with a cache, of a model that counts them.
        """
        cfg = self.config
        if self.counts_positions and positions_BT is not None and cache is not None:
            raise ValueError("positions_BT and a cache do not go together: with a cache, the real tokens are counted")
        check_tokens(tokens_BT, cfg.vocab_size, cfg.max_length)
        positions_BT, mask, start, cache = decoder_inputs(tokens_BT, valid_BT, positions_BT, documents_BT, cache)
        check_ids(positions_BT, cfg.max_length or 2**31, "positions_BT", "the positions")

        x_BTD = self.embed(tokens_BT, positions_BT, train)
        self.sow("intermediates", "embedded_BTD", x_BTD)
        kv = None if cache is None else cache.kv
        x_BTD, kv = self.run_blocks(x_BTD, tokens_BT, kv, mask, start, *self.shared(positions_BT), train)
        hidden_BTD, task = self.final(x_BTD), TASKS[self.task]
        output = Output(hidden_BTD=hidden_BTD, cache=None if cache is None else cache.replace(kv=kv))
        if task.vocabulary:
            return output.replace(logits=self.logits(hidden_BTD)[..., : cfg.vocab_size])
        if not task.scores:
            return output
        if task.per_token:
            return output.replace(logits=self.head(hidden_BTD, train))
        # A row is scored by its last real token, the only one that has read all of it.
        real_BT = jnp.ones(tokens_BT.shape, bool) if valid_BT is None else jnp.asarray(valid_BT).astype(bool)
        return output.replace(logits=self.head(pooling.last(hidden_BTD, real_BT), train))

    def read(
        self, tokens_BT: jax.Array, segments_BT: jax.Array | None, valid_BT: jax.Array | None, train: bool = False
    ) -> Output:
        """Reads whole texts, as models of all shapes do. There are no segments."""
        return self(tokens_BT, valid_BT, train=train)

    @property
    def counts_positions(self) -> bool:
        """Whether attention needs the positions of the keys, as ALiBi does. A cache knows none: with one, they are
        counted over the real tokens."""
        return False

    def run_blocks(self, x_BTD: jax.Array, tokens_BT: jax.Array, kv: Any, *shared: Any) -> tuple[jax.Array, Any]:
        """x_BTD after the last block, and the blocks' parts of the cache, from those before (None: there is no cache).
        `shared` is what all blocks are called with."""
        kept = (kv, self.per_layer())
        return stack(self.blocks, x_BTD, kept, *shared, length=self.config.num_layers, compute=self.compute)

    def add_classifier(self, init: Any) -> None:
        """Makes `head` for a task with scores: of a row without a bias, of tokens with one; and with dropout where the
        scores are of labels of tokens."""
        task = TASKS[self.task]
        if scores := task.num_scores(self.config.labels):
            rate = self.config.head_dropout if task.per_token and task.scores == "labels" else 0.0
            self.head = Classifier(scores, self.compute, init, dropout=rate, bias=task.per_token)

    def final(self, x_BTD: jax.Array) -> jax.Array:
        """The hidden states that the model returns, from those after the last block."""
        return self.final_norm(x_BTD)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Logits [B, T, V] of the next token, over the padded vocabulary. A loss may take them in chunks."""
        return (self.token_embed if self.config.tied else self.head).attend(hidden_BTD)

    def per_layer(self) -> Any:
        """A tree of arrays [L, ...], for what differs by layer besides the parameters; None: nothing."""
        return None

    def shared(self, positions_BT: jax.Array) -> tuple[Any, ...]:
        """What all blocks are called with besides the mask, such as the rotation of each position."""
        return ()

    @staticmethod
    def example_inputs(task: str) -> tuple[Any, ...]:
        """Inputs of the right shapes for a task, to initialise and to trace."""
        return (jnp.zeros((1, 1), jnp.int32),)

"""The call of every encoder: its arguments, their checks, positions and mask, and the heads of its tasks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from transformer_zoo.nn import heads, pooling
from transformer_zoo.nn.architecture import Architecture
from transformer_zoo.nn.checks import check_ids, check_like, check_tokens
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.heads import Head
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.output import Output
from transformer_zoo.nn.positions import encoder_inputs
from transformer_zoo.nn.stack import stack
from transformer_zoo.nn.tasks import TASKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(Architecture):
    """The fields of every encoder. The defaults are the sizes of BERT's base model (Devlin et al. 2018, section 3)."""

    vocab_size: int = 30522
    max_length: int = 512
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    init_std: float = 0.02
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json

    # Not annotated, and so no field: the row of the table of positions that holds position 0.
    first_position = 0


@struct.dataclass
class Inputs:
    """Checked rows [B, T].

    Attributes:
        tokens_BT: ids.
        segments_BT: which text each token belongs to; None where the family has no segments.
        positions_BT: of each token, [B or 1, T].
        mask: which tokens attend to which.
    """

    tokens_BT: jax.Array
    segments_BT: jax.Array | None
    positions_BT: jax.Array
    mask: Mask


class Encoder(nn.Module):
    """An encoder with the head of a task.

    A family's Model has `setup`, `embed` (Inputs to the first layer's input) and `encode` (that to hidden states).
    `setup` makes `token_embed` and `blocks`, and by `add_head` what the task needs besides.
    """

    config: Any
    task: str = "masked-lm"
    compute: Compute = Compute()

    pooler = None  # unless the task's head has one

    @property
    def num_positions(self) -> int | None:
        """The number of absolute positions, and so of tokens in the longest row; None: there is no limit."""
        return self.config.max_length

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        valid_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        train: bool = False,
    ) -> Output:
        """Reads whole rows.

        Args:
            tokens_BT: ids, int[B, T]; for multiple-choice int[B, C, T], a row for each choice, as are the others then.
            segments_BT: which text a token belongs to, from 0. None: all 0. A family whose Config has no num_segments
                refuses it; a model with num_segments=0 disregards it.
            valid_BT: which tokens are real; the rest is padding, on the left or on the right. None: all.
            positions_BT: None: counted over the real tokens of the row, from 0.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, too long a row, an empty batch, shapes that differ, segments or
                positions where the family has none.
        """
        inputs = self._inputs(tokens_BT, segments_BT, valid_BT, positions_BT)
        x_BTD = self.embed(inputs, train)
        self.sow("intermediates", "embedded_BTD", x_BTD)
        hidden_BTD = self.encode(x_BTD, inputs, train)
        return self._output(tokens_BT, hidden_BTD, inputs.mask.valid_BS, train)

    def read(
        self, tokens_BT: jax.Array, segments_BT: jax.Array | None, valid_BT: jax.Array | None, train: bool = False
    ) -> Output:
        """Reads whole texts, as models of all shapes do; segments are left out where the model has none."""
        return self(tokens_BT, segments_BT if self.config.num_segments else None, valid_BT, train=train)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Logits [B, T, V] over the padded vocabulary. A loss needs them only at the masked positions."""
        return self.lm_head(hidden_BTD)

    def run(self, block: nn.Module, x_BTD: jax.Array, per_layer: Any, *shared: Any, **settings: Any) -> jax.Array:
        """The hidden states behind all of the family's blocks. The settings are those of `stack`."""
        settings = {"length": self.config.num_layers, "compute": self.compute} | settings
        return stack(block, x_BTD, per_layer, *shared, **settings)[0]

    def add_head(self, init: Any, norm: Callable[..., nn.Module], table: Mapping[str, Head]) -> None:
        """Makes the layers that the task's entry in the family's table asks for: `pooler`, `lm_head`, `head`."""
        head, compute = table[self.task], self.compute
        if head.pooled:
            self.pooler = heads.Pooler("tanh", compute, init)
        if head.vocabulary is not None:
            self.lm_head = heads.MaskedLM(self.token_embed, head.vocabulary, norm, compute, init)
        if scores := TASKS[self.task].num_scores(self.config.labels):
            self.head = heads.Classifier(scores, compute, init, head.dropout, head.hidden, head.hidden_dropout)

    def summary(self, hidden_BTD: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
        """The vector [B, D] by which a head without a pooler classifies a row: the first real token's."""
        return pooling.first(hidden_BTD, valid_BT)

    def _inputs(self, tokens_BT: Any, segments_BT: Any, valid_BT: Any, positions_BT: Any) -> Inputs:
        cfg = self.config
        tokens_BT, segments_BT, valid_BT, positions_BT = self._rows(tokens_BT, segments_BT, valid_BT, positions_BT)
        check_tokens(tokens_BT, cfg.vocab_size, self.num_positions)
        if cfg.num_segments:
            segments_BT = jnp.zeros_like(tokens_BT) if segments_BT is None else segments_BT
            check_ids(segments_BT, cfg.num_segments, "segments_BT", "the segments")
        elif cfg.num_segments is None and segments_BT is not None:
            raise ValueError("segments_BT: this family has no segments, leave it out")
        if positions_BT is not None and self.num_positions is None:
            raise ValueError("positions_BT: this model has no absolute positions, leave it out")
        positions_BT, mask = encoder_inputs(tokens_BT, valid_BT, positions_BT)
        if self.num_positions is not None:
            check_ids(positions_BT, self.num_positions, "positions_BT", "the positions")
        return Inputs(tokens_BT, segments_BT if cfg.num_segments else None, positions_BT, mask)

    def _rows(self, tokens: Any, *others: Any) -> tuple[Any, ...]:
        """The arrays as rows [B, T]: the choices [B, C, T] of multiple-choice become rows of their own."""
        for name, x in zip(("segments_BT", "valid_BT", "positions_BT"), others):
            check_like(x, tokens, name)
        if not TASKS[self.task].choices:
            return tokens, *others
        if np.ndim(tokens) != 3:
            raise ValueError(f"the tokens have shape {np.shape(tokens)}: {self.task} needs [batch, choices, length]")
        return tuple(None if x is None else x.reshape(-1, x.shape[-1]) for x in (tokens, *others))

    def _output(self, tokens: jax.Array, hidden_BTD: jax.Array, valid_BT: jax.Array | None, train: bool) -> Output:
        task, cfg = TASKS[self.task], self.config
        pooled_BD = None if self.pooler is None else self.pooler(hidden_BTD, valid_BT)
        output = Output(hidden_BTD=hidden_BTD, pooled_BD=pooled_BD)
        if task.vocabulary:
            output = output.replace(logits=self.logits(hidden_BTD)[..., : cfg.vocab_size])
        if not task.scores:
            return output
        summary_BD = self.summary(hidden_BTD, valid_BT) if pooled_BD is None else pooled_BD
        scores = self.head(hidden_BTD if task.per_token else summary_BD, train)
        if task.scores == 1:
            scores = scores[..., 0].reshape(tokens.shape[:2])
        return output.replace(next_sentence_B2=scores) if task.vocabulary else output.replace(logits=scores)

    @staticmethod
    def example_inputs(task: str) -> tuple[Any, ...]:
        """Inputs of the right shapes for a task, to initialise and to trace."""
        return (jnp.zeros((1, 1, 1) if TASKS[task].choices else (1, 1), jnp.int32),)

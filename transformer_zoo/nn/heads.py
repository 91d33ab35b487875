"""What stands over an encoder: the output layers of its tasks. A family wires them; their weights lie under `lm_head`,
`head` and `pooler`, which a checkpoint for another task may lack."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo.nn import pooling
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.embedding import TokenEmbedding, padded_vocab

# The paths of the parameters that belong to a task, and not to the body.
PATHS = r"(lm_head|head|pooler)/.*"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """The head of an encoder for one task: an entry of a family's table."""

    pooled: bool = False
    """There is a pooler, and a row is classified by its output."""
    vocabulary: str | None = None
    """The activation before the logits of the vocabulary. None: there are none."""
    hidden: str | None = None
    """The activation of a hidden layer before the scores. None: there is none."""
    hidden_dropout: float = 0.0
    """Before the hidden layer."""
    dropout: float = 0.0
    """Before the scores."""


class MaskedLM(nn.Module):
    """Scores every token of the vocabulary: a dense layer, an activation, a norm, the table of tokens (Devlin et al.
    2018, section 3.1, and the code released with it)."""

    table: TokenEmbedding
    """That of the input, [V, E], is that of the output too."""
    activation: str
    norm: Any
    """Makes the normalisation layer."""
    compute: Compute
    init: Any
    dense_bias: bool = True
    bias: bool = True
    """Whether every token has a bias besides."""

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        """[B, T, D] to scores [B, T, V] of the padded vocabulary, in at least float32."""
        dense = self.compute.dense(self.table.width, use_bias=self.dense_bias, kernel_init=self.init, name="dense")
        logits_BTV = self.table.attend(self.norm(name="norm")(ACTIVATIONS[self.activation](dense(hidden_BTD))))
        if not self.bias:
            return logits_BTV
        size = padded_vocab(self.table.vocab_size)
        bias_V = self.param("bias", nn.initializers.zeros_init(), (size,), self.compute.param_dtype)
        return logits_BTV + bias_V.astype(logits_BTV.dtype)


class LogitsBias(nn.Module):
    """Adds a bias to the logits of each token."""

    vocab_size: int
    compute: Compute
    trained: bool = True
    """BART's is published, and not trained."""

    @nn.compact
    def __call__(self, logits_BTV: jax.Array) -> jax.Array:
        shape = (padded_vocab(self.vocab_size),)
        bias_V = self.param("bias", nn.initializers.zeros_init(), shape, self.compute.param_dtype)
        bias_V = bias_V if self.trained else jax.lax.stop_gradient(bias_V)
        return logits_BTV + bias_V.astype(logits_BTV.dtype)


class Pooler(nn.Module):
    """A dense layer and an activation over the first real token: what stands for the whole sequence, [B, D]."""

    activation: str
    compute: Compute
    init: Any

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
        dense = self.compute.dense(hidden_BTD.shape[-1], kernel_init=self.init, name="dense")
        return ACTIVATIONS[self.activation](dense(pooling.first(hidden_BTD, valid_BT)))


class Classifier(nn.Module):
    """Scores classes, in at least float32: dropout and a dense layer, with a hidden layer before it if it has an
    activation."""

    classes: int
    compute: Compute
    init: Any
    dropout: float = 0.0
    activation: str | None = None
    """Of a hidden layer; None: there is none."""
    hidden_dropout: float = 0.0
    """Before the hidden layer."""
    bias: bool = True
    """Whether the scores have one."""

    @nn.compact
    def __call__(self, x_BD: jax.Array, train: bool) -> jax.Array:
        if self.activation is not None:
            dense = self.compute.dense(x_BD.shape[-1], kernel_init=self.init, name="dense")
            x_BD = nn.Dropout(self.hidden_dropout, deterministic=not train)(x_BD)
            x_BD = ACTIVATIONS[self.activation](dense(x_BD))
        x_BD = nn.Dropout(self.dropout, deterministic=not train)(x_BD)
        scores = self.compute.dense(self.classes, use_bias=self.bias, kernel_init=self.init, name="scores")
        return scores(x_BD).astype(self.compute.accumulation_dtype)

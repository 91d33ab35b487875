"""What objectives that predict tokens have in common: the cross entropy over the vocabulary, and its measures."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_zoo.objectives.losses import cross_entropy
from transformer_zoo.objectives.objective import Objective, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenPrediction(Objective):
    """An objective whose loss is the mean cross entropy of predicted tokens, in nats."""

    predicted: ClassVar[str]
    """The entry of `counts` that is the number of predicted tokens."""

    def cross_entropy(
        self, model: Any, params: Any, hidden_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array,
        **settings: Any,
    ) -> Sums:  # fmt: skip
        """Nats and correct predictions of the model's output layer, summed.

        Args:
            hidden_BTD: the output layer's input.
            settings: further arguments of `losses.cross_entropy`.
        """
        nats, extra = cross_entropy(
            lambda params, hidden_BTD: model.apply({"params": params}, hidden_BTD, method="logits"),
            params, hidden_BTD, targets_BT, weights_BT, **settings,
        )  # fmt: skip
        return {"nats": nats, **extra}

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a predicted token."""
        return sums["nats"] / jnp.maximum(counts[self.predicted], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Loss (nats a predicted token), perplexity and accuracy."""
        return {
            "loss": self.loss(sums, counts),
            "perplexity": jnp.exp(TokenPrediction.loss(self, sums, counts)),
            "accuracy": sums["correct"] / jnp.maximum(counts[self.predicted], 1),
        }

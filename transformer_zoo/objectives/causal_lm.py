"""Predict the next token."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data.packing import PackedTexts
from transformer_zoo.objectives.losses import cross_entropy
from transformer_zoo.objectives.objective import Batch, Objective, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(Objective):
    """The cross entropy of each token given those before it in its document.

    Raises:
        ValueError: `logits_chunks` is less than 1.
    """

    name: ClassVar[str] = "causal-lm"
    task: ClassVar[str] = "causal-lm"

    logits_chunks: int = 1
    """Chunks of a row whose logits are computed one after the other: more chunks need less memory."""

    def __post_init__(self) -> None:
        if self.logits_chunks < 1:
            raise ValueError(f"CausalLM.logits_chunks is {self.logits_chunks}: it must be at least 1")

    def maker(self, data: Data) -> PackedTexts:
        """Documents packed as `data.packing` has it."""
        return PackedTexts(length=data.length, packing=data.packing)

    def counts(self, batch: Batch) -> Sums:
        """The number of targets, and of the bytes of text that they cover."""
        return {"tokens": batch["valid_BT"].sum(), "bytes": batch["bytes_B"].sum()}

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and correct predictions, summed over all targets. With a key, dropout is on."""
        output = model.apply(
            {"params": params},
            batch["tokens_BT"],
            positions_BT=batch["positions_BT"],
            documents_BT=batch["documents_BT"],
            train=key is not None,
            rngs=None if key is None else {"dropout": key},
        )
        nats, extra = cross_entropy(
            lambda params, hidden_BTD: model.apply({"params": params}, hidden_BTD, method="logits"),
            params,
            output.hidden_BTD,
            batch["targets_BT"],
            batch["valid_BT"],
            chunks=self.logits_chunks,
        )
        return {"nats": nats, **extra}

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a token."""
        return sums["nats"] / jnp.maximum(counts["tokens"], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Loss (nats a token), perplexity, accuracy, and the compression of the text in bits a byte."""
        loss = self.loss(sums, counts)
        return {
            "loss": loss,
            "perplexity": jnp.exp(loss),
            "accuracy": sums["correct"] / jnp.maximum(counts["tokens"], 1),
            "bits_per_byte": sums["nats"] / jnp.log(2.0) / jnp.maximum(counts["bytes"], 1),
        }

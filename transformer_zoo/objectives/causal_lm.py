"""Predict the next token."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data.packing import PackedTexts
from transformer_zoo.objectives.objective import Batch, Sums, training_mode
from transformer_zoo.objectives.token_prediction import TokenPrediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(TokenPrediction):
    """The cross entropy of each token given those before it in its document.

    Raises:
        ValueError: `logits_chunks` is less than 1.
    """

    name: ClassVar[str] = "causal-lm"
    task: ClassVar[str] = "causal-lm"
    loss_unit: ClassVar[str] = "nats a token"
    predicted: ClassVar[str] = "tokens"

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
            **training_mode(key),
        )
        return self.cross_entropy(
            model, params, output.hidden_BTD, batch["targets_BT"], batch["valid_BT"], chunks=self.logits_chunks
        )

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Loss (nats a token), perplexity, accuracy, and the compression of the text in bits a byte."""
        bits = sums["nats"] / jnp.log(2.0)
        return super().report(sums, counts) | {"bits_per_byte": bits / jnp.maximum(counts["bytes"], 1)}

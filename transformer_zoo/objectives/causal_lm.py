"""Predict the next token."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data.packing import PackedTexts
from transformer_zoo.nn import experts
from transformer_zoo.objectives.objective import Batch, Sums, training_mode
from transformer_zoo.objectives.token_prediction import TokenPrediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(TokenPrediction):
    """The cross entropy of each token given those before it in its document; of a model with experts also, in training,
    its load-balancing loss.

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
        """Nats and correct predictions, summed over all targets. With a key, dropout is on; and a model with experts
        adds what its routers did (`experts.measured`), the means times the number of targets. The tokens that are
        balanced are those of this batch: with accumulation, of each part."""
        output, sown = model.apply(
            {"params": params},
            batch["tokens_BT"],
            positions_BT=batch["positions_BT"],
            documents_BT=batch["documents_BT"],
            **training_mode(key),
            mutable=[experts.ROUTING],
        )
        sums = self.cross_entropy(
            model, params, output.hidden_BTD, batch["targets_BT"], batch["valid_BT"], chunks=self.logits_chunks
        )
        if key is not None and (routings := experts.routings_of(sown)):
            measured, targets = experts.measured(routings, batch["documents_BT"] > 0), batch["valid_BT"].sum()
            sums |= {"chosen": measured.pop("chosen")} | {name: x * targets for name, x in measured.items()}
        return sums

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a token and, in training, the load-balancing loss of a model with experts."""
        return super().loss(sums, counts) + sums.get("balance", 0.0) / jnp.maximum(counts[self.predicted], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Loss (nats a token), perplexity, accuracy, and, where bytes are counted, the compression of the text in bits
        a byte. In training, of a model with experts: the parts of the loss; the mean entropy of the router's
        probabilities, in nats; and the shares of tokens of the experts that most and fewest chose, in any layer."""
        bits, tokens = sums["nats"] / jnp.log(2.0), jnp.maximum(counts[self.predicted], 1)
        report = super().report(sums, counts)
        if "bytes" in counts:
            report |= {"bits_per_byte": bits / jnp.maximum(counts["bytes"], 1)}
        if "balance" not in sums:
            return report
        chosen_LE = jnp.concatenate([*sums["chosen"].values()])
        shares_LE = chosen_LE / jnp.maximum(chosen_LE.sum(axis=-1, keepdims=True), 1)
        return report | {
            "cross_entropy": sums["nats"] / tokens,
            "balance_loss": sums["balance"] / tokens,
            "router_entropy": sums["router_entropy"] / tokens,
            "highest_expert_share": shares_LE.max(),
            "lowest_expert_share": shares_LE.min(),
        }

"""Predict hidden tokens, and whether two segments belong together."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data.sentences import NextSentence, PairedRows
from transformer_zoo.objectives.masked_lm import MaskedLM
from transformer_zoo.objectives.objective import Batch, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining(MaskedLM):
    """BERT's pretraining (Devlin et al. 2019, section 3.1) or ALBERT's (Lan et al. 2020, section 3.1): the masked
    language model on pairs of segments, plus the cross entropy of a classification of the pair."""

    name: ClassVar[str] = "pretraining"
    loss_unit: ClassVar[str] = "nats a hidden token + nats a pair"
    task: ClassVar[str] = "pretraining"

    next_sentence: NextSentence = "nsp"
    """In the wrong pairs, the second segment is from another document (nsp), or the two are swapped (sop)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.next_sentence not in ("nsp", "sop"):
            raise ValueError(f"Pretraining.next_sentence is {self.next_sentence!r}: it must be nsp or sop")

    def maker(self, data: Data) -> PairedRows:
        """Rows of a pair each."""
        if data.packing != "documents":
            raise ValueError(f"data.packing={data.packing}: pairs of segments need data.packing=documents")
        return PairedRows(length=data.length, next_sentence=self.next_sentence, **self.masking)

    def counts(self, batch: Batch) -> Sums:
        """Those of a masked language model, and the number of pairs, without rows of padding."""
        return super().counts(batch) | {"pairs": batch["valid_BT"].any(axis=1).sum()}

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and correct predictions, summed over all hidden tokens and over all pairs."""
        output, sums = self.read(model, params, batch, key)
        logits_B2, next_B = output.next_sentence_B2, batch["next_B"]
        nats_B = -jnp.take_along_axis(jax.nn.log_softmax(logits_B2), next_B[:, None], axis=1)[:, 0]
        weights_B = batch["valid_BT"].any(axis=1).astype(logits_B2.dtype)
        right_B = (logits_B2.argmax(axis=1) == next_B) * weights_B
        return sums | {"next_nats": (nats_B * weights_B).sum(), "next_correct": right_B.sum()}

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a hidden token plus nats a pair."""
        return super().loss(sums, counts) + sums["next_nats"] / jnp.maximum(counts["pairs"], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """The loss; loss, perplexity and accuracy at the hidden tokens; loss and accuracy of the pairs."""
        masked_loss, pairs = super().loss(sums, counts), jnp.maximum(counts["pairs"], 1)
        return {
            "loss": self.loss(sums, counts),
            "masked_loss": masked_loss,
            "perplexity": jnp.exp(masked_loss),
            "accuracy": sums["correct"] / jnp.maximum(counts["masked"], 1),
            "next_loss": sums["next_nats"] / pairs,
            "next_accuracy": sums["next_correct"] / pairs,
        }

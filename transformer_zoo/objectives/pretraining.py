"""Predict hidden tokens, and whether two segments belong together."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data.sentences import NextSentence, paired_rows
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.objectives.masked_lm import MaskedLM
from transformer_zoo.objectives.objective import Batch, MakeRows, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining(MaskedLM):
    """BERT's pretraining (Devlin et al. 2019, section 3.1) or ALBERT's (Lan et al. 2020, section 3.1): the masked
    language model on pairs of segments, and the cross entropy of a judgement on the pair; the two are added."""

    name: ClassVar[str] = "pretraining"
    task: ClassVar[str] = "pretraining"
    frame: ClassVar[int] = 3

    next_sentence: NextSentence = "nsp"
    """nsp: does the second follow the first, or is it from another document; sop: or have the two changed places."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.next_sentence not in ("nsp", "sop"):
            raise ValueError(f"Pretraining.next_sentence is {self.next_sentence!r}: it must be nsp or sop")

    def rows(self, tokenizer: Tokenizer, data: Data) -> MakeRows:
        """Rows of a pair each."""
        if data.packing != "documents":
            raise ValueError(f"data.packing={data.packing}: pairs of segments need data.packing=documents")
        return self.masked(paired_rows, tokenizer, data, next_sentence=self.next_sentence)

    def shapes(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of `data.sentences.paired_rows`."""
        segments = {"segments_BT": jax.ShapeDtypeStruct((batch, length), jnp.int32)}
        next_B = jax.ShapeDtypeStruct((batch,), jnp.int32)
        return super().shapes(batch, length) | segments | {"next_B": next_B}

    def counts(self, batch: Batch) -> Sums:
        """Besides those of a masked language model how many pairs there are; a row of nothing but padding is none."""
        return super().counts(batch) | {"pairs": batch["valid_BT"].any(axis=1).sum()}

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and right guesses, over all hidden tokens and over all pairs."""
        output, sums = self.read(model, params, batch, key)
        logits_B2, next_B = output.next_sentence_B2, batch["next_B"]
        nats_B = -jnp.take_along_axis(jax.nn.log_softmax(logits_B2), next_B[:, None], axis=1)[:, 0]
        weights_B = batch["valid_BT"].any(axis=1).astype(logits_B2.dtype)
        right_B = (logits_B2.argmax(axis=1) == next_B) * weights_B
        return sums | {"next_nats": (nats_B * weights_B).sum(), "next_correct": right_B.sum()}

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a hidden token and nats a pair."""
        return super().loss(sums, counts) + sums["next_nats"] / jnp.maximum(counts["pairs"], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """The loss; of the masked language model its own, and perplexity and accuracy; the same of the pairs."""
        masked_loss, pairs = super().loss(sums, counts), jnp.maximum(counts["pairs"], 1)
        return {
            "loss": self.loss(sums, counts),
            "masked_loss": masked_loss,
            "perplexity": jnp.exp(masked_loss),
            "accuracy": sums["correct"] / jnp.maximum(counts["masked"], 1),
            "next_loss": sums["next_nats"] / pairs,
            "next_accuracy": sums["next_correct"] / pairs,
        }

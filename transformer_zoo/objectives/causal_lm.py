"""Predict the next token."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data.packing import pack_texts
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.objectives.losses import cross_entropy
from transformer_zoo.objectives.objective import Batch, MakeRows, Objective, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(Objective):
    """The cross entropy of each token given those before it in its document.

    Raises:
        ValueError: `pieces` is less than 1.
    """

    name: ClassVar[str] = "causal-lm"
    task: ClassVar[str] = "causal-lm"

    pieces: int = 1
    """Parts of a row whose logits are computed at a time: more of them need less memory."""

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise ValueError(f"CausalLM.pieces is {self.pieces}: it must be at least 1")

    def rows(self, tokenizer: Tokenizer, data: Data) -> MakeRows:
        """Documents as `data.packing` lays them, each after a start token (the end token where there is no other)."""
        if tokenizer.eos_id is None:
            raise ValueError(
                "the tokenizer has no end-of-text token (eos), so the end of a document cannot be predicted"
            )
        return functools.partial(pack_texts, tokenizer=tokenizer, length=data.length, packing=data.packing)

    def shapes(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of `data.packing.pack`."""
        names = ("tokens_BT", "targets_BT", "documents_BT", "positions_BT")
        shapes = {name: jax.ShapeDtypeStruct((batch, length), jnp.int32) for name in names}
        shapes["valid_BT"] = jax.ShapeDtypeStruct((batch, length), jnp.bool_)
        return shapes | {"bytes_B": jax.ShapeDtypeStruct((batch,), jnp.int32)}

    def counts(self, batch: Batch) -> Sums:
        """How many targets there are, and of how many bytes of text."""
        return {"tokens": batch["valid_BT"].sum(), "bytes": batch["bytes_B"].sum()}

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and right guesses, over all targets. With a key the model is trained: dropout is on."""
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
            chunks=self.pieces,
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

"""Predict the tokens that are hidden in a text that is read from both sides."""

import dataclasses
import functools
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data.corruption import Unit, masked_rows, predictions
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.objectives.losses import cross_entropy
from transformer_zoo.objectives.objective import Batch, MakeRows, Objective, Sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """The cross entropy of the hidden tokens (Devlin et al. 2019, section 3.1; Liu et al. 2019, section 4).

    The output layer, which is as wide as the vocabulary, is applied to the hidden tokens alone.

    Raises:
        ValueError: an unknown unit; a rate or share that is none.
    """

    name: ClassVar[str] = "masked-lm"
    task: ClassVar[str] = "masked-lm"
    frame: ClassVar[int] = 2
    """Special tokens in a row."""

    rate: float = 0.15
    """Share of the tokens that are to be predicted."""
    unit: Unit = "tokens"
    """What is hidden: single tokens; whole words; spans of 1 to 10 words (Joshi et al. 2020)."""
    static: bool = False
    """The same tokens of a row are hidden in every epoch, as in BERT; otherwise others, as in RoBERTa. (Documents give
    the same rows in each epoch; joined by data.packing=concat, or in pairs, they give others.)"""
    mask_share: float = 0.8
    """Of the tokens to predict, how many the model sees as a mask."""
    random_share: float = 0.1
    """How many it sees as some other token. The rest it sees as they are."""

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"{type(self).__name__}.unit is {self.unit!r}: it must be tokens, words or spans")
        if not 0 < self.rate < 1:
            raise ValueError(f"{type(self).__name__}.rate is {self.rate}: it must lie between 0 and 1")
        if min(self.mask_share, self.random_share, 1 - self.mask_share - self.random_share) < -1e-9:
            raise ValueError(
                f"{type(self).__name__}: mask_share={self.mask_share} and random_share={self.random_share} must be "
                "shares of one whole"
            )

    def rows(self, tokenizer: Tokenizer, data: Data) -> MakeRows:
        """Rows of a text each, as `data.packing` cuts them."""
        return self.masked(masked_rows, tokenizer, data, packing=data.packing)

    def masked(self, function: Any, tokenizer: Tokenizer, data: Data, **more: Any) -> MakeRows:
        """A maker of rows, told how to mask them.

        Raises:
            ValueError: the tokenizer has no mask, or nothing to frame a row with; rows that hold little more than that.
        """
        if data.length < self.frame + 2:
            raise ValueError(f"data.length={data.length}: {self.frame} tokens frame a row, so it needs more")
        missing = [role for role in ("cls", "sep", "mask") if getattr(tokenizer, f"{role}_id") is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no special token for {', '.join(missing)}: take one that was made for a masked "
                "language model, such as vocabulary.kind=wordpiece or roberta"
            )
        names = ("rate", "unit", "static", "mask_share", "random_share")
        how = {name: getattr(self, name) for name in names}
        return functools.partial(function, tokenizer=tokenizer, length=data.length, **more, **how)

    def shapes(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of `data.corruption.mask`."""
        places = predictions(length - self.frame, self.rate)
        shapes = {"tokens_BT": (length, jnp.int32), "valid_BT": (length, jnp.bool_)}
        shapes |= {"masked_BP": (places, jnp.int32), "targets_BP": (places, jnp.int32)}
        shapes |= {"weights_BP": (places, jnp.float32)}
        return {name: jax.ShapeDtypeStruct((batch, size), dtype) for name, (size, dtype) in shapes.items()}

    def counts(self, batch: Batch) -> Sums:
        """How many tokens are read, and how many predicted."""
        return {"tokens": batch["valid_BT"].sum(), "masked": batch["weights_BP"].sum()}

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and right guesses, over all hidden tokens."""
        return self.read(model, params, batch, key)[1]

    def read(self, model: Any, params: Any, batch: Batch, key: jax.Array | None) -> tuple[Any, Sums]:
        """The model's output, and the sums over the hidden tokens."""
        segments = {"segments_BT": batch["segments_BT"]} if "segments_BT" in batch else {}
        output = model.apply(
            {"params": params},
            batch["tokens_BT"],
            **segments,
            valid_BT=batch["valid_BT"],
            train=key is not None,
            rngs=None if key is None else {"dropout": key},
        )
        nats, extra = cross_entropy(
            lambda params, hidden_BPD: model.apply({"params": params}, hidden_BPD, method="logits"),
            params,
            jnp.take_along_axis(output.hidden_BTD, batch["masked_BP"][..., None], axis=1),
            batch["targets_BP"],
            batch["weights_BP"],
        )
        return output, {"nats": nats, **extra}

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a hidden token."""
        return sums["nats"] / jnp.maximum(counts["masked"], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Loss (nats a hidden token), perplexity and accuracy over the hidden tokens."""
        loss = self.loss(sums, counts)
        return {
            "loss": loss,
            "perplexity": jnp.exp(loss),
            "accuracy": sums["correct"] / jnp.maximum(counts["masked"], 1),
        }

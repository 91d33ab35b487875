"""Predict the hidden tokens of a text from both sides."""

import dataclasses
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data.corruption import MaskedRows, Masking, Unit
from transformer_zoo.objectives.objective import Batch, Sums, training_mode
from transformer_zoo.objectives.token_prediction import TokenPrediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(TokenPrediction):
    """The cross entropy of the hidden tokens (Devlin et al. 2019, section 3.1; Liu et al. 2019, section 4).

    The output layer, which is as wide as the vocabulary, is applied only at the hidden tokens.

    Raises:
        ValueError: an unknown unit; a rate or share outside [0, 1].
    """

    name: ClassVar[str] = "masked-lm"
    task: ClassVar[str] = "masked-lm"
    loss_unit: ClassVar[str] = "nats a hidden token"
    predicted: ClassVar[str] = "masked"

    rate: float = 0.15
    """Share of the tokens that are to be predicted."""
    unit: Unit = "tokens"
    """What is hidden: single tokens; whole words; spans of 1 to 10 words (Joshi et al. 2020)."""
    static: bool = False
    """The same tokens of a row are hidden in every epoch, as in BERT; otherwise they are drawn anew, as in RoBERTa.
    (Single documents give the same rows in each epoch; joined by data.packing=concat, or in pairs, they do not.)"""
    mask_share: float = 0.8
    """Share of the tokens to predict that are replaced by the mask."""
    random_share: float = 0.1
    """Share of them that are replaced by a random token. The rest stay as they are."""

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"{type(self).__name__}.unit is {self.unit!r}: it must be tokens, words or spans")
        if not 0 < self.rate < 1:
            raise ValueError(f"{type(self).__name__}.rate is {self.rate}: it must lie between 0 and 1")
        if min(self.mask_share, self.random_share, 1 - self.mask_share - self.random_share) < -1e-9:
            raise ValueError(
                f"{type(self).__name__}: mask_share={self.mask_share} and random_share={self.random_share} must be at "
                "least 0, and at most 1 together"
            )

    def maker(self, data: Data) -> Masking:
        """Rows of one text each, as `data.packing` cuts them."""
        return MaskedRows(length=data.length, packing=data.packing, **self.masking)

    @property
    def masking(self) -> dict[str, Any]:
        """The settings of `Masking`."""
        names = ("rate", "unit", "static", "mask_share", "random_share")
        return {name: getattr(self, name) for name in names}

    def counts(self, batch: Batch) -> Sums:
        """The numbers of tokens that are read and that are predicted."""
        return {"tokens": batch["valid_BT"].sum(), "masked": batch["weights_BP"].sum()}

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and correct predictions, summed over all hidden tokens."""
        return self.read(model, params, batch, key)[1]

    def read(self, model: Any, params: Any, batch: Batch, key: jax.Array | None) -> tuple[Any, Sums]:
        """The model's output, and the sums over the hidden tokens."""
        segments = {"segments_BT": batch["segments_BT"]} if "segments_BT" in batch else {}
        output = model.apply(
            {"params": params},
            batch["tokens_BT"],
            **segments,
            valid_BT=batch["valid_BT"],
            **training_mode(key),
        )
        hidden_BPD = jnp.take_along_axis(output.hidden_BTD, batch["masked_BP"][..., None], axis=1)
        return output, self.cross_entropy(model, params, hidden_BPD, batch["targets_BP"], batch["weights_BP"])

"""What an answer must and must not hold, whichever way its tokens are chosen."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """Where they want one token, no other has a chance; what they forbid has none.

    Attributes:
        min_new_tokens: nothing ends a row before it has so many new tokens.
        no_repeat_ngram_size: no so many tokens in succession occur twice in what a decoder reads and writes, the prompt
            or the start token included (Paulus et al. 2018, section 2.5). 0: they may.
        suppressed: ids of tokens that are never chosen.
        forced_first: the id of the first new token. None: what the model's configuration forces, if anything.

    Raises:
        ValueError: a count below 0.
    """

    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    suppressed: tuple[int, ...] = ()
    forced_first: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_new_tokens", "no_repeat_ngram_size"):
            if (count := getattr(self, name)) != int(count) or count < 0:
                raise ValueError(f"{name}={count} must be a number of tokens, at least 0")
        object.__setattr__(self, "suppressed", tuple(self.suppressed))  # lists are not hashable

    @classmethod
    def under(cls, other: "Rules", **settings: Any) -> Self:
        """With these settings, and for the rest as another way of choosing says, in what both know."""
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {field.name: getattr(other, field.name) for field in dataclasses.fields(other) if field.name in known}
        return cls(**kept | settings)

    def apply(
        self,
        n: jax.Array | int,
        scores_BV: jax.Array,
        new_BR: jax.Array,
        *,
        config: Any,
        read_BT: jax.Array,
        valid_BT: jax.Array,
        max_new: jax.Array | int,
        stop_ids: jax.Array,
    ) -> jax.Array:
        """The scores of the new token n, counted from 0: -inf where it may not be, and 0 where it must.

        Args:
            new_BR: the new tokens, of which there are n.
            config: the model's, whose `forced_bos_id` and `forced_eos_id`, if it has them, are the first and the last
                of the new tokens that there may be.
            read_BT: what the decoder read before them, padded on the left.
            valid_BT: which of it is real.
            stop_ids: what ends a row.
        """
        if self.suppressed:
            scores_BV = scores_BV.at[:, np.asarray(self.suppressed)].set(-jnp.inf)
        if self.min_new_tokens:
            scores_BV = scores_BV.at[:, stop_ids].min(jnp.where(n < self.min_new_tokens, -jnp.inf, jnp.inf))
        if self.no_repeat_ngram_size:
            tokens_BS = jnp.concatenate([read_BT, new_BR], axis=1)
            starts_B = read_BT.shape[1] - valid_BT.sum(axis=1)
            scores_BV = without_repeats(
                scores_BV, tokens_BS, starts_B, read_BT.shape[1] + n, size=self.no_repeat_ngram_size
            )
        first = getattr(config, "forced_bos_id", None) if self.forced_first is None else self.forced_first
        for place, token in ((0, first), (max_new - 1, getattr(config, "forced_eos_id", None))):
            if token is not None:
                only_V = jnp.where(jnp.arange(scores_BV.shape[1]) == token, 0, -jnp.inf)
                scores_BV = jnp.where(n == place, only_V, scores_BV)
        return scores_BV


def without_repeats(
    scores_BV: jax.Array, tokens_BS: jax.Array, starts_B: jax.Array, end: jax.Array | int, *, size: int
) -> jax.Array:
    """The scores, -inf for tokens that would end n-grams of this size that the row has already.

    Args:
        tokens_BS: the rows, in slots.
        starts_B, end: the first slot of a row, and the slot behind the last.
    """
    B, S = tokens_BS.shape
    windows = S - size + 1
    if windows < 1:
        return scores_BV
    last_BG = jax.lax.dynamic_slice_in_dim(tokens_BS, end - size + 1, size - 1, axis=1)
    window_W = jnp.arange(windows)
    again_BW = (window_W >= starts_B[:, None]) & (window_W + size <= end)
    for i in range(size - 1):
        again_BW &= tokens_BS[:, i : i + windows] == last_BG[:, i : i + 1]
    return scores_BV.at[jnp.arange(B)[:, None], tokens_BS[:, size - 1 :]].min(jnp.where(again_BW, -jnp.inf, jnp.inf))

"""Constraints on the generated tokens, as changes of the next token's logits. Every strategy has them."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsRules:
    """Constraints on the generated tokens.

    The repetition penalty changes the logits first. Forbidden tokens then get -inf. A forced token overrides both: it
    gets 0 and all others -inf.

    Attributes:
        min_new_tokens: no row ends before it has this number of new tokens.
        no_repeat_ngram_size: no n-gram of this size may occur twice in the decoder's tokens, which include the prompt
            or the start token (Paulus et al. 2018, section 2.5). 0: no constraint.
        suppressed: ids of tokens that are never generated.
        forced_first: the id of the first new token. None: the `forced_bos_id` of the model's configuration, if any.
        repetition_penalty: positive logits of tokens that the decoder has read or generated are divided by it, and
            negative ones multiplied (Keskar et al. 2019, section 4.1, with the sign respected). 1: no penalty.

    Raises:
        ValueError: a count below 0, or a penalty that is not positive.
    """

    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    suppressed: tuple[int, ...] = dataclasses.field(default=(), metadata={"published": "suppress_tokens"})
    forced_first: int | None = dataclasses.field(default=None, metadata={"published": "forced_bos_token_id"})
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("min_new_tokens", "no_repeat_ngram_size"):
            if (count := getattr(self, name)) != int(count) or count < 0:
                raise ValueError(f"{name}={count} must be a number of tokens, at least 0")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty={self.repetition_penalty} must be positive: 1 is no penalty")
        object.__setattr__(self, "suppressed", tuple(self.suppressed))  # lists are not hashable

    def apply(
        self,
        n: jax.Array | int,
        logits_BV: jax.Array,
        new_BR: jax.Array,
        *,
        config: Any,
        prompt_BT: jax.Array,
        valid_BT: jax.Array,
        max_new: jax.Array | int,
        stop_ids: jax.Array,
    ) -> jax.Array:
        """The logits, or log probabilities, of new token n under the constraints.

        Args:
            n: the number of new tokens so far.
            new_BR: the new tokens; only the first n are set.
            config: the model's, whose `forced_bos_id` and `forced_eos_id`, where it has them, are the first and the
                last new token.
            prompt_BT: the decoder's tokens before the new ones, left-padded.
            valid_BT: which of these are real.
            max_new: the number of new tokens that are asked for.
            stop_ids: the ids that end a row.
        """
        T = prompt_BT.shape[1]
        tokens_BS, starts_B, end = jnp.concatenate([prompt_BT, new_BR], axis=1), T - valid_BT.sum(axis=1), T + n
        if self.repetition_penalty != 1:
            logits_BV = penalize_repeats(logits_BV, tokens_BS, starts_B, end, penalty=self.repetition_penalty)
        if self.suppressed:
            logits_BV = logits_BV.at[:, np.asarray(self.suppressed)].set(-jnp.inf)
        if self.min_new_tokens:
            logits_BV = logits_BV.at[:, stop_ids].min(jnp.where(n < self.min_new_tokens, -jnp.inf, jnp.inf))
        if self.no_repeat_ngram_size:
            logits_BV = block_repeats(logits_BV, tokens_BS, starts_B, end, size=self.no_repeat_ngram_size)
        first = getattr(config, "forced_bos_id", None) if self.forced_first is None else self.forced_first
        for index, token in ((0, first), (max_new - 1, getattr(config, "forced_eos_id", None))):
            if token is not None:
                forced_V = jnp.where(jnp.arange(logits_BV.shape[1]) == token, 0, -jnp.inf)
                logits_BV = jnp.where(n == index, forced_V, logits_BV)
        return logits_BV


def penalize_repeats(
    logits_BV: jax.Array, tokens_BS: jax.Array, starts_B: jax.Array, end: jax.Array | int, *, penalty: float
) -> jax.Array:
    """Logits of tokens that a row already has, less probable by the penalty; the other arguments as `block_repeats`."""
    slot_S = jnp.arange(tokens_BS.shape[1])
    present_BS = (slot_S >= starts_B[:, None]) & (slot_S < end)
    rows_B1 = jnp.arange(len(tokens_BS))[:, None]
    present_BV = jnp.zeros(logits_BV.shape, bool).at[rows_B1, tokens_BS].max(present_BS)
    penalized_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return jnp.where(present_BV, penalized_BV, logits_BV)


def block_repeats(
    logits_BV: jax.Array, tokens_BS: jax.Array, starts_B: jax.Array, end: jax.Array | int, *, size: int
) -> jax.Array:
    """Logits with -inf for each token that would complete an n-gram of this size which the row already has.

    Args:
        tokens_BS: the decoder's tokens by slot, prompt and new ones.
        starts_B: the first slot of each row.
        end: the slot after the last token.
    """
    B, S = tokens_BS.shape
    windows = S - size + 1
    if windows < 1:
        return logits_BV
    last_BG = jax.lax.dynamic_slice_in_dim(tokens_BS, end - size + 1, size - 1, axis=1)
    window_W = jnp.arange(windows)
    match_BW = (window_W >= starts_B[:, None]) & (window_W + size <= end)
    for i in range(size - 1):
        match_BW &= tokens_BS[:, i : i + windows] == last_BG[:, i : i + 1]
    return logits_BV.at[jnp.arange(B)[:, None], tokens_BS[:, size - 1 :]].min(jnp.where(match_BW, -jnp.inf, jnp.inf))

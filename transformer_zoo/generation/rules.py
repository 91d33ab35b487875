"""Constraints on the generated tokens, as changes of the next token's logits. Every strategy has them."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.json_files import excerpt


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitsRules:
    """Constraints on the generated tokens.

    They change the logits in the order of `apply`: biases and penalties first. Forbidden tokens then get -inf. A forced
    token overrides all of them: it gets 0 and all others -inf.

    Attributes:
        min_new_tokens: no row ends before it has this number of new tokens.
        min_length: likewise, this number of the decoder's tokens, which include the prompt or the start token.
            `min_new_tokens` overrides it.
        no_repeat_ngram_size: no n-gram of this size may occur twice in the decoder's tokens (Paulus et al. 2018,
            section 2.5). 0: no constraint.
        encoder_no_repeat_ngram_size: no n-gram of this size of the source, or of a decoder's prompt, may be
            generated. 0: no constraint.
        suppressed: ids of tokens that are never generated.
        begin_suppressed: ids of tokens that are not generated first, or right after the forced first token.
        bad_words: sequences of token ids that are never generated. A single token that ends a text is no bad word.
        sequence_bias: pairs of a sequence of token ids and a number, which is added to the logit of the sequence's
            last token where the tokens before it are the rest of the sequence. A mapping is taken too.
        forced_first: the id of the first new token, whatever the decoder has read. None: the checkpoint's
            `TokenIds.forced_bos`, if any.
        repetition_penalty: positive logits of tokens that the decoder has read or generated are divided by it, and
            negative ones multiplied (Keskar et al. 2019, section 4.1, with the sign respected). 1: no penalty.
        encoder_repetition_penalty: positive logits of the tokens of the source, or of a decoder's prompt, are
            multiplied by it, and negative ones divided: above 1 the answer keeps to the source. 1: no change.

    Raises:
        ValueError: a count below 0, a penalty that is not positive, an empty sequence, a bias that is not a number, a
            value of another type, or what is no token id.
    """

    min_new_tokens: int = 0
    min_length: int = 0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    suppressed: tuple[int, ...] = dataclasses.field(default=(), metadata={"published": "suppress_tokens"})
    begin_suppressed: tuple[int, ...] = dataclasses.field(default=(), metadata={"published": "begin_suppress_tokens"})
    bad_words: tuple[tuple[int, ...], ...] = dataclasses.field(default=(), metadata={"published": "bad_words_ids"})
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    forced_first: int | None = dataclasses.field(default=None, metadata={"published": "forced_bos_token_id"})
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, kind in _numbers(type(self)).items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _as_number(name, value, kind))
        for name in ("min_new_tokens", "min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"):
            if (count := getattr(self, name)) < 0:
                raise ValueError(f"{name}={count} must be a number of tokens, at least 0")
        for name in ("repetition_penalty", "encoder_repetition_penalty"):
            if not 0 < (penalty := getattr(self, name)) < math.inf:
                raise ValueError(f"{name}={penalty} must be positive: 1 is no penalty")
        # Lists and mappings are not hashable.
        words_and_bias = lambda pair: (tuple(pair[0]), float(pair[1]))
        for name, of_each, expected in (
            ("suppressed", lambda i: i, "token ids"),
            ("begin_suppressed", lambda i: i, "token ids"),
            ("bad_words", tuple, "sequences of token ids"),
            ("sequence_bias", words_and_bias, "pairs of a sequence of token ids and a number"),
        ):
            value = getattr(self, name)
            try:
                normal = tuple(map(of_each, value.items() if isinstance(value, Mapping) else value))
            except (TypeError, ValueError, LookupError):
                raise ValueError(f"{name}={excerpt(repr(value))} must be {expected}") from None
            object.__setattr__(self, name, normal)
        if not all(self.bad_words) or not all(words for words, _ in self.sequence_bias):
            raise ValueError("bad_words and sequence_bias have sequences of at least one token")
        if any(math.isnan(bias) for _, bias in self.sequence_bias):
            raise ValueError(f"sequence_bias={self.sequence_bias}: a bias must be a number")
        for name, ids in self.token_ids_by_setting().items():
            if wrong := [i for i in ids if isinstance(i, bool) or not isinstance(i, int | np.integer)]:
                raise ValueError(f"{name} has {wrong[0]!r} in it, which is no token id")

    def forbidden(self, token_ids: TokenIds) -> list[tuple[int, ...]]:
        """The sequences of tokens that are never generated; token_ids: the model's."""
        bad_words = [words for words in self.bad_words if words not in [(end,) for end in token_ids.eos]]
        biased = [words for words, bias in self.sequence_bias if bias == -math.inf]
        return [*((i,) for i in self.suppressed), *bad_words, *biased]

    def token_ids_by_setting(self) -> dict[str, list[int]]:
        """All token ids that each setting names."""
        return {
            "suppressed": [*self.suppressed],
            "begin_suppressed": [*self.begin_suppressed],
            "bad_words": [i for words in self.bad_words for i in words],
            "sequence_bias": [i for words, _ in self.sequence_bias for i in words],
            "forced_first": [] if self.forced_first is None else [self.forced_first],
        }

    def apply(
        self,
        n: jax.Array | int,
        logits_BV: jax.Array,
        new_BR: jax.Array,
        *,
        token_ids: TokenIds,
        prompt_BT: jax.Array,
        valid_BT: jax.Array,
        source_BS: jax.Array,
        valid_BS: jax.Array,
        max_new: jax.Array | int,
        stop_ids: jax.Array,
    ) -> jax.Array:
        """The logits, or log probabilities, of new token n under the constraints.

        Args:
            n: the number of new tokens so far, or int[B], those of each row.
            new_BR: the new tokens; only the first n are set.
            token_ids: the model's: its ends, and the tokens that are forced.
            prompt_BT: the decoder's tokens before the new ones, left-padded.
            valid_BT: which of these are real.
            source_BS: the source, or a decoder's prompt, left-padded.
            valid_BS: which of these are real.
            max_new: the number of new tokens that are asked for.
            stop_ids: the ids that end a row.
        """
        if jnp.ndim(n):
            rows = {"prompt_BT": prompt_BT, "valid_BT": valid_BT, "source_BS": source_BS, "valid_BS": valid_BS}
            fixed = {"token_ids": token_ids, "max_new": max_new, "stop_ids": stop_ids}

            def of_row(n, *row):
                logits_1V, new_1R, read = jax.tree.map(lambda x: x[None], row)
                return self.apply(n, logits_1V, new_1R, **read, **fixed)[0]

            return jax.vmap(of_row)(n, logits_BV, new_BR, rows)
        T, S = prompt_BT.shape[1], source_BS.shape[1]
        read = jnp.concatenate([prompt_BT, new_BR], axis=1), T - valid_BT.sum(axis=1), T + n
        source = source_BS, S - valid_BS.sum(axis=1), S
        first = token_ids.forced_bos if self.forced_first is None else self.forced_first
        forces_B = jnp.full(len(valid_BT), first is not None)
        if self.forced_first is None:  # as in the reference, behind a single token
            forces_B &= valid_BT.sum(axis=1) == 1
        if self.sequence_bias:
            logits_BV = bias_sequences(logits_BV, *read, biases=dict(self.sequence_bias))
        if self.encoder_repetition_penalty != 1:
            logits_BV = penalize_repeats(logits_BV, *source, penalty=1 / self.encoder_repetition_penalty)
        if self.repetition_penalty != 1:
            logits_BV = penalize_repeats(logits_BV, *read, penalty=self.repetition_penalty)
        if self.no_repeat_ngram_size:
            logits_BV = block_repeats(logits_BV, *read, size=self.no_repeat_ngram_size)
        if self.encoder_no_repeat_ngram_size:
            logits_BV = block_ngrams(logits_BV, *read, *source, size=self.encoder_no_repeat_ngram_size)
        if bad_words := [words for words in self.bad_words if words not in [(end,) for end in token_ids.eos]]:
            logits_BV = bias_sequences(logits_BV, *read, biases=dict.fromkeys(bad_words, -math.inf))
        if self.min_new_tokens or self.min_length:
            early_B = n < self.min_new_tokens if self.min_new_tokens else read[2] - read[1] < self.min_length
            early_B1 = jnp.broadcast_to(early_B, logits_BV.shape[:1])[:, None]
            logits_BV = logits_BV.at[:, stop_ids].min(jnp.where(early_B1, -jnp.inf, jnp.inf))
        if self.suppressed:
            logits_BV = logits_BV.at[:, np.asarray(self.suppressed)].set(-jnp.inf)
        if self.begin_suppressed:
            begins_B1 = (n == forces_B)[:, None]
            logits_BV = logits_BV.at[:, np.asarray(self.begin_suppressed)].min(jnp.where(begins_B1, -jnp.inf, jnp.inf))
        firsts = () if first is None else (first,)
        for now, forced in (((n == 0) & forces_B[:, None], firsts), (n == max_new - 1, token_ids.forced_eos)):
            if forced:
                forced_V = jnp.where(jnp.isin(jnp.arange(logits_BV.shape[1]), np.asarray(forced)), 0, -jnp.inf)
                logits_BV = jnp.where(now, forced_V, logits_BV)
        return logits_BV


@functools.cache
def _numbers(cls: type) -> dict[str, type]:
    """The fields that are numbers, and their types."""
    hints = typing.get_type_hints(cls)
    kinds = {
        name: typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint for name, hint in hints.items()
    }
    return {field.name: kinds[field.name] for field in dataclasses.fields(cls) if kinds[field.name] in (int, float)}


def _as_number(name: str, value: Any, kind: type) -> int | float:
    """A number of this type from what may be numpy's; a whole number may have a decimal point.

    Raises:
        ValueError: it is none.
    """
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or kind is int and value % 1:
        expected = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name}={excerpt(repr(value))} must be {expected}")
    return int(value) if kind is int else value.item() if isinstance(value, np.generic) else value


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
    return block_ngrams(logits_BV, tokens_BS, starts_B, end, tokens_BS, starts_B, end, size=size)


def block_ngrams(
    logits_BV: jax.Array,
    tokens_BT: jax.Array,
    starts_B: jax.Array,
    end: jax.Array | int,
    other_BS: jax.Array,
    other_starts_B: jax.Array,
    other_end: jax.Array | int,
    *,
    size: int,
) -> jax.Array:
    """Logits with -inf for each token that would complete an n-gram of this size which other tokens have.

    Args:
        tokens_BT, starts_B, end: the decoder's tokens, as in `block_repeats`.
        other_BS, other_starts_B, other_end: those whose n-grams are blocked, likewise.
    """
    windows = other_BS.shape[1] - size + 1
    if windows < 1:
        return logits_BV
    last_BG, long_B = _last(tokens_BT, starts_B, end, size - 1)
    window_W = jnp.arange(windows)
    match_BW = long_B[:, None] & (window_W >= other_starts_B[:, None]) & (window_W + size <= other_end)
    for i in range(size - 1):
        match_BW &= other_BS[:, i : i + windows] == last_BG[:, i : i + 1]
    rows_B1 = jnp.arange(len(tokens_BT))[:, None]
    return logits_BV.at[rows_B1, other_BS[:, size - 1 :]].min(jnp.where(match_BW, -jnp.inf, jnp.inf))


def bias_sequences(
    logits_BV: jax.Array,
    tokens_BS: jax.Array,
    starts_B: jax.Array,
    end: jax.Array | int,
    *,
    biases: Mapping[tuple[int, ...], float],
) -> jax.Array:
    """Logits with a bias for each token that would complete one of these sequences; the other arguments as
    `block_repeats`. Sequences of one length are compared at once."""
    bias_BV = jnp.zeros_like(logits_BV)
    for length in sorted({len(words) for words in biases}):
        of_length = {words: bias for words, bias in biases.items() if len(words) == length}
        words_ML, bias_M = np.asarray([*of_length]), np.asarray([*of_length.values()], logits_BV.dtype)
        last_BG, long_B = _last(tokens_BS, starts_B, end, length - 1)
        match_BM = (last_BG[:, None] == words_ML[:, :-1]).all(axis=-1) & long_B[:, None]
        bias_BV = bias_BV.at[:, words_ML[:, -1]].add(jnp.where(match_BM, bias_M, 0))
    return logits_BV + bias_BV


def _last(tokens_BS: jax.Array, starts_B: jax.Array, end: jax.Array | int, size: int) -> tuple[jax.Array, jax.Array]:
    """The last tokens of each row, [B, size], and whether the row has as many, [B]."""
    if size > tokens_BS.shape[1]:
        return jnp.zeros((len(tokens_BS), size), tokens_BS.dtype), jnp.zeros(len(tokens_BS), bool)
    return jax.lax.dynamic_slice_in_dim(tokens_BS, end - size, size, axis=1), end - starts_B >= size

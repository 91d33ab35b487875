"""Beam search: the few most probable partial answers of each length are kept and extended."""

import dataclasses
import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import struct

from transformer_zoo.generation.strategy import DecodeInputs, Strategy, repeat_rows, row_axis
from transformer_zoo.nn import Cache
from transformer_zoo.nn import cache as caches

ABSENT = -1e9  # the score of a missing beam or answer: far below every real score, and above the -inf of the rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam(Strategy):
    """The most probable answers that a beam search finds, under the `LogitsRules`.

    An answer's score is the sum of the log probabilities of its tokens, its end token included, divided by
    length ** length_penalty (a simpler form than that of Wu et al. 2016, section 7, and the one that published models
    are used with).

    Attributes:
        num_beams: beams kept at each step; 1 is greedy search.
        length_penalty: above 0 favours long answers, below 0 short ones; 0 is the plain sum.
        early_stopping: when the search of a row with `num_beams` answers ends. True: at once. False: when the best
            beam, divided by its present length, scores no better than the worst answer. "never": when no extension of
            it can score better, whatever its length.
        renormalize: whether the probabilities under the rules are scaled to sum to 1.
        num_return_sequences: answers to each prompt, the best first.

    Raises:
        ValueError: a setting out of its range.
    """

    switch: ClassVar[tuple[str, Any]] = ("num_beams", 1)
    example: ClassVar[tuple[str, Any]] = ("num_beams", 4)

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    renormalize: bool = dataclasses.field(default=False, metadata={"published": "renormalize_logits"})
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_beams < 1:
            raise ValueError(f"num_beams={self.num_beams} must be a number of beams, at least 1")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty={self.length_penalty} must be a finite number")
        if not isinstance(self.early_stopping, bool | str) or self.early_stopping not in (False, True, "never"):
            raise ValueError(f"early_stopping={self.early_stopping!r}: choose False, True or 'never'")
        if not 1 <= self.num_return_sequences <= self.num_beams:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} must be at least 1 and at most "
                f"num_beams={self.num_beams}: search with more beams"
            )

    def decode(self, inputs: DecodeInputs) -> jax.Array:
        """int32[B, num_return_sequences, R]."""
        return search(self, inputs)[0]

    def check(self, config: Any) -> None:
        """As in `Strategy`; and ValueError for more beams than tokens in the vocabulary."""
        super().check(config)
        if self.num_beams > config.vocab_size:
            raise ValueError(
                f"num_beams={self.num_beams} is more than the vocabulary has tokens, {config.vocab_size}: "
                "search with fewer"
            )

    @classmethod
    def from_strategy(cls, other: Strategy, **settings: Any) -> Self:
        """As in `Strategy`; another number of beams is for one answer, unless several are asked for with it."""
        return super().from_strategy(
            other, **({"num_return_sequences": 1} if "num_beams" in settings else {}) | settings
        )

    def to_settings(self) -> dict[str, Any]:
        """As in `Strategy`."""
        return super().to_settings() | {"num_beams": self.num_beams}

    def log_probs(self, inputs: DecodeInputs, n: jax.Array | int, logits_MV: jax.Array, new_MR: jax.Array) -> jax.Array:
        """As in `Strategy`: the rules change log probabilities, which then no longer sum to 1 unless `renormalize`."""
        log_prob_MV = inputs.apply_rules(n, jax.nn.log_softmax(logits_MV, axis=-1), new_MR)
        return jax.nn.log_softmax(log_prob_MV, axis=-1) if self.renormalize else log_prob_MV

    def score(self, log_prob: jax.Array, length: jax.Array) -> jax.Array:
        """As in `Strategy`: the sum over length ** length_penalty, by which answers are ordered."""
        return self.length_normalized(log_prob, length)

    def length_normalized(self, score: jax.Array, length: jax.Array | int) -> jax.Array:
        """The score of an answer of this length, from the sum of its log probabilities."""
        return score / jnp.asarray(length, score.dtype) ** self.length_penalty


@struct.dataclass
class BeamState:
    """The state of a search: N beams and N answers a row, with R slots for new tokens.

    Attributes:
        n: the number of new tokens of each beam.
        tokens_BNR: of the beams, the best first; from slot n on, the last token is repeated.
        log_prob_BN: the beams' sums of log probabilities.
        answers_BNR: the answers so far, the best first.
        score_BN: the answers' scores.
        found_BN: which answers exist.
        open_B: whether a better answer may still be found.
        cache: of all tokens but the last of each beam; see `share_slots`.
    """

    n: jax.Array | int
    tokens_BNR: jax.Array
    log_prob_BN: jax.Array
    answers_BNR: jax.Array
    score_BN: jax.Array
    found_BN: jax.Array
    open_B: jax.Array
    cache: Cache


def search(beam: Beam, inputs: DecodeInputs) -> tuple[jax.Array, jax.Array]:
    """The best answers to each prompt, int32[B, num_return_sequences, R], and their scores.

    The beams of a row share its keys and values, and those of the source: `share_slots`.
    """
    (B, V), N, R = inputs.logits_BV.shape, beam.num_beams, inputs.room
    max_new, stop_ids = inputs.max_new, inputs.stop_ids

    def step(state: BeamState) -> BeamState:
        last_BN = jax.lax.dynamic_index_in_dim(state.tokens_BNR, state.n - 1, axis=2, keepdims=False)
        logits_MV, cache = inputs.decode_step(last_BN.reshape(-1), state.cache)
        cache = cache.replace(length=state.cache.length + N)
        return extend(state.replace(cache=cache), logits_MV)

    def extend(state: BeamState, logits_MV: jax.Array) -> BeamState:
        """All beams with every token after them: the best unfinished ones, and the best answers."""
        n = state.n
        log_prob_MV = beam.log_probs(inputs, n, logits_MV, state.tokens_BNR.reshape(-1, R))
        log_prob_BM = (state.log_prob_BN[..., None] + log_prob_MV.reshape(B, N, V)).reshape(B, -1)
        # Enough candidates for N unfinished beams: of each beam, every stop token and one other.
        log_prob_BC, index_BC = _top_k(log_prob_BM, min((1 + max(1, stop_ids.size)) * N, N * V))
        parent_BC, token_BC = index_BC // V, (index_BC % V).astype(jnp.int32)
        tokens_BCR = jnp.where(jnp.arange(R) < n, _gather(state.tokens_BNR, parent_BC), token_BC[..., None])
        ends_BC = (token_BC[..., None] == stop_ids).any(axis=-1) | (n + 1 == max_new)

        log_prob_BN, best_BN = jax.lax.top_k(log_prob_BC + jnp.where(ends_BC, ABSENT, 0), N)

        # Only finished candidates among the best N become answers, and only of beams that exist.
        rank_C = jnp.arange(log_prob_BC.shape[1])
        answer_BC = ends_BC & (rank_C < N) & (log_prob_BC > ABSENT / 2) & state.open_B[:, None]
        score_BC = jnp.where(answer_BC, beam.length_normalized(log_prob_BC, n + 1), ABSENT)
        score_BN, answer_BN = jax.lax.top_k(jnp.concatenate([state.score_BN, score_BC], axis=1), N)
        found_BN = _gather(jnp.concatenate([state.found_BN, answer_BC], axis=1), answer_BN)

        longest = max_new if beam.early_stopping == "never" and beam.length_penalty > 0 else n + 1
        done_B = beam.length_normalized(log_prob_BN[:, 0], longest) <= score_BN[:, -1]
        if beam.early_stopping is True or N == 1:
            done_B = jnp.ones_like(done_B)
        return BeamState(
            n=n + 1,
            tokens_BNR=_gather(tokens_BCR, best_BN),
            log_prob_BN=log_prob_BN,
            answers_BNR=_gather(jnp.concatenate([state.answers_BNR, tokens_BCR], axis=1), answer_BN),
            score_BN=score_BN,
            found_BN=found_BN,
            open_B=state.open_B & ~(found_BN.all(axis=1) & done_B),
            cache=follow(state.cache, _gather(parent_BC, best_BN)),
        )

    def unfinished(state: BeamState) -> jax.Array:
        return (state.n < max_new) & state.open_B.any()

    empty_BNR = jnp.full((B, N, R), stop_ids[0] if stop_ids.size else 0, jnp.int32)
    absent_BN = jnp.full((B, N), ABSENT, inputs.logits_BV.dtype)
    state = BeamState(
        n=0,
        tokens_BNR=empty_BNR,
        log_prob_BN=absent_BN.at[:, 0].set(0),  # all beams are equal before the first token: only one counts
        answers_BNR=empty_BNR,
        score_BN=absent_BN,
        found_BN=jnp.zeros((B, N), bool),
        open_B=jnp.ones(B, bool),
        cache=share_slots(inputs.cache, N, R),
    )
    state = jax.lax.while_loop(unfinished, step, extend(state, jnp.repeat(inputs.logits_BV, N, axis=0)))
    return state.answers_BNR[:, : beam.num_return_sequences], state.score_BN[:, : beam.num_return_sequences]


def share_slots(cache: Cache, N: int, R: int) -> Cache:
    """A cache of N beams for each row, from one whose last R slots are free.

    Where keys and values have a slot for each token, all beams of a row keep theirs in one row of them, in turn, behind
    the prompt's; those that are a beam's own are the valid ones of its row. So no keys and values are copied when
    beams change places. Rings, and what other layers keep, are repeated.
    """
    wide = cache.widen(cache.valid_BS.shape[1] + (N - 1) * R)
    repeated = repeat_rows(wide.replace(kv=None), N)
    kv = caches.over_slots(lambda x: x, wide.kv, of_others=lambda x: jnp.repeat(x, N, axis=row_axis(x)))
    return repeated.replace(kv=kv, length=cache.length + jnp.arange(len(repeated.valid_BS)) % N)


def follow(cache: Cache, parent_BN: jax.Array) -> Cache:
    """The cache of `share_slots` after each beam was replaced by an extension of its parent."""
    B, N = parent_BN.shape
    rows_M = (parent_BN + N * jnp.arange(B)[:, None]).reshape(-1)
    of_parents = lambda x: jnp.take(x, rows_M, axis=row_axis(x), mode="clip")
    kv = caches.over_slots(lambda x: x, cache.kv, of_others=of_parents)
    return cache.replace(kv=kv, valid_BS=cache.valid_BS[rows_M])


def _top_k(x_BM: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k`, quicker for many elements: the k largest are in the k blocks with the largest of their own."""
    count = -(-x_BM.shape[1] // _BLOCK)
    if count <= k:
        return jax.lax.top_k(x_BM, k)
    padded_BM = jnp.pad(x_BM, ((0, 0), (0, count * _BLOCK - x_BM.shape[1])), constant_values=-jnp.inf)
    x_BNE = padded_BM.reshape(-1, count, _BLOCK)
    # In order, so that of equal elements the first is chosen, here too.
    block_BK = jnp.sort(jax.lax.top_k(x_BNE.max(axis=-1), k)[1], axis=-1)
    largest_BK, index_BK = jax.lax.top_k(_gather(x_BNE, block_BK).reshape(len(x_BM), -1), k)
    return largest_BK, _gather(block_BK, index_BK // _BLOCK) * _BLOCK + index_BK % _BLOCK


_BLOCK = 256


def _gather(x: jax.Array, index_BN: jax.Array) -> jax.Array:
    """The elements of each row at these indices."""
    return jnp.take_along_axis(x, index_BN.reshape(*index_BN.shape, *(1,) * (x.ndim - 2)), axis=1)

"""Beam search: of every length the few most probable beginnings of an answer are kept, and gone on with."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from transformer_zoo.generation.rules import Rules
from transformer_zoo.nn import Cache

OUT = -1e9  # the score of what there is not: far below any answer's, and above that of what the rules forbid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beam(Rules):
    """The most probable answers that a beam search finds, under the `Rules`.

    An answer's score is the sum of its tokens' log probabilities, what ends it included, divided by
    length ** length_penalty (of Wu et al. 2016, section 7, the simpler form that published models are used with).

    Attributes:
        num_beams: so many beginnings of an answer are gone on with; 1 is greedy.
        length_penalty: above 0 favours long answers, below 0 short ones; 0 leaves the plain sum.
        early_stopping: when a row that has `num_beams` answers is done. True: at once. False: when the best beginning,
            were it to end now, would be worse than the worst of them. "never": when it would be, however much the
            tokens that it may still get would raise it.
        renormalize: whether the probabilities of what the rules leave are to add up to 1.
        num_return_sequences: so many answers for a prompt, the best first.

    Raises:
        ValueError: a setting out of its range.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    renormalize: bool = False
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_beams != int(self.num_beams) or self.num_beams < 1:
            raise ValueError(f"num_beams={self.num_beams} must be a number of beams, at least 1")
        if self.early_stopping not in (False, True, "never"):
            raise ValueError(f"early_stopping={self.early_stopping!r}: choose False, True or 'never'")
        if not 1 <= self.num_return_sequences <= self.num_beams:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} must be at least 1 and at most "
                f"num_beams={self.num_beams}: search with more beams"
            )

    def value(self, score: jax.Array, length: jax.Array | int) -> jax.Array:
        """What a sum of log probabilities is worth at this length."""
        return score / jnp.asarray(length, score.dtype) ** self.length_penalty


@struct.dataclass
class State:
    """Where a search stands: N beams and N answers a row, with room for R new tokens.

    Attributes:
        n: the new tokens that each beam has.
        tokens_BNR: of the beams, the best first; from n on, the last one again.
        score_BN: their sums of log probabilities.
        answers_BNR: those found so far, the best first.
        value_BN: what they are worth.
        found_BN: which of them there are.
        open_B: whether a better answer may yet come.
        cache: of the tokens before the last.
    """

    n: jax.Array | int
    tokens_BNR: jax.Array
    score_BN: jax.Array
    answers_BNR: jax.Array
    value_BN: jax.Array
    found_BN: jax.Array
    open_B: jax.Array
    cache: Cache


def search(
    beam: Beam,
    scores_BV: jax.Array,
    cache: Cache,
    *,
    follow: Callable[[jax.Array, Cache], tuple[jax.Array, Cache]],
    rules: Callable[[jax.Array | int, jax.Array, jax.Array], jax.Array],
    room: int,
    max_new: jax.Array | int,
    stop_ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The best answers to each prompt, int32[B, num_return_sequences, room], and what they are worth.

    Args:
        scores_BV: of the first new token.
        cache: of what was read. Its rows are repeated for the beams, and from then on those slots are left alone; the
            keys and values of a source are not even repeated.
        follow: of a token for each row the scores of the next, and the cache with it.
        rules: of n, the log probabilities of token n, and the new tokens before it, the log probabilities to go by.
        max_new: at most so many new tokens, of the `room`.
        stop_ids: what ends an answer.
    """
    (B, V), N, R = scores_BV.shape, beam.num_beams, room
    slots = cache.valid_BS.shape[1]

    def step(state: State) -> State:
        last_BN = jax.lax.dynamic_index_in_dim(state.tokens_BNR, state.n - 1, axis=2, keepdims=False)
        scores_MV, cache = follow(last_BN.reshape(-1), state.cache)
        return extended(state.replace(cache=cache), scores_MV)

    def extended(state: State, scores_MV: jax.Array) -> State:
        """All beams with every token after them: the best that go on, and the best answers."""
        n = state.n
        scores_MV = rules(n, jax.nn.log_softmax(scores_MV, axis=-1), state.tokens_BNR.reshape(-1, R))
        if beam.renormalize:
            scores_MV = jax.nn.log_softmax(scores_MV, axis=-1)
        scores_BM = (state.score_BN[..., None] + scores_MV.reshape(B, N, V)).reshape(B, -1)
        # Should all of the best N end, so many more are enough to go on with: for each beam, all ends and one other.
        score_BC, place_BC = jax.lax.top_k(scores_BM, min((1 + max(1, stop_ids.size)) * N, N * V))
        parent_BC, token_BC = place_BC // V, (place_BC % V).astype(jnp.int32)
        tokens_BCR = jnp.where(jnp.arange(R) < n, _of(state.tokens_BNR, parent_BC), token_BC[..., None])
        ends_BC = (token_BC[..., None] == stop_ids).any(axis=-1) | (n + 1 == max_new)

        score_BN, place_BN = jax.lax.top_k(score_BC + jnp.where(ends_BC, OUT, 0), N)

        # What is not among the best N is no answer, even if it has ended; nor is what goes on from no beam.
        answer_BC = ends_BC & (jnp.arange(score_BC.shape[1]) < N) & (score_BC > OUT / 2) & state.open_B[:, None]
        value_BC = jnp.where(answer_BC, beam.value(score_BC, n + 1), OUT)
        value_BN, best_BN = jax.lax.top_k(jnp.concatenate([state.value_BN, value_BC], axis=1), N)
        found_BN = _of(jnp.concatenate([state.found_BN, answer_BC], axis=1), best_BN)

        longest = max_new if beam.early_stopping == "never" and beam.length_penalty > 0 else n + 1
        done_B = beam.value(score_BN[:, 0], longest) <= value_BN[:, -1]
        if beam.early_stopping is True or N == 1:
            done_B = jnp.ones_like(done_B)
        return State(
            n=n + 1,
            tokens_BNR=_of(tokens_BCR, place_BN),
            score_BN=score_BN,
            answers_BNR=_of(jnp.concatenate([state.answers_BNR, tokens_BCR], axis=1), best_BN),
            value_BN=value_BN,
            found_BN=found_BN,
            open_B=state.open_B & ~(found_BN.all(axis=1) & done_B),
            # Last, so that the next step appends to it in place: what was just gathered it would copy first.
            cache=reordered(state.cache, _of(parent_BC, place_BN), slots - R),
        )

    def more(state: State) -> jax.Array:
        return (state.n < max_new) & state.open_B.any()

    none_BNR = jnp.full((B, N, R), stop_ids[0] if stop_ids.size else 0, jnp.int32)
    out_BN = jnp.full((B, N), OUT, scores_BV.dtype)
    state = State(
        n=0,
        tokens_BNR=none_BNR,
        score_BN=out_BN.at[:, 0].set(0),  # the beams are still the same, and only one of them counts
        answers_BNR=none_BNR,
        value_BN=out_BN,
        found_BN=jnp.zeros((B, N), bool),
        open_B=jnp.ones(B, bool),
        cache=repeated(cache, N),
    )
    state = jax.lax.while_loop(more, step, extended(state, jnp.repeat(scores_BV, N, axis=0)))
    return state.answers_BNR[:, : beam.num_return_sequences], state.value_BN[:, : beam.num_return_sequences]


def repeated(cache: Cache, times: int) -> Cache:
    """Each row so many times; save for the keys and values of a source, which the rows share."""
    kv = jax.tree.map(lambda x: jnp.repeat(x, times, axis=_rows_axis(x)), cache.kv)
    return cache.replace(kv=kv, valid_BS=jnp.repeat(cache.valid_BS, times, axis=0))


def reordered(cache: Cache, parent_BN: jax.Array, start: int) -> Cache:
    """Each beam with the slots of its parent, from `start` on: before that, those of a row are the same."""
    B, N = parent_BN.shape
    rows_M = (parent_BN + N * jnp.arange(B)[:, None]).reshape(-1)

    def of_parents(x: jax.Array) -> jax.Array:
        written = jnp.take(x[..., start:, :], rows_M, axis=_rows_axis(x), mode="clip")
        return jax.lax.dynamic_update_slice_in_dim(x, written, start, axis=-2)

    return cache.replace(kv=jax.tree.map(of_parents, cache.kv))


def _rows_axis(x: Any) -> int:
    """That of the rows: [L, B, G, S, K], or [B, G, S, K] of a layer of its own."""
    return x.ndim - 4


def _of(x: jax.Array, at_BN: jax.Array) -> jax.Array:
    """Of every row these."""
    return jnp.take_along_axis(x, at_BN.reshape(*at_BN.shape, *(1,) * (x.ndim - 2)), axis=1)

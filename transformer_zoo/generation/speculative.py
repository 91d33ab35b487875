"""Speculative decoding (Leviathan et al. 2023): several tokens are proposed cheaply, and the model reads them at once.
Those that it would have chosen itself are kept, so that the answers are those without proposals.

That holds for sampling too, since a token is chosen by its logits and by random numbers of its own; a draft model that
draws by the same random numbers often draws the same token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from transformer_zoo.generation.sampling import TokenByToken
from transformer_zoo.generation.strategy import DecodeInputs, repeat_rows
from transformer_zoo.nn import Cache

NGRAM = 3
"""The longest n-gram that is looked up."""

# (tokens_MT, valid_MT, cache) -> (logits_MTV, cache): a model's forward pass.
Read = Callable[[jax.Array, jax.Array, Cache], tuple[jax.Array, Cache]]


@struct.dataclass
class State:
    """The state of M rows with R slots for new tokens, each at its own pace.

    Attributes:
        n_M: the number of new tokens.
        token_M: the last one.
        done_M: which rows have ended.
        new_MR: the new tokens; slots from n_M on do not count.
        cache: of all tokens but the last of each row.
        draft_cache: likewise, of the draft model. None: there is none.
        drafted_M, accepted_M: the number of tokens that were proposed, and of those that are in the answer.
    """

    n_M: jax.Array
    token_M: jax.Array
    done_M: jax.Array
    new_MR: jax.Array
    cache: Cache
    draft_cache: Cache | None
    drafted_M: jax.Array
    accepted_M: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """Proposes K tokens to follow those of each row.

    Attributes:
        propose: (state) -> (tokens_MK, found_M, draft_cache); found_M: for which rows there is a proposal.
        tokens: K.
        cache: the draft model's, of the prompts. None: there is no model.
    """

    propose: Callable[[State], tuple[jax.Array, jax.Array, Cache | None]]
    tokens: int
    cache: Cache | None = None


def decode(
    strategy: TokenByToken, inputs: DecodeInputs, read: Read, draft: Draft
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The tokens of `strategy.decode(inputs)`, int32[B, N, R], and how many were proposed and accepted, int32[B, N].

    Args:
        inputs: whose cache has `draft.tokens` more slots than room.
        read: the forward pass of the model.
    """
    first = strategy.begin(inputs)
    M, R = first.new_BR.shape
    T = draft.tokens + 1
    times = M // len(inputs.logits_BV)

    def by_row(cache: Cache | None) -> Cache | None:
        """The cache with rows of unequal lengths. Of a single row, the length stays a number."""
        return cache if cache is None or M == 1 else cache.replace(length=jnp.full(M, cache.length))

    def rewind(cache: Cache | None, before: Cache | None, count_M: jax.Array) -> Cache | None:
        return None if cache is None else cache.rewind(before.length + (count_M if M > 1 else count_M[0]))

    def step(state: State) -> State:
        n_M, done_M = state.n_M, state.done_M
        proposed_MK, found_M, draft_cache = draft.propose(state)
        tokens_MT = jnp.concatenate([state.token_M[:, None], proposed_MK], axis=1)
        # Tokens that nothing can follow are padding: they have no positions.
        n_MT = n_M[:, None] + jnp.arange(T)
        logits_MTV, cache = read(tokens_MT, (n_MT < inputs.max_new) & ~done_M[:, None], state.cache)
        chosen_MT = strategy.next_tokens(
            inputs,
            n_MT.reshape(-1),
            logits_MTV.reshape(M * T, -1),
            jnp.repeat(write(state.new_MR, n_M, proposed_MK), T, axis=0),
            jnp.repeat(jnp.arange(M), T),
        ).reshape(M, T)
        agreed_M = jnp.cumprod(chosen_MT[:, :-1] == proposed_MK, axis=1).sum(axis=1, dtype=jnp.int32)
        ends_MT = jnp.isin(chosen_MT, inputs.stop_ids)
        end_M = jnp.where(ends_MT.any(axis=1), jnp.argmax(ends_MT, axis=1), T).astype(jnp.int32)
        count_M = jnp.minimum(jnp.minimum(agreed_M, end_M) + 1, inputs.max_new - n_M)
        count_M = jnp.where(done_M, 0, count_M)
        last_M = jnp.take_along_axis(chosen_MT, jnp.maximum(count_M - 1, 0)[:, None], axis=1)[:, 0]
        offered_M = found_M & ~done_M
        return State(
            n_M=n_M + count_M,
            token_M=jnp.where(done_M, state.token_M, last_M),
            done_M=done_M | (end_M < count_M) | (n_M + count_M >= inputs.max_new),
            new_MR=write(state.new_MR, n_M, chosen_MT),
            cache=rewind(cache, state.cache, count_M),
            draft_cache=rewind(draft_cache, state.draft_cache, count_M),
            drafted_M=state.drafted_M + jnp.where(offered_M, draft.tokens, 0),
            accepted_M=state.accepted_M + jnp.where(offered_M, jnp.minimum(agreed_M, count_M), 0),
        )

    draft_cache = draft.cache if draft.cache is None or times == 1 else repeat_rows(draft.cache, times)
    none_M = jnp.zeros(M, jnp.int32)
    state = State(
        n_M=none_M + 1, token_M=first.token_B, done_M=first.done_B | (inputs.max_new <= 1), new_MR=first.new_BR,
        cache=by_row(first.cache), draft_cache=by_row(draft_cache), drafted_M=none_M, accepted_M=none_M,
    )  # fmt: skip
    state = jax.lax.while_loop(lambda state: ~state.done_M.all(), step, state)
    new_MR = jnp.where(jnp.arange(R) < state.n_M[:, None], state.new_MR, state.token_M[:, None])
    of_prompts = lambda x: x.reshape(-1, times, *x.shape[1:])
    return of_prompts(new_MR), of_prompts(state.drafted_M), of_prompts(state.accepted_M)


def write(new_MR: jax.Array, n_M: jax.Array, tokens_MK: jax.Array) -> jax.Array:
    """Each row with tokens from its slot n on; those behind the last slot are dropped."""
    slot_MK = n_M[:, None] + jnp.arange(tokens_MK.shape[1])
    return new_MR.at[jnp.arange(len(new_MR))[:, None], slot_MK].set(tokens_MK, mode="drop")


def by_model(
    strategy: TokenByToken, inputs: DecodeInputs, read: Read, vocab_size: int, tokens: int, cache: Cache
) -> Draft:
    """Proposals of a smaller model, by the same strategy, rules and random numbers.

    Args:
        read: the forward pass of the draft model.
        vocab_size: of the draft model. Models of one tokenizer may pad their vocabularies unequally.
        cache: of the draft model, with the prompts, and with as many slots as the model's.
    """
    V = inputs.logits_BV.shape[1]

    def propose(state: State) -> tuple[jax.Array, jax.Array, Cache]:
        def step(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
            token_M, new_MR, cache = carry
            n_M = state.n_M + i
            known_M1 = jnp.minimum(token_M, vocab_size - 1)[:, None]
            real_M1 = ((n_M < inputs.max_new) & ~state.done_M)[:, None]
            logits_M1V, cache = read(known_M1, real_M1, cache)
            logits_MV = jnp.pad(logits_M1V[:, 0, :V], ((0, 0), (0, max(V - vocab_size, 0))), constant_values=-jnp.inf)
            token_M = strategy.next_tokens(inputs, n_M, logits_MV, new_MR)
            return (token_M, write(new_MR, n_M, token_M[:, None]), cache), token_M

        # One more step than proposals, for the keys and values of the last one.
        (_, _, cache), tokens_KM = jax.lax.scan(
            step, (state.token_M, state.new_MR, state.draft_cache), jnp.arange(tokens + 1)
        )
        return tokens_KM[:-1].T, jnp.ones_like(state.done_M), cache

    return Draft(propose=propose, tokens=tokens, cache=cache)


def by_lookup(prompt_BP: jax.Array, valid_BP: jax.Array, tokens: int) -> Draft:
    """Proposals from the prompt and the answer so far: what followed the last n-gram when it last occurred (Saxena
    2023). Of n-grams of up to NGRAM tokens the longest counts.

    Args:
        prompt_BP, valid_BP: the prompts or sources, left-padded, and which of their tokens are real.
    """

    def propose(state: State) -> tuple[jax.Array, jax.Array, None]:
        times, P = len(state.new_MR) // len(prompt_BP), prompt_BP.shape[1]
        context_MS = jnp.concatenate([jnp.repeat(prompt_BP, times, axis=0), state.new_MR], axis=1)
        start_M = jnp.repeat(P - valid_BP.sum(axis=1), times)
        tokens_MK, found_M = jax.vmap(lambda *row: look_up(*row, tokens))(context_MS, start_M, P + state.n_M - 1)
        return tokens_MK, found_M, None

    return Draft(propose=propose, tokens=tokens)


def look_up(context_S: jax.Array, start: jax.Array, last: jax.Array, tokens: int) -> tuple[jax.Array, jax.Array]:
    """int32[K], what followed the latest of the longest earlier occurrences of the n-gram that ends at slot `last`; and
    whether there is one. Behind the last slot what was found is repeated.

    Args:
        start: the slot of the first token.
    """
    slot_S = jnp.arange(len(context_S))
    same_S, size_S = (slot_S < last), jnp.zeros_like(slot_S)
    for i in range(NGRAM):
        inside_S = (slot_S - i >= start) & (last - i >= start)
        same_S &= inside_S & (jnp.roll(context_S, i) == context_S[jnp.maximum(last - i, 0)])
        size_S += same_S
    best = jnp.argmax(size_S * len(context_S) + slot_S * (size_S > 0))
    period = jnp.maximum(last - best, 1)
    return context_S[best + 1 + jnp.arange(tokens) % period], size_S[best] > 0

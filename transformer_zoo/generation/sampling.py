"""Strategies that choose one token after another: greedy decoding and sampling."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from transformer_zoo.generation.strategy import DecodeInputs, Strategy, repeat_rows
from transformer_zoo.nn import Cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenByToken(Strategy):
    """A strategy that never revises a token: a subclass has `choose`.

    Attributes:
        stop_strings: texts, or one: a row ends with the token that completes one of them, which stays in the answer.
            The model then needs a tokenizer. All `max_new_tokens` are generated, and what follows is dropped.

    Raises:
        ValueError: an empty text, or what is no text.
    """

    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        texts = (self.stop_strings,) if isinstance(self.stop_strings, str) else self.stop_strings
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"stop_strings={self.stop_strings!r} must be texts that are not empty")
        object.__setattr__(self, "stop_strings", tuple(texts))

    @property
    def answers(self) -> int:
        """The number of answers to each prompt."""
        return 1

    def choose(self, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
        """int32[B]: each row's next token, by its own key and logits."""
        raise NotImplementedError

    def decode(self, inputs: DecodeInputs) -> jax.Array:
        """int32[B, N, R]."""
        state = self.advance(inputs, self.begin(inputs), inputs.max_new)
        # The loop may stop early; the rest repeats each row's last token.
        new_BR = jnp.where(jnp.arange(inputs.room) < state.n, state.new_BR, state.token_B[:, None])
        return new_BR.reshape(len(inputs.logits_BV), -1, inputs.room)

    def begin(self, inputs: DecodeInputs) -> "Decoding":
        """The first new token of each row."""
        # Several answers to a prompt are rows side by side.
        logits_BV, cache = inputs.logits_BV, inputs.cache
        if self.answers > 1:
            logits_BV, cache = jnp.repeat(logits_BV, self.answers, axis=0), repeat_rows(cache, self.answers)
        token_B = self.next_tokens(inputs, 0, logits_BV, jnp.zeros((len(logits_BV), inputs.room), jnp.int32))
        return Decoding(
            n=jnp.ones((), jnp.int32),
            token_B=token_B,
            done_B=_is_stop(inputs, token_B),
            new_BR=jnp.tile(token_B[:, None], (1, inputs.room)),
            cache=cache,
        )

    def advance(self, inputs: DecodeInputs, state: "Decoding", until: jax.Array | int) -> "Decoding":
        """The state with `until` new tokens, or fewer if all rows have ended.

        Args:
            inputs: without logits and cache.
        """

        def unfinished(state: Decoding) -> jax.Array:
            return (state.n < until) & ~state.done_B.all()

        def step(state: Decoding) -> Decoding:
            n, done_B = state.n, state.done_B
            logits_BV, cache = inputs.decode_step(state.token_B, state.cache.with_rows())
            token_B = jnp.where(done_B, state.token_B, self.next_tokens(inputs, n, logits_BV, state.new_BR))
            new_BR = jax.lax.dynamic_update_slice_in_dim(state.new_BR, token_B[:, None], n, axis=1)
            done_B |= _is_stop(inputs, token_B)
            return Decoding(n=n + 1, token_B=token_B, done_B=done_B, new_BR=new_BR, cache=cache.without_rows())

        state = jax.lax.while_loop(unfinished, step, state.replace(cache=state.cache.without_rows()))
        return state.replace(cache=state.cache.with_rows())

    def next_tokens(
        self,
        inputs: DecodeInputs,
        n: jax.Array | int,
        logits_MV: jax.Array,
        new_MR: jax.Array,
        rows_M: jax.Array | None = None,
    ) -> jax.Array:
        """int32[M]: new token n, a number or one for each row, after the n tokens in new_MR.

        Args:
            rows_M: the rows of the batch that the arguments are of. None: all, in order.
        """
        rows_M = jnp.arange(len(logits_MV)) if rows_M is None else rows_M
        # One key for each row and token, so that a row does not depend on the other rows.
        row_keys_M = jax.vmap(jax.random.fold_in, (None, 0))(inputs.key, rows_M)
        keys_M = jax.vmap(jax.random.fold_in, (0, 0 if jnp.ndim(n) else None))(row_keys_M, n)
        return self.choose(keys_M, inputs.apply_rules(n, logits_MV, new_MR))


def _is_stop(inputs: DecodeInputs, token_B: jax.Array) -> jax.Array:
    return (token_B[:, None] == inputs.stop_ids).any(axis=1)


@struct.dataclass
class Decoding:
    """The state of decoding token by token: B rows, with R slots for new tokens.

    Attributes:
        n: int32[], the number of new tokens.
        token_B: the last one of each row.
        done_B: which rows have ended.
        new_BR: the new tokens; slots from n on do not count.
        cache: of all tokens but the last of each row.
    """

    n: jax.Array
    token_B: jax.Array
    done_B: jax.Array
    new_BR: jax.Array
    cache: Cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy(TokenByToken):
    """The most probable token under the `LogitsRules`; of equal ones, the one with the lowest id."""

    def choose(self, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
        """int32[B]; the keys are not used."""
        # The first of the largest: on a CPU four times as fast as the argmax of floats.
        return jnp.argmax(logits_BV == logits_BV.max(axis=-1, keepdims=True), axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(TokenByToken):
    """A random token, after the `LogitsRules` and then the settings below, in this order.

    Attributes:
        temperature: the logits are divided by it; near 0 is nearly greedy.
        top_k: only the k most probable tokens (Fan et al. 2018, section 5.4), and those equal to the k-th. None or 0:
            all.
        top_p: only the nucleus (Holtzman et al. 2020, section 3.1): the tokens such that the more probable ones have
            less than p of the probability. Equal tokens are all in or all out. None or 1: all.
        min_p: only tokens of at least this part of the largest probability (Nguyen et al. 2024). None or 0: all.
        typical_p: only the typical tokens (Meister et al. 2023): those whose log probability is nearest to the negated
            entropy, until they have this much of the probability; it may exclude the most probable one. None or 1: all.
        epsilon_cutoff: only tokens of at least this probability, and the most probable one. 0: all.
        eta_cutoff: likewise, min(eta, sqrt(eta) exp(-entropy)) (Hewitt et al. 2022). 0: all.
        num_return_sequences: answers to each prompt, each with random numbers of its own.

    Raises:
        ValueError: a setting out of its range.
    """

    switch: ClassVar[tuple[str, Any]] = ("do_sample", False)
    example: ClassVar[tuple[str, Any]] = ("temperature", 0.8)
    assumed: ClassVar[Mapping[str, Any]] = {"top_k": 50}

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, neutral in (("top_k", 0), ("top_p", 1), ("min_p", 0), ("typical_p", 1)):
            if getattr(self, name) == neutral:
                object.__setattr__(self, name, None)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be positive: 0 is greedy decoding")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be a number of tokens, at least 1: None keeps all")
        for name in ("top_p", "typical_p"):
            if (share := getattr(self, name)) is not None and not 0 < share <= 1:
                raise ValueError(f"{name}={share} must lie in (0, 1]: None keeps all")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must lie in [0, 1]: None keeps all")
        for name in ("epsilon_cutoff", "eta_cutoff"):
            if not 0 <= (least := getattr(self, name)) < 1:
                raise ValueError(f"{name}={least} must lie in [0, 1): 0 keeps all")
        if self.num_return_sequences < 1:
            raise ValueError(
                f"num_return_sequences={self.num_return_sequences} must be a number of answers, at least 1"
            )

    def to_settings(self) -> dict[str, Any]:
        """As in `Strategy`."""
        return super().to_settings() | {"do_sample": True, "top_k": self.top_k or 0}

    @property
    def answers(self) -> int:
        """The number of answers to each prompt."""
        return self.num_return_sequences

    def choose(self, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
        """int32[B], each row by its own key."""
        return jax.vmap(draw)(keys_B, self.filter(logits_BV))

    def log_probs(self, inputs: DecodeInputs, n: jax.Array | int, logits_MV: jax.Array, new_MR: jax.Array) -> jax.Array:
        """As in `Strategy`: of what is drawn from."""
        return jax.nn.log_softmax(self.filter(inputs.apply_rules(n, logits_MV, new_MR)), axis=-1)

    def filter(self, logits_BV: jax.Array) -> jax.Array:
        """The logits that are sampled from: -inf for the tokens that are excluded."""
        # Relative to the largest, so that no temperature overflows.
        logits_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / self.temperature
        if self.top_k is not None:
            logits_BV = _keep_largest(logits_BV, jnp.ones_like(logits_BV), self.top_k)
        if self.top_p is not None:
            logits_BV = _keep_largest(logits_BV, jax.nn.softmax(logits_BV, axis=-1), self.top_p)
        if self.min_p is not None:
            logits_BV = _keep_probable(logits_BV, self.min_p * _largest_probability(logits_BV))
        if self.typical_p is not None:
            logits_BV = keep_typical(logits_BV, self.typical_p)
        if self.epsilon_cutoff:
            logits_BV = _keep_probable(logits_BV, self.epsilon_cutoff)
        if self.eta_cutoff:
            eta_B1 = self.eta_cutoff**0.5 * jnp.exp(-_entropy(logits_BV))
            logits_BV = _keep_probable(logits_BV, jnp.minimum(self.eta_cutoff, eta_B1))
        return logits_BV


def draw(key: jax.Array, logits_V: jax.Array) -> jax.Array:
    """int32[], a random token by the softmax of these logits; never one of -inf.

    Two random numbers, one for a block of tokens and one for a token of the block. (Gumbel's way, a random number for
    each token, takes longer than many a model's step on a CPU.)
    """
    weight_V = jnp.exp(logits_V - logits_V.max())
    weight_NK = jnp.pad(weight_V, (0, -len(weight_V) % _BLOCK)).reshape(-1, _BLOCK)
    share_2 = jax.random.uniform(key, (2,), weight_V.dtype)
    block = _first_with_share(weight_NK.sum(axis=1), share_2[0])
    return block * _BLOCK + _first_with_share(weight_NK[block], share_2[1])


_BLOCK = 128


def _first_with_share(weight_N: jax.Array, share: jax.Array) -> jax.Array:
    """int32[]: the first element, of those of positive weight, up to which the weights have this share of their sum."""
    sum_N = jnp.where(weight_N > 0, jnp.cumsum(weight_N), 0)  # which may be rounded down from one to the next
    return jnp.argmax((weight_N > 0) & (sum_N >= share * sum_N.max())).astype(jnp.int32)


def keep_typical(logits_BV: jax.Array, mass: float) -> jax.Array:
    """-inf for all but the tokens whose information is nearest to the entropy and that have this probability together,
    with all that are as near as the farthest of them."""
    log_prob_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    distance_BV = jnp.abs(log_prob_BV + _entropy(logits_BV))
    return _keep_largest(logits_BV, jnp.exp(log_prob_BV), mass, order_BV=-distance_BV)


def _keep_probable(logits_BV: jax.Array, least_B1: jax.Array | float) -> jax.Array:
    """-inf for tokens of less than this probability, save the most probable one."""
    keep_BV = (jax.nn.softmax(logits_BV, axis=-1) >= least_B1) | (logits_BV == logits_BV.max(axis=-1, keepdims=True))
    return jnp.where(keep_BV, logits_BV, -jnp.inf)


def _largest_probability(logits_BV: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits_BV, axis=-1).max(axis=-1, keepdims=True)


def _entropy(logits_BV: jax.Array) -> jax.Array:
    """[B, 1], in nats."""
    log_prob_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    information_BV = jnp.where(jnp.isfinite(log_prob_BV), jnp.exp(log_prob_BV) * -log_prob_BV, 0)
    return information_BV.sum(axis=-1, keepdims=True)


def _keep_largest(
    logits_BV: jax.Array, weight_BV: jax.Array, target: float, *, order_BV: jax.Array | None = None
) -> jax.Array:
    """The fewest largest logits whose weights sum to the target, with all that equal the least; -inf for the rest.

    Their least is found by bisection over the bits of a float, which takes a tenth of the time of a sort.

    Args:
        order_BV: numbers of at most 0, to be compared instead of the logits, which are at most 0 too.
    """
    bits = jnp.finfo(logits_BV.dtype).bits
    integer = jnp.dtype(f"int{bits}")
    order_BV = jax.lax.bitcast_convert_type(logits_BV if order_BV is None else order_BV, integer)
    order_BV = jnp.where(order_BV < 0, order_BV ^ jnp.iinfo(integer).max, order_BV)  # ordered as the floats are

    def raise_by_bit(i, least_B1):
        higher_B1 = least_B1 + (jnp.ones((), integer) << (bits - 2 - i))
        weight_B1 = jnp.sum(weight_BV, axis=-1, keepdims=True, where=order_BV >= higher_B1)
        return jnp.where(weight_B1 >= target, higher_B1, least_B1)

    # Nothing is above 0 here, so the sign bit of the order is set.
    least_B1 = jnp.full_like(order_BV[:, :1], jnp.iinfo(integer).min)
    least_B1 = jax.lax.fori_loop(0, bits - 1, raise_by_bit, least_B1)
    return jnp.where(order_BV >= least_B1, logits_BV, -jnp.inf)

"""The interface of a decoding strategy."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.generation.rules import LogitsRules
from transformer_zoo.nn import Cache, checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeInputs:
    """The state after the prompts were read, and the functions that continue it.

    Attributes:
        logits_BV: of the first new token, in at least float32.
        cache: of the decoder's tokens so far, with `room` free slots at its end.
        decode_step: (token_M, cache) -> (logits_MV of the next token, cache). M is the number of rows of the cache.
        apply_rules: (n, logits_MV, new_MR) -> logits_MV, the `LogitsRules` for new token n, a number or one for each
            row, after the n tokens in new_MR. M is B, or a multiple of it with the rows of one prompt side by side.
        key: of the random numbers.
        room: the static length R of the result.
        max_new: the number of new tokens, at most `room`.
        stop_ids: the ids that end a row.
    """

    logits_BV: jax.Array
    cache: Cache
    decode_step: Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]
    apply_rules: Callable[[jax.Array | int, jax.Array, jax.Array], jax.Array]
    key: jax.Array
    room: int
    max_new: jax.Array | int
    stop_ids: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy(LogitsRules):
    """How new tokens are chosen: settings that are hashable, so that each is compiled once, and `decode`.

    A new strategy is one file with a subclass, and one entry in `strategies.STRATEGIES`.

    Attributes:
        max_new_tokens: the number of new tokens if `generate` is called without it. None: see `max_length`.
        max_length: likewise, the number of the decoder's tokens, prompt or start token included.

    Raises:
        ValueError: a setting out of its range.
    """

    switch: ClassVar[tuple[str, Any]] = ("", None)
    """The key of generation_config.json that asks for the strategy, and the value with which it does not."""
    example: ClassVar[tuple[str, Any]] = ("", None)
    """A setting that asks for the strategy, for error messages."""
    assumed: ClassVar[Mapping[str, Any]] = {}
    """Settings that a file or a call means where it lacks them, as in the reference; not those of the constructor."""

    max_new_tokens: int | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_new_tokens", "max_length"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name}={count} must be a number of tokens, at least 1")

    def decode(self, inputs: DecodeInputs) -> jax.Array:
        """int32[B, N, R]: N answers to each prompt, the best first.

        The first `inputs.max_new` tokens count. A row that has ended repeats the token that ended it.
        """
        raise NotImplementedError

    def log_probs(self, inputs: DecodeInputs, n: jax.Array | int, logits_MV: jax.Array, new_MR: jax.Array) -> jax.Array:
        """The log probabilities [M, V] that new token n is chosen by, after the n tokens in new_MR."""
        return jax.nn.log_softmax(inputs.apply_rules(n, logits_MV, new_MR), axis=-1)

    def score(self, log_prob: jax.Array, length: jax.Array) -> jax.Array:
        """The score of an answer of this length, from the sum of the log probabilities of its tokens."""
        return log_prob

    def length(self, prompt: int) -> int | None:
        """The number of new tokens after this number of the decoder's tokens. None: the strategy does not limit it."""
        if self.max_new_tokens is None and self.max_length is not None:
            return self.max_length - prompt
        return self.max_new_tokens

    def check(self, config: Any) -> None:
        """Checks the settings against a model's configuration.

        Raises:
            ValueError: token ids that are not in the vocabulary.
        """
        for name, ids in self.token_ids_by_setting().items():
            if ids:
                checks.check_ids(np.asarray(ids)[None], config.vocab_size, name, "the vocabulary")

    @classmethod
    def from_strategy(cls, other: "Strategy", **settings: Any) -> Self:
        """This strategy with these settings, and with those of another strategy that both have, save the number of
        answers; None: the default."""
        shared = [name for name in cls.published_names() if hasattr(other, name)]
        shared = shared if type(other) is cls else [name for name in shared if name != "num_return_sequences"]
        kept = {name: getattr(other, name) for name in shared} | settings
        return cls(**{name: x for name, x in kept.items() if x is not None})

    @classmethod
    def published_names(cls) -> dict[str, str]:
        """The name in generation_config.json of each setting."""
        return {field.name: field.metadata.get("published", field.name) for field in dataclasses.fields(cls)}

    @classmethod
    def is_neutral(cls, name: str, value: Any) -> bool:
        """Whether a setting with this value changes nothing."""
        try:
            return value is None or getattr(cls(**{name: value}), name) == getattr(cls(), name)
        except (TypeError, ValueError):  # out of its range
            return False

    @classmethod
    def is_asked_for(cls, settings: Mapping[str, Any]) -> bool:
        """Whether settings, by the keys of generation_config.json, ask for this strategy."""
        key, off = cls.switch
        return settings.get(key, off) not in (off, None)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The strategy of a generation_config.json."""
        given = {ours: settings[key] for ours, key in cls.published_names().items() if key in settings}
        return cls(**{**cls.assumed, **given})

    def to_settings(self) -> dict[str, Any]:
        """The generation_config.json that asks for this strategy: only the settings that differ from the defaults."""
        default = type(self)()
        values = {name: getattr(self, name) for name in self.published_names()}
        return {self.published_names()[name]: x for name, x in values.items() if x != getattr(default, name)}


def log_probs_of(strategy: Strategy, inputs: DecodeInputs, new_BNR: jax.Array) -> jax.Array:
    """The log probabilities [B, N, R] by which a strategy chose these tokens; 0 behind the token that ends a row.

    The tokens are decoded once more, so that no strategy need keep them.
    """
    B, N, R = new_BNR.shape
    new_MR = new_BNR.reshape(-1, R)

    def score(n, logits_MV, log_prob_MR):
        log_prob_MV = strategy.log_probs(inputs, n, logits_MV, new_MR)
        token_M = jax.lax.dynamic_index_in_dim(new_MR, n, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(
            log_prob_MR, jnp.take_along_axis(log_prob_MV, token_M, axis=1), n, axis=1
        )

    def step(n, state):
        cache, log_prob_MR = state
        logits_MV, cache = inputs.decode_step(
            jax.lax.dynamic_index_in_dim(new_MR, n - 1, axis=1, keepdims=False), cache
        )
        return cache, score(n, logits_MV, log_prob_MR)

    log_prob_MR = score(0, jnp.repeat(inputs.logits_BV, N, axis=0), jnp.zeros(new_MR.shape, inputs.logits_BV.dtype))
    state = repeat_rows(inputs.cache, N), log_prob_MR
    _, log_prob_MR = jax.lax.fori_loop(1, inputs.max_new, step, state)
    ended_MR = jnp.isin(new_MR, inputs.stop_ids)
    before_MR = (jnp.cumsum(ended_MR, axis=1) - ended_MR == 0) & (jnp.arange(R) < inputs.max_new)
    return jnp.where(before_MR, log_prob_MR, 0).reshape(B, N, R)


def repeat_rows(cache: Cache, times: int) -> Cache:
    """Each row repeated, except for the keys and values of a source, which the answers of a row share."""
    kv = jax.tree.map(lambda x: jnp.repeat(x, times, axis=row_axis(x)), cache.kv)
    rows = jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), {"valid_BS": cache.valid_BS, "ring": cache.ring})
    return cache.replace(kv=kv, **rows)


def row_axis(x: Any) -> int:
    """The axis of the rows in [L, B, G, S, K], or in [B, G, S, K] of a single layer; of a `State` likewise."""
    return x.ndim - 4

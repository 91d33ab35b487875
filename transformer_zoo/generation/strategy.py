"""The interface of a decoding strategy."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
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
        apply_rules: (n, logits_MV, new_MR) -> logits_MV, the `LogitsRules` for new token n after the n tokens in
            new_MR. M is B, or a multiple of it with the rows of one prompt side by side.
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

    max_new_tokens: int | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_new_tokens", "max_length"):
            if (count := getattr(self, name)) is not None and (count != int(count) or count < 1):
                raise ValueError(f"{name}={count} must be a number of tokens, at least 1")

    def decode(self, inputs: DecodeInputs) -> jax.Array:
        """int32[B, N, R]: N answers to each prompt, the best first.

        The first `inputs.max_new` tokens count. A row that has ended repeats the token that ended it.
        """
        raise NotImplementedError

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
        first = () if self.forced_first is None else (self.forced_first,)
        for name, ids in (("suppressed", self.suppressed), ("forced_first", first)):
            if ids:
                checks.check_ids(np.asarray(ids)[None], config.vocab_size, name, "the vocabulary")

    @classmethod
    def from_strategy(cls, other: "Strategy", **settings: Any) -> Self:
        """This strategy with these settings, and with those of another strategy that both have; None: the default."""
        kept = {name: getattr(other, name) for name in cls.published_names() if hasattr(other, name)} | settings
        return cls(**{name: x for name, x in kept.items() if x is not None})

    @classmethod
    def published_names(cls) -> dict[str, str]:
        """The name in generation_config.json of each setting."""
        return {field.name: field.metadata.get("published", field.name) for field in dataclasses.fields(cls)}

    @classmethod
    def is_asked_for(cls, settings: Mapping[str, Any]) -> bool:
        """Whether settings, by the keys of generation_config.json, ask for this strategy."""
        key, off = cls.switch
        return settings.get(key, off) not in (off, None)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The strategy of a generation_config.json."""
        return cls(**{ours: settings[key] for ours, key in cls.published_names().items() if key in settings})

    def to_settings(self) -> dict[str, Any]:
        """The generation_config.json that asks for this strategy: only the settings that differ from the defaults."""
        default = type(self)()
        values = {name: getattr(self, name) for name in self.published_names()}
        return {self.published_names()[name]: x for name, x in values.items() if x != getattr(default, name)}

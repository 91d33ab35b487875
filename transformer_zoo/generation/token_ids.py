"""The token ids that generation needs: what starts a text, what ends it, and what is forced."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from transformer_zoo.nn import checks


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenIds:
    """The special tokens of generation. Each field is a key of generation_config.json without its "_token_id".

    Attributes:
        bos: what an empty prompt of a decoder starts with. None: the tokenizer's.
        eos: the ids that end a row; none if it is empty.
        pad: the padding of other libraries; generation here needs none.
        decoder_start: what an encoder-decoder's targets start with. None: a language.
        forced_bos: the first new token of a row of which the decoder has read a single token: an encoder-decoder's
            start, or a prompt of one token. None: any.
        forced_eos: the last new token of a row of the largest length is one of these; any if it is empty.
    """

    bos: int | None = None
    eos: tuple[int, ...] = ()
    pad: int | None = None
    decoder_start: int | None = None
    forced_bos: int | None = None
    forced_eos: tuple[int, ...] = ()

    @classmethod
    def of_config(cls, config: Any) -> Self:
        """Those of a family's Config."""
        given = {name: getattr(config, f"{name}_id") for name in cls._names() if hasattr(config, f"{name}_id")}
        return cls(**{name: _as_field(name, value) for name, value in given.items()})

    @classmethod
    def of_model(cls, m: Any) -> Self:
        """Those that a `Bundle` generates with: its own, or else its configuration's."""
        return m.token_ids or cls.of_config(m.model.config)

    @classmethod
    def read(cls, settings: Mapping[str, Any], base: Self | None = None) -> Self:
        """Those of a generation_config.json, over those of `base`; null is none.

        Raises:
            ValueError: a value that is no id.
        """
        given = {name: settings[_key(name)] for name in cls._names() if _key(name) in settings}
        return dataclasses.replace(base or cls(), **{name: _read(name, value) for name, value in given.items()})

    def write(self) -> dict[str, Any]:
        """The keys of a generation_config.json. Without ends, it says so with null."""
        values = {name: getattr(self, name) for name in self._names()}
        ids = {name: list(x) if isinstance(x, tuple) and len(x) > 1 else x for name, x in values.items()}
        ids = {name: (x[0] if x else None) if isinstance(x, tuple) else x for name, x in ids.items()}
        return {_key(name): x for name, x in ids.items() if x is not None or name == "eos"}

    def check(self, config: Any, *others: str) -> None:
        """Raises ValueError for an id outside of the vocabulary that would be generated or read, or is in one of the
        other fields."""
        for name in ("decoder_start", "forced_bos", "forced_eos", *others):
            if ids := [i for i in np.atleast_1d(getattr(self, name)) if i is not None]:
                checks.check_ids(np.asarray(ids)[None], config.vocab_size, _key(name), "the vocabulary")

    @classmethod
    def _names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in dataclasses.fields(cls))


KEYS = tuple(f"{name}_token_id" for name in TokenIds._names())
"""The keys of generation_config.json."""
_SEVERAL = ("eos", "forced_eos")
_NUMBERS = (int, float, np.integer, np.floating)


def _key(name: str) -> str:
    return f"{name}_token_id"


def _read(name: str, value: Any) -> Any:
    """The field from a file's or a call's value. A whole number may have a decimal point: 2.0 is 2 in JSON."""
    several = name in _SEVERAL and isinstance(value, list | tuple | np.ndarray)
    ids = [*value] if several else [] if value is None else [value]
    if any(isinstance(i, bool) or not isinstance(i, _NUMBERS) or i % 1 or abs(i) >= 2**31 for i in ids):
        expected = "a token id or a list of them" if name in _SEVERAL else "a token id"
        raise ValueError(f"{_key(name)} is {value!r}, where {expected} is expected")
    return _as_field(name, [*map(int, ids)] if several else int(value) if ids else None)


def _as_field(name: str, value: Any) -> Any:
    if name not in _SEVERAL:
        return value
    return () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)

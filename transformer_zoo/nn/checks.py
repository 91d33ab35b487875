"""Checks of a model's inputs. JAX silently clamps an index out of range and broadcasts a wrong shape; both are errors.

Shapes are always checked. Values are checked where they are known, that is, outside `jax.jit`; the data pipeline and
`zoo.generate` check them before they call a compiled function.
"""

import functools
import math
import numbers
import operator
import reprlib
import typing
from typing import Any

import jax
import numpy as np

from transformer_zoo import arguments

LARGEST = 2**32
"""The largest whole number of a setting."""


def concrete(x: Any) -> np.ndarray | None:
    """The value on the host; None under a transformation, or if other processes hold parts of the array."""
    if isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return None
    return np.asarray(x)


def check_tokens(tokens_BT: Any, vocab_size: int, max_length: int | None, name: str = "tokens_BT") -> None:
    """Raises ValueError unless `tokens_BT` is a non-empty [B, T] of ids in the vocabulary, T at most `max_length`."""
    check_ids(tokens_BT, vocab_size, name, "the vocabulary")
    if max_length is not None and tokens_BT.shape[1] > max_length:
        raise ValueError(
            f"{name} has rows of {tokens_BT.shape[1]} tokens, and the model has {max_length} positions: "
            "shorten the rows or split them"
        )


def check_source(config: Any, source_BS: Any, valid_BS: Any, source_documents_BS: Any) -> None:
    """Raises ValueError unless these are valid inputs of an encoder-decoder's encoder."""
    check_tokens(source_BS, config.vocab_size, config.max_length, "source_BS")
    check_like(valid_BS, source_BS, "valid_BS")
    check_like(source_documents_BS, source_BS, "source_documents_BS")


def check_target(config: Any, target_BT: Any, target_valid_BT: Any, target_documents_BT: Any) -> None:
    """Raises ValueError unless these are valid inputs of an encoder-decoder's decoder."""
    check_tokens(target_BT, config.vocab_size, config.max_length, "target_BT")
    check_like(target_valid_BT, target_BT, "target_valid_BT")
    check_like(target_documents_BT, target_BT, "target_documents_BT")


def check_ids(ids_BT: Any, size: int, name: str, of: str) -> None:
    """Raises ValueError unless `ids_BT` is a non-empty integer array [B, T] with values in [0, size)."""
    if not hasattr(ids_BT, "dtype"):
        raise ValueError(f"{name} is a {type(ids_BT).__name__}: expected an array of integers, as np.asarray makes it")
    if np.ndim(ids_BT) != 2 or 0 in np.shape(ids_BT):
        raise ValueError(f"{name} has shape {np.shape(ids_BT)}: expected [batch, length], neither of them zero")
    if not isinstance(ids_BT.dtype, np.dtype):
        kind = type(ids_BT).__name__
        raise ValueError(
            f"{name} is a {kind} of {ids_BT.dtype}: expected an array of numpy or JAX, as np.asarray makes it"
        )
    if not np.issubdtype(ids_BT.dtype, np.integer):
        raise ValueError(f"{name} is {ids_BT.dtype}: expected integers")
    if (values := concrete(ids_BT)) is not None and (values.min() < 0 or values.max() >= size):
        row, column = np.argwhere((values < 0) | (values >= size))[0]
        raise ValueError(
            f"{name}[{row}, {column}] is {values[row, column]}, outside of {of}, which has 0 to {size - 1}"
        )


def check_like(x: Any, tokens_BT: Any, name: str) -> None:
    """Raises ValueError unless `x` is None or has the shape of the tokens."""
    if x is not None and np.shape(x) != np.shape(tokens_BT):
        raise ValueError(f"{name} has shape {np.shape(x)} and the tokens {np.shape(tokens_BT)}: they must be equal")


def check_slots(config: Any, length: int) -> None:
    """Checks the slots of a cache.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    if not 0 < length <= config.max_length:
        raise ValueError(f"a cache of {length} tokens: the model has {config.max_length} positions")


def check_range(
    settings: Any, *names: str, least: float | None = None, above: float | None = None, most: float | None = None,
    below: float | None = None,
) -> None:  # fmt: skip
    """Raises ValueError unless each of these fields is None or a finite number within these bounds, of which `above`
    and `below` are excluded, and at most `LARGEST` if it is whole; TypeError for a field of a wrong type."""
    arguments.check(type(settings), vars(settings))
    bounds = (
        ("at least", least, operator.ge), ("more than", above, operator.gt), ("at most", most, operator.le),
        ("less than", below, operator.lt),
    )  # fmt: skip
    given = [(words, bound, holds) for words, bound, holds in bounds if bound is not None]
    for name in names:
        value = getattr(settings, name)
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}: it must be finite")
        if isinstance(value, numbers.Integral) and abs(value) > LARGEST:
            raise ValueError(f"{name} is {reprlib.repr(value)}: it must be at most {LARGEST}")
        if not all(holds(value, bound) for _, bound, holds in given):
            expected = " and ".join(f"{words} {bound}" for words, bound, _ in given)
            raise ValueError(f"{name} is {value}: it must be {expected}")


def check_finite(settings: Any) -> None:
    """Raises ValueError for a field that is NaN or infinite; TypeError for a field of a wrong type."""
    check_range(settings, *(name for name, value in vars(settings).items() if isinstance(value, float)))


def check_choices(settings: Any) -> None:
    """Raises ValueError for a field that is none of the few words that its annotation lists."""
    for name, known in choices_of(type(settings)).items():
        if (value := getattr(settings, name)) is not None and value not in known:
            raise ValueError(f"{name} is {value!r}: it must be {' or '.join(known)}")


@functools.cache
def choices_of(kind: type) -> dict[str, tuple[str, ...]]:
    """The fields of a dataclass that are one of a few words (`Literal`, or that and None), and these words."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        options = [option for option in arguments.options_of(hint) if option is not type(None)]
        if all(typing.get_origin(option) is typing.Literal for option in options):
            found[name] = tuple(word for option in options for word in typing.get_args(option))
    return found


check_sizes = functools.partial(check_range, least=1)
"""`check_range` for numbers of something."""
check_rates = functools.partial(check_range, least=0, below=1)
"""`check_range` for rates."""

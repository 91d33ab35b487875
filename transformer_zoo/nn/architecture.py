"""The base class of every family's Config: what makes an architecture possible, checked by the names of its fields."""

import dataclasses
import functools
import types
import typing
from typing import Any

from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.checks import check_range, check_rates, choices_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """The architecture of a model: what a checkpoint fixes.

    Raises:
        ValueError: a size below 1 (below 0 where 0 is the default, and for the fields `can_be_zero`), heads that do not
            divide the width, a dropout rate outside [0, 1), an unknown activation or choice, a special token outside
            the vocabulary, missing or duplicate labels.
        TypeError: a field of another type.
    """

    # Not annotated, and so no field. A family with segments has a field of this name.
    num_segments = None
    can_be_zero: typing.ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        check_rates(self, *(name for name in given if name.endswith("dropout")))
        check_range(self, *(name for name, value in given.items() if isinstance(value, float)), least=0)
        for name, value in given.items():
            self._check(name, value)
        for name in ("num_heads", "num_decoder_heads"):
            if name in given and "head_dim" not in given and self.width % (heads := getattr(self, name)):
                raise ValueError(f"{name}={heads} does not divide width={self.width}: every head has the same size")

    @property
    def steady_length(self) -> int | None:
        """The longest text whose keys and values do not depend on how long it is. None: those of no text do."""
        return None

    def _check(self, name: str, value: Any) -> None:
        default = type(self).__dataclass_fields__[name].default
        least = 0 if default == 0 or name in self.can_be_zero else 1
        choices = choices_of(type(self)).get(name, tuple(ACTIVATIONS) if name.endswith("activation") else None)
        if choices is not None and value not in choices:
            raise ValueError(f"{name} {value!r} is not known: choose one of {', '.join(choices)}")
        if name.endswith("_id"):
            # An end of text that is never written harms nobody: small published models have one.
            if name != "eos_id" and not 0 <= value < self.vocab_size:
                raise ValueError(f"{name} is {value}, outside of the vocabulary, which has 0 to {self.vocab_size - 1}")
        elif type(value) is int and value < least and name in _integers(type(self)):
            raise ValueError(f"{name} is {value}: it must be at least {least}")
        if name == "labels" and (not value or len(set(value)) != len(value)):
            raise ValueError(f"labels are {value!r}: there must be at least one, and none twice")


@functools.cache
def _integers(config: type) -> frozenset[str]:
    """The fields of a Config that are whole numbers, or None."""
    hints = typing.get_type_hints(config)
    kinds = {
        name: typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,) for name, hint in hints.items()
    }
    return frozenset(name for name, found in kinds.items() if int in found)

"""What makers of rows have in common: they turn documents into rows, and describe the arrays before there are any."""

import abc
import dataclasses
import json
from typing import Any, ClassVar

import numpy as np

from transformer_zoo.data.tokenizers import Tokenizer

Rows = dict[str, np.ndarray]
"""Arrays with one leading dimension, by names that end in their dimensions."""
Shapes = dict[str, tuple[tuple[int, ...], type]]
"""Shape and dtype of each array."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowMaker(abc.ABC):
    """Makes rows of the documents of a group. A value: numpy alone, and picklable, so that worker processes can have
    it.

    Raises:
        ValueError: settings that leave no room for text; a tokenizer without the special tokens that are needed.
    """

    name: ClassVar[str]
    """Its name in saved positions, which outlive the name of the class."""
    row_per_document: ClassVar[bool] = False
    """Each document makes exactly one row, whatever it holds."""

    tokenizer: Tokenizer | None = None
    """None: `shapes` works, which do not depend on it; rows cannot be made."""
    length: int
    """Tokens in a row."""

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            self.check(self.tokenizer)

    @abc.abstractmethod
    def __call__(self, documents: list[dict[str, Any]], rng: np.random.Generator) -> Rows:
        """The rows of some documents. All random numbers come from the generator."""

    @abc.abstractmethod
    def shapes(self, batch: int) -> Shapes:
        """The arrays of `batch` rows: the one description of what `__call__` returns. Rows of zeros fill up a last
        batch, and must not count in any sum."""

    def check(self, tokenizer: Tokenizer) -> None:  # noqa: B027 (most makers need no special token)
        """Raises ValueError if the tokenizer cannot make such rows."""

    def describe(self) -> dict[str, Any]:
        """Name and settings as JSON, a tokenizer by its fingerprint: makers with equal descriptions make equal rows."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        settings["tokenizer"] = self.tokenizer and self.tokenizer.fingerprint
        return json.loads(json.dumps({"rows": self.name, **settings}))


def zeros(shapes: Shapes) -> Rows:
    """Arrays of zeros."""
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}


def pad(rows: Rows, count: int) -> Rows:
    """Rows followed by rows of zeros, `count` in all."""
    fill = lambda values: np.zeros((count - len(values), *values.shape[1:]), values.dtype)
    return {name: np.concatenate([values, fill(values)]) for name, values in rows.items()}

"""What makers of rows have in common: they turn documents into rows, and describe the arrays before there are any."""

import abc
import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from transformer_zoo.data.documents import Source
from transformer_zoo.data.tokenizers import Tokenizer

SAMPLE = 2000
"""Documents of a split whose lengths are looked at, at most."""

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
    cut_by: ClassVar[str] = ""
    """The setting that says how many tokens of a text are kept, if `cut` counts what is longer."""
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

    def cut(self, documents: list[dict[str, Any]]) -> int:
        """How many of these documents lose some of their text in rows, since it is too long."""
        return 0

    def check(self, tokenizer: Tokenizer) -> None:  # noqa: B027 (most makers need no special token)
        """Raises ValueError if the tokenizer cannot make such rows."""

    def describe(self) -> dict[str, Any]:
        """Name and settings as JSON, a tokenizer by its fingerprint: makers with equal descriptions make equal rows."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        settings["tokenizer"] = self.tokenizer and self.tokenizer.fingerprint
        return json.loads(json.dumps({"rows": self.name, **settings}))


def cut_line(make_rows: RowMaker, splits: Mapping[str, Source], longest: int | None) -> str:
    """How many documents of each split lose some of their text in rows, in one line; empty if none does. Of more than
    `SAMPLE`, the number is estimated from so many, evenly spaced.

    Args:
        longest: tokens in a row that the model can read; None: any number.
    """
    if not make_rows.cut_by:
        return ""
    counts = {}
    for split, documents in splits.items():
        indices = np.unique(np.linspace(0, len(documents) - 1, SAMPLE).astype(int)).tolist()
        counts[split] = make_rows.cut([documents[i] for i in indices]) * len(documents) / len(indices)
    if not any(counts.values()):
        return ""
    found = ", ".join(
        f"{'about ' if len(splits[split]) > SAMPLE else ''}{count:,.0f} of {len(splits[split]):,} in {split}"
        for split, count in counts.items()
    )
    setting = make_rows.cut_by.partition(".")[2]
    limit = "" if longest is None else f", and the model reads rows of up to {longest:,}"
    return f"too long, their end is cut off: {found} ({make_rows.cut_by} is {getattr(make_rows, setting)}{limit})"


def zeros(shapes: Shapes) -> Rows:
    """Arrays of zeros."""
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}


def pad(rows: Rows, count: int) -> Rows:
    """Rows followed by rows of zeros, `count` in all."""
    fill = lambda values: np.zeros((count - len(values), *values.shape[1:]), values.dtype)
    return {name: np.concatenate([values, fill(values)]) for name, values in rows.items()}

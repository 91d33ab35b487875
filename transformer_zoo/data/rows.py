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

    def cut(self, documents: list[dict[str, Any]]) -> tuple[int, int]:
        """How many of these documents lose some of their text in rows, since it is too long; and how many of those lose
        all that is to be predicted, and are left out."""
        return 0, 0

    def characters(self, document: dict[str, Any]) -> int:
        """The length of a document's text, or of all its fields that have a length if none is called text; nested
        texts, such as those of `translation`, count as fields."""
        texts = [document["text"]] if "text" in document else document.values()
        nested = lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        flat = [text for value in texts for text in (value.values() if nested(value) else [value])]
        return sum(len(text) for text in flat if hasattr(text, "__len__"))

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
    lines = []
    for split, documents in splits.items():
        indices = np.unique(np.linspace(0, len(documents) - 1, SAMPLE).astype(int)).tolist()
        cut, out = (x * len(documents) / len(indices) for x in make_rows.cut([documents[i] for i in indices]))
        if split == "train" and 0 < len(documents) == out:
            raise ValueError(
                f"all {out:,.0f} documents of {split} are too long, and left out with nothing to predict: set "
                f"{make_rows.cut_by} higher"
            )
        about = "about " if len(documents) > SAMPLE else ""
        left_out = f", of which {about}{out:,.0f} are left out, with nothing to predict" if out else ""
        lines.append((cut, f"{about}{cut:,.0f} of {len(documents):,} in {split}{left_out}"))
    if not any(cut for cut, _ in lines):
        return ""
    setting = make_rows.cut_by.partition(".")[2]
    limit = "" if longest is None else f", and the model reads rows of up to {longest:,}"
    found = ", ".join(line for _, line in lines)
    return f"too long, their end is cut off: {found} ({make_rows.cut_by} is {getattr(make_rows, setting)}{limit})"


def zeros(shapes: Shapes) -> Rows:
    """Arrays of zeros."""
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}


def pad(rows: Rows, count: int) -> Rows:
    """Rows followed by rows of zeros, `count` in all."""
    fill = lambda values: np.zeros((count - len(values), *values.shape[1:]), values.dtype)
    return {name: np.concatenate([values, fill(values)]) for name, values in rows.items()}

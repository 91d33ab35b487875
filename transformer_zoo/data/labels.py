"""Labels as data have them: their classes, by name or by number, and a survey of all labels of a split.

A label is the name of a class. A whole number means the name that is this number, if any name is one: with the names 1
to 5, both 3 and "3" are the class "3". Only where no name is a number, a whole number is the index of a class. `true`
and `false` are the classes of these names, and never numbers.
"""

import collections
import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from transformer_zoo import json_files
from transformer_zoo.data.documents import Document, Source, field_of

MOST_CLASSES = 1000
"""Classes that are found in data, at most: more distinct labels than that are no classes."""
SHOWN = 20
"""Classes in a line about the labels, at most."""
SLOW = 10
"""Seconds that reading the labels may take before a line announces it."""

Tell = Callable[[str], Any]
"""Shows a line to the user."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


# One label


def class_of(value: Any, labels: tuple[str, ...], field: str, by_index: bool | None = None) -> int:
    """The index of the class that a label means.

    Args:
        value: a name, a number or a boolean.
        labels: the names of the classes.
        field: the name of the label's field.
        by_index: a number that is no text is an index, even where names are numbers.

    Raises:
        ValueError: no label, or none of the classes. The message begins with the field.
    """
    value = _plain(value)
    by_name, by_number = _indices(labels)
    if by_index and not isinstance(value, str):
        by_number = {}
    spellings = (str(value), str(value).lower()) if isinstance(value, bool) else (value,)
    for name in spellings:
        if isinstance(name, str) and name in by_name:
            return by_name[name]
    number = _number(value)
    if number is not None and number in by_number:
        return by_number[number]
    if number is not None and not by_number and number.is_integer() and 0 <= number < len(labels):
        return int(number)
    _check_label(value, field)
    hint = "objective.labels can name them"
    if number == -1:
        hint = "that split has no labels"
    elif isinstance(value, str):
        from transformer_zoo.trees import nearest  # brings jax, which workers that read need not load

        hint += "." + near if (near := nearest(value, labels)) else ""
    known = json_files.excerpt(", ".join(labels), 300)
    shown = json_files.excerpt(repr(value))
    raise ValueError(f"{field} {shown} is none of the {len(labels)} classes {known}: {hint}")


def number_of(value: Any, field: str) -> float:
    """The finite number that a label is, for a regression: a number, or the text of one.

    Raises:
        ValueError: neither; the message begins with the field.
    """
    number = _number(_plain(value))
    if number is None or not math.isfinite(number):
        raise ValueError(
            f"{field} is {json_files.excerpt(repr(_plain(value)))}, where objective.problem=regression needs a finite "
            "number: leave such examples out"
        )
    return number


def labels_in(value: Any, separator: str | None, field: str) -> list[Any]:
    """The labels of an example that may have several: the members of a list, or the parts of a text.

    Raises:
        ValueError: neither, a text without a separator, or a label twice; the message begins with the field.
    """
    value = _plain(value)
    if isinstance(value, str) and separator is not None:
        value = [part for part in map(str.strip, value.split(separator)) if part]
    elif isinstance(value, str):
        raise ValueError(
            f"{field} is the text {json_files.excerpt(repr(value))}, where a list of labels is expected: "
            "objective.separator can say what separates them, such as '|'"
        )
    if not isinstance(value, list | tuple):
        raise ValueError(
            f"{field} is {json_files.excerpt(repr(value))}, where a list of labels is expected: an empty one stands "
            "for none of the classes"
        )
    if len(set(map(repr, value))) < len(value):
        raise ValueError(
            f"{field} is {json_files.excerpt(repr(list(value)))}, with a label twice: list the classes that apply, "
            "and not a 0 or 1 for each"
        )
    return list(value)


def _plain(value: Any) -> Any:
    """Without numpy's types."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    return str(value, "utf-8") if isinstance(value, bytes) else value


def _number(value: Any) -> float | None:
    """The number that a value is or spells, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


@functools.lru_cache(maxsize=16)
def _indices(labels: tuple[str, ...]) -> tuple[dict[str, int], dict[float, int]]:
    """The index of each class by its name, and by the number that the name is."""
    by_name = {name: index for index, name in enumerate(labels)}
    by_number = {number: index for name, index in by_name.items() if (number := _number(name)) is not None}
    return by_name, by_number


def _check_label(value: Any, field: str) -> None:
    """Raises ValueError if a value can be the label of no class, whatever the classes are."""
    nothing = "null" if value is None else ""
    if isinstance(value, str) and not value.strip():
        nothing = "empty"
    if isinstance(value, float) and math.isnan(value):
        nothing = "NaN"
    if nothing:
        raise ValueError(f"{field} is {nothing}: leave examples without a label out, or give them a class of their own")
    shown, number = json_files.excerpt(repr(value)), _number(value)
    if number is not None and not number.is_integer():
        raise ValueError(
            f"{field} {shown} is a number, and no class: set objective.problem=regression to predict numbers, or name "
            "the classes in objective.labels"
        )
    if not isinstance(value, bool | int | float | str):
        raise ValueError(
            f"{field} is {shown}, where the label of one class is expected: with "
            "objective.problem=multi_label_classification an example may have several"
        )


def _name(value: Any) -> str:
    """The name of the class that a label stands for, where the classes have no names yet."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) else str(value)


# All labels of a split


@dataclasses.dataclass(frozen=True)
class Survey:
    """The labels of a split: how often each occurs."""

    field: str
    split: str
    seen: dict[tuple[type, Any], int]
    """Type and value of each label -> its number."""
    examples: int
    several: bool
    """An example may have any number of labels."""
    by_index: bool | None
    """As in `class_of`."""

    def counts(self, labels: tuple[str, ...]) -> dict[str, int]:
        """The number of labels of each class, in the order of the classes.

        Raises:
            ValueError: a label is none of these classes.
        """
        counts = dict.fromkeys(labels, 0)
        for (_, value), count in self.seen.items():
            counts[labels[class_of(value, labels, self.field, self.by_index)]] += count
        return counts

    def fits(self, labels: tuple[str, ...]) -> bool:
        """Whether each label is one of these classes. Labels that are numbers without a 0 are no indices of classes."""
        numbers = {_number(value) for _, value in self.seen}
        if None not in numbers and 0 not in numbers and not _indices(labels)[1]:
            return False
        try:
            self.counts(labels)
        except ValueError:
            return False
        return True

    def names(self) -> tuple[str, ...]:
        """The names of the classes, in order: by value if all are whole numbers, else by the alphabet.

        Raises:
            ValueError: these labels are no classes: too many distinct ones, only one, or none twice.
        """
        names = sorted({_name(value) for _, value in self.seen})
        numbers = [_number(name) for name in names]
        if all(number is not None and number.is_integer() for number in numbers):
            names.sort(key=_number)
        total = sum(self.seen.values())
        if total > 10 and len(names) == total:
            raise _no_classes(self.field, self.split, f"no label twice among {total:,}", names)
        if len(names) < 2 and not (self.several and names):
            which = f"only the label {names[0]!r}" if names else "no label"
            raise ValueError(
                f"the {self.examples:,} examples of the split {self.split} have {which} under {self.field!r}: there is "
                "nothing to tell apart"
            )
        return tuple(names)


def survey(
    documents: Sequence[Document],
    split: str,
    field: str,
    labels_of: Callable[[Document], Iterable[Any]],
    labels: tuple[str, ...] = (),
    *,
    several: bool = True,
    by_index: bool | None = None,
    inputs: Sequence[str] = (),
    tell: Tell | None = None,
) -> Survey:
    """Reads and checks all labels of a split.

    Args:
        documents: the examples.
        split: its name.
        field: the field with the labels.
        labels_of: an example -> its labels.
        labels: the names of the classes. Empty: to be found.
        several: an example may have any number of labels.
        by_index: as in `class_of`.
        inputs: as in `each`.
        tell: shows a line, if this takes long.

    Raises:
        ValueError: an example without the field, or with an input that is no text; a label that is missing or none of
            the classes, or so many distinct ones that they are no classes; the message names the split and where the
            example is.
    """
    seen: collections.Counter[tuple[type, Any]] = collections.Counter()

    def count(document: Document) -> None:
        for label in map(_plain, labels_of(document)):
            try:
                known = (type(label), label) in seen
            except TypeError:  # a list, which cannot be counted
                known = False
            if not known:
                if labels:
                    class_of(label, labels, field, by_index)
                else:
                    _check_label(label, field)
                if not labels and len(seen) == MOST_CLASSES:
                    some = [_name(value) for _, value in seen]
                    raise _no_classes(field, split, f"more than {MOST_CLASSES:,} distinct values", some)
            seen[type(label), label] += 1

    examples = sum(1 for _ in each(documents, split, count, inputs, tell))
    return Survey(field, split, dict(seen), examples, several, by_index)


def each(
    documents: Sequence[Document],
    split: str,
    read: Callable[[Document], Any],
    inputs: Sequence[str] = (),
    tell: Tell | None = None,
) -> Iterator[Any]:
    """What `read` returns for each example of a split.

    Args:
        inputs: fields that hold a text, or words. Examples of published data sets are taken as they are.

    Raises:
        ValueError: an input that is null, empty or blank, or `read` raised one; the message also says where the example
            is.
    """
    start, announced = time.monotonic(), tell is None
    inputs = () if isinstance(documents, Source) and documents.as_published else inputs
    for index, document in enumerate(documents):
        try:
            fields = dict(document)  # which does not say where it is
            for name in inputs:
                _check_input(field_of(fields, name), name)
            yield read(fields)
        except _NoClasses:
            raise
        except ValueError as error:
            place = documents.place(index) if isinstance(documents, Source) else f"document {index}"
            raise ValueError(f"split {split}, {place}: {error}") from None
        if not announced and index % 1000 == 999:
            took = time.monotonic() - start
            expected = took * len(documents) / (index + 1)
            announced = took > 1
            if announced and expected > SLOW:
                tell(f"reading the {len(documents):,} examples of {split}: about {expected:,.0f} s")


def _check_input(value: Any, field: str) -> None:
    """Raises ValueError if there is neither a text in a field nor a list of words, which may be empty."""
    if value is None or isinstance(value, float) and math.isnan(value):
        nothing = "null"
    elif isinstance(value, str) and not value.strip():
        nothing = "empty"
    elif not isinstance(value, str | list | tuple | np.ndarray):
        raise ValueError(f"{field} is {json_files.excerpt(repr(value))}, where a text is expected")
    else:
        return
    raise ValueError(f"{field} is {nothing}: leave examples without a text out, or give them one")


def line(surveys: Sequence[dict[str, int]], splits: Sequence[str], field: str, origin: str) -> str:
    """How often each class occurs in each split, in one line: the most frequent ones, if there are many."""
    first = surveys[0]
    shown = list(first) if len(first) <= SHOWN else sorted(first, key=first.__getitem__, reverse=True)[:SHOWN]
    each = ", ".join(f"{name} {' / '.join(f'{counts[name]:,}' for counts in surveys)}" for name in shown)
    rest = f", and {len(first) - len(shown):,} more" if len(shown) < len(first) else ""
    missing = [name for name, count in first.items() if not count]
    absent = f"; no example in {splits[0]}: {json_files.excerpt(', '.join(missing), 200)}" if missing else ""
    spelt: dict[str, list[str]] = {}
    for name in first:
        spelt.setdefault("".join(name.split()).casefold(), []).append(repr(name))
    groups = "; ".join(", ".join(names) for names in spelt.values() if len(names) > 1)
    alike = f"; these differ in case or spaces only: {json_files.excerpt(groups, 200)}" if groups else ""
    return f"{field}: {len(first):,} classes, {origin} ({' / '.join(splits)}): {each}{rest}{absent}{alike}"


class _NoClasses(ValueError):
    """About all labels of a split, and not one of them."""


def _no_classes(field: str, split: str, fault: str, some: Sequence[str]) -> ValueError:
    shown = json_files.excerpt(", ".join(some[:5]), 200)
    return _NoClasses(
        f"{field} has {fault} in the split {split}, such as {shown}: are these classes? To predict a number, set "
        "objective.problem=regression; if they are, name them in objective.labels"
    )

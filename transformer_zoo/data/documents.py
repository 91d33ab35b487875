"""What a source of documents is, and the one way in which a field of a document is read."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

Document = dict[str, Any]

PIECE = 1 << 16
"""Bytes of the pieces in which long documents are tokenised: the memory of a tokenizer is a hundred times its text."""


class Source:
    """A sequence of documents. A subclass has their number and reads one."""

    split: str = "all"
    """The split that was opened."""
    own_splits: bool = False
    """Whether the data came divided into splits."""
    as_published: bool = False
    """Whether its examples are those of a published data set, which are taken as they are."""
    fingerprint: str | None = None
    """A digest of the content of its documents, in order. None: it was not computed."""

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> Document:
        """The fields of the document at an index that is in range."""
        raise NotImplementedError

    def place(self, index: int) -> str:
        """Where a document is from, for an error message: `reviews.csv, line 3`."""
        return f"document {index}"

    def classes(self, field: str) -> tuple[str, ...] | None:
        """The names of the classes in a field of labels, by their numbers; None if they have no names."""
        return None

    def only(self, indices: np.ndarray) -> "Source":
        """Some of the documents, int[n]."""
        return Part(self, indices)

    def cut(self, size: int) -> "Source":
        """The same texts with long documents in pieces of at most `size` bytes, where that is possible without reading
        them: pieces of text files. A piece that another one follows has the field `continued`."""
        return self

    def divided(self, share: float) -> "Source":
        """The same, cut so small that a share of the pieces is about that share of the text."""
        return self

    def __getitem__(self, index: int) -> Document:
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index = int(index) % len(self)
        return Record(self.read(index), partial(self.place, index))

    def __iter__(self) -> Iterator[Document]:
        return (self[index] for index in range(len(self)))


class Record(dict):
    """The fields of a document, which knows where it is from.

    Args:
        place: gives the place, for an error message; it is called only then, since to count lines takes time.
    """

    def __init__(self, fields: Document, place: Callable[[], str]) -> None:
        super().__init__(fields)
        self._place = place

    @property
    def place(self) -> str:
        """As `Source.place`."""
        return self._place()


class Part(Source):
    """Some documents of another source."""

    def __init__(self, whole: Source, indices: np.ndarray) -> None:
        self._whole, self._indices = whole, indices

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> Document:
        return self._whole.read(int(self._indices[index]))

    def place(self, index: int) -> str:
        """As in the whole."""
        return self._whole.place(int(self._indices[index]))

    def classes(self, field: str) -> tuple[str, ...] | None:
        """As in the whole."""
        return self._whole.classes(field)


# Pieces


BORDERS = tuple(map(re.compile, (rb"\S\n(?=\S)", rb"\S(?= \S)", rb"\s(?=\S)")))
"""Where a text may be cut, the best first: at the end of a match of one of the first two, byte-level BPE has the same
tokens before and after as in the whole."""


def border(text: bytes) -> int:
    """The last place to cut a text, never its beginning."""
    for pattern in BORDERS:
        if places := [match.end() for match in pattern.finditer(text)]:
            return places[-1]
    return max(i for i in range(1, len(text)) if text[i] & 0xC0 != 0x80)  # between two characters


def pieces_of(text: str, size: int = PIECE) -> Iterator[str]:
    """A text in pieces of at most `size` characters, cut as `border` does in their last few thousand."""
    start = 0
    while len(text) - start > size:
        end = start + size
        window = text[end - min(size // 2, 1 << 12) : end].encode()
        end -= len(window[border(window) :].decode())
        yield text[start:end]
        start = end
    yield text[start:]


# Fields


def place_of(document: Mapping[str, Any]) -> str:
    """Where a document is from, for an error message."""
    return document.place if isinstance(document, Record) else "an example"


def field_of(document: Mapping[str, Any], name: str) -> Any:
    """The value of a document's field; `translation.en` is the field `en` of `translation`, unless a field has that
    whole name.

    Raises:
        ValueError: there is no such field.
    """
    if name in document:
        return document[name]
    value: Any = document
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            hint = "; the field that is the text can be named at the end of a source's name, as in csv:GLOB:KEY"
            raise ValueError(
                f"{place_of(document)} has no field {name!r}: it has {', '.join(_names(document)) or 'none'}"
                + (hint if name == "text" and isinstance(document, Record) else "")
            )
        value = value[part]
    return value


def text_in(document: Mapping[str, Any], name: str) -> str:
    """The text that a document holds in a field.

    Raises:
        ValueError: there is no such field, or something else is in it.
    """
    text = field_of(document, name)
    if not isinstance(text, str):
        raise ValueError(f"{place_of(document)}: the field {name!r} holds no text: {text!r:.60}")
    return text


def _names(document: Mapping[str, Any], within: str = "") -> list[str]:
    """The fields of a document, and those inside of them."""
    found = []
    for name, value in document.items():
        nested = isinstance(value, Mapping) and value
        found += _names(value, f"{within}{name}.") if nested else [f"{within}{name}"]
    return found
